"""What each field of peft's adapter_config.json means to us: a verdict for every one that peft knows.

A field that is not known to be harmless, and says something, is refused by name: a folder is never taken for another
model than the one that was trained. Which modules a folder tunes, and with what rank and scaling, is found as peft 0.21
finds it (`check_target_module_exists`, `get_pattern_key`), by the modules' full names in Hugging Face's GPT-2.
"""

import re

from errors import UserError, check
from files import is_a, shortened

ANYTHING = "it is of no matter once the tensors are trained"
SHAPES = "held against the shapes of the tensors"
CONVERTED = "converted"
MATCHED = "held against the names of the tensors, by peft's own matching"
ALWAYS = dict.fromkeys(("task_type", "peft_type"), CONVERTED) | dict.fromkeys(
    ("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"), ANYTHING
)
_CHOICE = dict.fromkeys(("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), MATCHED)
_LORA = {
    **_CHOICE,
    **dict.fromkeys(("r", "rank_pattern"), SHAPES),
    "lora_dropout": CONVERTED,
    "fan_in_fan_out": "peft sets it right for GPT-2 by itself",
    "megatron_core": "without megatron_config it is not used",
    "runtime_config": "peft does not read it from a file",
    "qalora_group_size": "without use_qalora it is not used",
}
_PROMPT = dict.fromkeys(("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"), SHAPES)
HARMLESS = {  # peft_type: {field: why any value of it will do}
    "LORA": _LORA | dict.fromkeys(("lora_alpha", "alpha_pattern", "use_rslora"), CONVERTED),
    "ADALORA": _LORA
    | dict.fromkeys(("lora_alpha", "init_r"), CONVERTED)
    | dict.fromkeys(("alpha_pattern", "use_rslora"), "peft's AdaLoRA does not use it")
    | dict.fromkeys(("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2"), ANYTHING)
    | dict.fromkeys(("orth_reg_weight", "total_step"), ANYTHING),
    "IA3": _CHOICE | {"feedforward_modules": MATCHED, "fan_in_fan_out": ANYTHING, "init_ia3_weights": ANYTHING},
    "PROMPT_TUNING": _PROMPT
    | dict.fromkeys(("prompt_tuning_init", "prompt_tuning_init_text"), ANYTHING)
    | dict.fromkeys(("tokenizer_name_or_path", "tokenizer_kwargs"), ANYTHING),
    "P_TUNING": _PROMPT
    | dict.fromkeys(("encoder_reparameterization_type", "encoder_hidden_size"), "what it wrote is kept")
    | dict.fromkeys(("encoder_num_layers", "encoder_dropout"), "what it wrote is kept"),
    "PREFIX_TUNING": _PROMPT
    | dict.fromkeys(("encoder_hidden_size", "prefix_projection"), "what it wrote is kept")
    | {"init_weights": ANYTHING},
}
NOTHING = (None, False, "", [], {}, ())
# Fields with other values that mean nothing: {field: values}
PLAIN = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # these change the factors alone
    "num_transformer_submodules": (1,),
}
REASONS = {
    "use_dora": "its magnitudes have no place here",
    "bias": "only the factors can",
    "lora_bias": "the factors have no biases here",
    "modules_to_save": "only the method's own tensors",
    "init_lora_weights": "such a start may have changed the base weights, too; merge it with peft first",
    "use_qalora": "it pools the input before A; merge it with peft first",
    "layer_replication": "it makes more layers out of the base's",
    "target_parameters": "only linears are tuned here",
    "trainable_token_indices": "it changes rows of the word embedding",
    "megatron_config": "the modules are Megatron's",
    "alora_invocation_tokens": "it is on only after these tokens",
    "num_transformer_submodules": "GPT-2 is one",
}
_NAMES = (list, str, None)
TYPES = {  # of the fields that are read
    "base_model_name_or_path": (str, None),
    "revision": (str, None),
    "task_type": (str, None),
    **dict.fromkeys(("lora_alpha", "lora_dropout"), (float, None)),
    **dict.fromkeys(
        ("r", "init_r", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"), (int, None)
    ),
    "alpha_pattern": dict,
    "rank_pattern": (dict, None),
    "use_rslora": (bool, None),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules"), _NAMES),
    "layers_to_transform": (list, int, None),
}
_INSIDE = {  # of what they hold
    "alpha_pattern": float,
    "rank_pattern": (int, list),
    "layers_to_transform": int,
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules"), str),
}
# What peft takes for GPT-2 where target_modules and feedforward_modules are left out.
_TARGETS = {"LORA": ["c_attn"], "ADALORA": ["c_attn"], "IA3": ["c_attn", "mlp.c_proj"]}
_FEEDFORWARD = ["mlp.c_proj"]


def check_fields(record):
    """Raise UserError for a field of adapter_config.json that says something which is not known to be harmless."""
    harmless = ALWAYS | HARMLESS[record["peft_type"]]
    for name, value in record.items():
        plain = any(
            value is one or (type(value) is type(one) and value == one) for one in (*NOTHING, *PLAIN.get(name, ()))
        )
        if name not in harmless and not plain:
            reason = REASONS.get(name, "it is not known here that this changes nothing")
            raise UserError(f"{name} {shortened(value)} cannot be imported: {reason}")


def check_types(record):
    """Raise UserError for a field of adapter_config.json that is read here and has a type or number that cannot be."""
    for name, kinds in TYPES.items():
        if name not in record:
            continue
        value = record[name]
        inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        good = is_a(value, kinds) and all(is_a(one, _INSIDE[name]) for one in inside)
        numbers = [one for one in (value, *inside) if is_a(one, float)]
        check(
            good and all(abs(number) < 2**31 for number in numbers),  # of NaN that is not true
            f"adapter_config.json is damaged ({name} is {shortened(value)}): export it again",
        )
    layers, pattern = record.get("layers_to_transform"), record.get("layers_pattern")
    if isinstance(record.get("target_modules"), str):
        fits = layers is None and pattern is None
    else:
        fits = not pattern or layers is not None
    check(
        fits, "layers_to_transform cannot be imported: it wants a list of target_modules, and layers_pattern wants it"
    )
    check(
        0 <= (record.get("lora_dropout") or 0) < 1,
        f"adapter_config.json is damaged (lora_dropout is {record.get('lora_dropout')}): it is a share below 1",
    )


def is_targeted(record, name):
    """Whether peft tunes the linear of this full name ("transformer.h.0.attn.c_attn")."""
    excluded, targets = record.get("exclude_modules"), record.get("target_modules")
    if excluded and _names(excluded, name):
        return False
    if targets is None:
        targets = _TARGETS[record["peft_type"]]
    every = isinstance(targets, str) and targets.lower() == "all-linear"
    if isinstance(targets, str) and not every:
        return _names(targets, name)  # a regular expression says all, layers included
    return (every or _names(targets, name)) and _is_in_layers(record, name)


def _is_in_layers(record, name):
    layers, patterns = record.get("layers_to_transform"), record.get("layers_pattern")
    if layers is None or layers == []:
        return True
    if not patterns:
        expressions = [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    else:
        expressions = [rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\." for one in _listed(patterns)]
    found = next(filter(None, (_match(expression, name) for expression in expressions)), None)
    return found is not None and int(found["idx"]) in _listed(layers)


def scales_input(record, name):
    """Whether peft's (IA)^3 takes a linear for a feed-forward one, whose input is scaled, not its output."""
    modules = record.get("feedforward_modules")
    if isinstance(modules, str):
        return _names(modules, name)
    return any(name.endswith(end) for end in (_FEEDFORWARD if modules is None else modules))


def pattern_value(pattern, name, default):
    """The value of the first key of a pattern that fits a module's full name, as peft matches: a regular expression for
    its end, whole parts."""
    for key, value in (pattern or {}).items():
        if _match(rf"(.*\.)?({key})$", name):
            return value
    return default


def _names(modules, name):
    """Whether a list of ends of names, whole parts, or a text as a regular expression for the whole, names a module."""
    if isinstance(modules, str):
        return _match(modules, name, re.fullmatch) is not None
    return any(name == end or name.endswith(f".{end}") for end in modules)


def _match(expression, name, how=re.match):
    try:
        return how(expression, name)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"the pattern {shortened(expression)} of adapter_config.json is no regular expression ({error})"
        ) from error


def _listed(value):
    return value if isinstance(value, list) else [value]
