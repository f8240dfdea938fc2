"""What each field of peft's adapter_config.json means to us: a verdict for every one that peft knows.

A field that is not known to be harmless, and says something, is refused by name: a folder is never taken for another
model than the one that was trained.
"""

import re

from errors import UserError

ANYTHING = "the tensors say it, or it is of no matter once they are trained"
SHAPES = "the shapes of the tensors say it"
ALWAYS = dict.fromkeys(
    ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    ANYTHING,
)
_CHOICE = dict.fromkeys(("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), ANYTHING)
_LORA = {
    **_CHOICE,
    **dict.fromkeys(("r", "rank_pattern"), SHAPES),
    **dict.fromkeys(
        ("lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config", "qalora_group_size"), ANYTHING
    ),
}
_PROMPT = dict.fromkeys(
    ("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "tokenizer_name_or_path"), SHAPES
)
HARMLESS = {  # peft_type: {field: why any value of it will do}
    "LORA": _LORA | dict.fromkeys(("lora_alpha", "alpha_pattern", "use_rslora"), "converted"),
    "ADALORA": _LORA
    | dict.fromkeys(("lora_alpha", "init_r"), "converted")
    | dict.fromkeys(("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2"), ANYTHING)
    | dict.fromkeys(("orth_reg_weight", "total_step"), ANYTHING),
    "IA3": _CHOICE | {"feedforward_modules": "converted", "fan_in_fan_out": ANYTHING, "init_ia3_weights": ANYTHING},
    "PROMPT_TUNING": _PROMPT
    | dict.fromkeys(("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs"), ANYTHING),
    "P_TUNING": _PROMPT
    | dict.fromkeys(("encoder_reparameterization_type", "encoder_hidden_size"), "what it wrote is kept")
    | dict.fromkeys(("encoder_num_layers", "encoder_dropout"), "what it wrote is kept"),
    "PREFIX_TUNING": _PROMPT | dict.fromkeys(("encoder_hidden_size", "prefix_projection"), "what it wrote is kept"),
}
NOTHING = (None, False, "", [], {}, ())
# Fields with other values that mean nothing: {field: values}
PLAIN = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base weights, too
    "init_weights": (True, False),
    "num_transformer_submodules": (1,),
}
REASONS = {
    "use_dora": "its magnitudes have no place here",
    "bias": "only the factors can",
    "modules_to_save": "only the method's own tensors",
    "init_lora_weights": "such a start may have changed the base weights, too; merge it with peft first",
}


def check_fields(record):
    """Raise UserError for a field of adapter_config.json that says something which is not known to be harmless."""
    harmless = ALWAYS | HARMLESS[record["peft_type"]]
    for name, value in record.items():
        plain = any(
            value is one or (type(value) is type(one) and value == one) for one in (*NOTHING, *PLAIN.get(name, ()))
        )
        if name not in harmless and not plain:
            reason = REASONS.get(name, "it is not known here that this changes nothing")
            raise UserError(f"{name} {value!r} cannot be imported: {reason}")


def pattern_value(pattern, name, default):
    """The value of the first key of a pattern that fits a module's full name, as peft matches: a regular expression for
    its end, whole parts."""
    for key, value in (pattern or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise UserError(f"the pattern {key!r} of adapter_config.json is no regular expression ({error})") from error
    return default


def names_module(modules, name):
    """Whether a list of name ends, or a text as a regular expression for the whole, names a module, as in peft."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name.endswith(end) for end in modules or ())
