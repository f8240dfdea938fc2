"""Tuned tensors in peft's folder format on Hugging Face GPT-2, and back.

A folder holds adapter_config.json and adapter_model.safetensors. Hugging Face's GPT-2 fuses query, key and value into
c_attn, and peft tunes c_attn as a whole. A LoRA on some of the three is still exact there: the A of each part are
stacked, [A_q; A_v], and B is block-wise, [[B_q, 0], [0, 0], [0, B_v]]; rank and alpha grow alike. Coming back, the
parts whose block of B is empty are left out, and so are the ranks that a part does not use.

Coming in, a folder must hold a tensor for every linear that its adapter_config.json tunes, and none besides: peft would
leave the one untrained and the other out, without a word. Linears that it leaves alone get factors of zero here.

A `Form` says how a method goes there and back; tuning/register.py says which method has which. What peft cannot say is
an error with the reason, never a folder that means something else.

Legend: r rank, D width, P virtual tokens, L layers.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from config import AdaLoRASettings, IA3Settings, LoRASettings, PrefixSettings, PromptSettings
from errors import UserError, check
from files import read_json
from formats.hugging_face import check_finite, linear_shapes
from formats.peft_config import TYPES, is_targeted, pattern_value, scales_input

PARTS = ("query", "key", "value")  # of c_attn, in this order
MODULES = {"attention_dense": "attn.c_proj", "interm_dense": "mlp.c_fc", "out_dense": "mlp.c_proj"}
LINEARS = {theirs: ours for ours, theirs in MODULES.items()}
_PREFIX = "base_model.model.transformer.h"


@dataclass(frozen=True)
class Form:
    """What a method is in peft's terms.

    kind: its peft_type. export(settings, tensors, config) -> (adapter_config, tensors) in their form. read(record,
    tensors, config) -> ({our name: settings}, tensors) in ours. required: fields of adapter_config that must be there.
    """

    kind: str
    export: Callable
    read: Callable
    required: tuple = ()


def read_folder(folder):
    """(adapter_config, tensors) of a folder. Raises UserError."""
    config, weights = Path(folder, "adapter_config.json"), Path(folder, "adapter_model.safetensors")
    for path in (config, weights):
        if not path.is_file():
            raise UserError(f"{folder} is no peft folder: it has no {path.name}; give one that peft has saved")
    record = read_json(config, {"peft_type": str}, TYPES, remedy="export it again")
    try:
        return record, load_file(weights)
    except Exception as error:  # the library raises many types for what it does not know
        raise UserError(f"{weights} cannot be read ({error}): export it again") from error


def write_folder(folder, record, tensors):
    """The opposite of `read_folder`. Raises UserError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
        text = json.dumps(record, indent=2) + "\n"
        Path(folder, "adapter_config.json").write_text(text, encoding="utf-8")
    except Exception as error:
        raise UserError(f"cannot write {folder} ({error}): make room, or choose another place") from error


# ---------------------------------------------------------------------------------------------------------------------
# LoRA and AdaLoRA: factors A, B and, between them, E (LoRA: ones)
# ---------------------------------------------------------------------------------------------------------------------


def _factors(tensors):
    """{(layer, linear): {"A": (r, in), "B": (out, r), "E": (r, 1) or absent}}"""
    found = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"gpt_layers\.(\d+)\.(?:self_attention\.)?(\w+)\.lora_([ABE])", key)
        if match is None:
            raise UserError(f"{key} cannot be exported: peft has no place for it (trained biases stay here)")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    return found


def _fuse(tensors, width):
    """{(layer, their module): {"A", "B", "E"}}: query, key and value become blocks of c_attn."""
    fused, ours = {}, _factors(tensors)
    for (layer, linear), factors in sorted(ours.items()):
        if linear not in PARTS:
            fused[layer, MODULES[linear]] = factors
    for layer in {layer for layer, _ in ours}:
        parts = [(place, ours[layer, part]) for place, part in enumerate(PARTS) if (layer, part) in ours]
        if not parts:
            continue
        rank = sum(len(factors["A"]) for _, factors in parts)
        block, start = parts[0][1]["B"].new_zeros(3 * width, rank), 0
        for place, factors in parts:
            end = start + len(factors["A"])
            block[place * width : (place + 1) * width, start:end] = factors["B"]
            start = end
        fused[layer, "attn.c_attn"] = {"B": block} | {
            kind: torch.cat([factors[kind] for _, factors in parts]) for kind in ("A", "E") if kind in parts[0][1]
        }
    return fused


def _split(fused, config):
    """(tensors, the linears, rank) in our form: the opposite of `_fuse`.

    Unused parts of c_attn and unused ranks of a part are left out; what is tuned in some layers only is zero in others.
    """
    ours, width = {}, config.hidden_size
    blocks = [f["B"].split(width) for (_, module), f in fused.items() if module == "attn.c_attn"]
    used_parts = {part for block in blocks for part, rows in zip(PARTS, block, strict=True) if rows.any()}
    for (layer, module), factors in fused.items():
        if module != "attn.c_attn":
            ours[layer, LINEARS[module]] = factors
            continue
        for part, block in zip(PARTS, factors["B"].split(width), strict=True):
            if used_parts and part not in used_parts:
                continue
            used = block.any(dim=0) | (not used_parts)  # before a first step B is zero, and means all of c_attn
            ours[layer, part] = {"B": block[:, used]} | {
                kind: factors[kind][used] for kind in ("A", "E") if kind in factors
            }
    linears = [name for name in (*PARTS, *MODULES) if name in {linear for _, linear in ours}]
    rank = max(1, *(len(factors["A"]) for factors in ours.values()))
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for linear in linears:
            like = next(factors for (_, name), factors in ours.items() if name == linear)
            factors = ours.get((layer, linear)) or {k: t[:, :0] if k == "B" else t[:0] for k, t in like.items()}
            parent = "self_attention." if linear in PARTS else ""
            for kind, tensor in factors.items():
                tensors[f"gpt_layers.{layer}.{parent}{linear}.lora_{kind}"] = _to_rank(tensor, kind, rank).contiguous()
    return tensors, linears, rank


def _to_rank(tensor, kind, rank):
    """A factor of a larger rank, filled up with zeros."""
    missing = rank - (tensor.size(1) if kind == "B" else len(tensor))
    return torch.nn.functional.pad(tensor, (0, missing) if kind == "B" else (0, 0, 0, missing))


def _target_modules(targets):
    names = {"attn.c_attn" if name in PARTS else MODULES[name] for name in targets}
    return sorted(names)


def _export_lora(settings, tensors, config):
    fused = _fuse(tensors, config.hidden_size)
    ranks = {module: len(factors["A"]) for (_, module), factors in fused.items()}
    record = {
        "peft_type": "LORA",
        "r": settings.lora_rank,
        "lora_alpha": settings.scaling * settings.lora_rank,
        "lora_dropout": settings.lora_dropout,
        "target_modules": _target_modules(settings.targets),
        "fan_in_fan_out": True,
        "bias": "none",
        "use_rslora": False,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != settings.lora_rank},
        "alpha_pattern": {
            module: settings.scaling * rank for module, rank in ranks.items() if rank != settings.lora_rank
        },
    }
    return record, {
        f"{_PREFIX}.{layer}.{module}.lora_{kind}.weight": tensor
        for (layer, module), factors in fused.items()
        for kind, tensor in factors.items()
    }


def _layer_tensors(record, tensors, tail, config):
    """{(layer, their module): {"name": the module's full name, kind: tensor}} of the linears of GPT-2's layers.

    tail: a regular expression for what comes after the module's name; its group is the kind. Raises UserError for any
    other key, for a layer that the model lacks, for numbers that are not finite, and where adapter_config.json tunes
    other modules than the tensors are of.
    """
    found, prefixes = {}, set()
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"base_model\.model\.((transformer\.|)h\.(\d{{1,6}})\.([\w.]+?))\.{tail}", key)
        if match is None or match[4] not in ("attn.c_attn", *LINEARS):
            raise UserError(f"{key} has no place here: only the linears of GPT-2's layers can be imported")
        name, layer, module, kind = match[1], int(match[3]), match[4], match[5]
        if layer >= config.num_hidden_layers:
            raise UserError(f"{key} is of layer {layer + 1}, the model has {config.num_hidden_layers} layers")
        check(
            is_targeted(record, name), f"{key}: target_modules and its like do not name it, so peft would leave it out"
        )
        prefixes.add(match[2])
        factors = found.setdefault((layer, module), {"name": name})
        check(kind not in factors, f"{key} is there twice, with and without a prefix: which of them holds?")
        factors[kind] = _finite(key, tensor)
    check(found, f"the folder holds no tensors of {record['peft_type']}")
    check(len(prefixes) == 1, "some tensors' names begin with transformer., others not: peft would leave some out")
    prefix = prefixes.pop()
    for layer in range(config.num_hidden_layers):
        for module in linear_shapes(config):
            name = f"{prefix}h.{layer}.{module}"
            if (layer, module) not in found and is_targeted(record, name):
                raise UserError(
                    f"adapter_config.json tunes {name}, but there is no tensor of it: the folder is not whole"
                )
    return found


def _finite(key, tensor):
    """A tensor in fp32. Raises UserError for what are not finite floating-point numbers."""
    check(
        tensor.is_floating_point(), f"{key} holds {tensor.dtype} where floating-point numbers belong: export it again"
    )
    tensor = tensor.float()
    check_finite(tensor, key)
    return tensor


def _check_shape(what, tensor, wanted):
    found = tuple(tensor.shape)
    check(found == wanted, f"{what} has shape {list(found)}, this base model needs {list(wanted)}")


def _their_factors(record, tensors, tail, config, rank_of):
    """{(layer, module): {"A", "B", perhaps "E", "name"}}. Raises UserError for other widths and ranks.

    rank_of(name): the rank that adapter_config.json gives a module.
    """
    found = _layer_tensors(record, tensors, tail, config)
    for (_, module), factors in found.items():
        name, (wide_in, wide_out) = factors["name"], linear_shapes(config)[module]
        kinds = "ABE" if "E" in tail else "AB"
        for kind in kinds:
            check(kind in factors, f"{name} has no lora_{kind}: the folder is not whole")
        rank = factors["A"].shape[0] if factors["A"].dim() else 0
        wanted = {"A": (rank, wide_in), "B": (wide_out, rank), "E": (rank, 1)}
        for kind in kinds:
            _check_shape(f"lora_{kind} of {name}", factors[kind], wanted[kind])
        said = rank_of(name)
        check(said == rank, f"{name} has rank {rank}, adapter_config.json says {said}: they do not belong together")
    return found


def _import_lora(record, tensors, config):
    def rank_of(name):
        return pattern_value(record.get("rank_pattern"), name, record.get("r", 8))  # 8: peft's default

    fused = _their_factors(record, tensors, r"lora_([AB])\.weight", config, rank_of)
    scalings = {}
    for place, factors in fused.items():
        name, rank = factors.pop("name"), len(factors["A"])
        check(rank > 0, f"{name} has rank 0: peft has no such LoRA")
        alpha = pattern_value(record.get("alpha_pattern"), name, record["lora_alpha"])
        scalings[place] = alpha / (rank**0.5 if record.get("use_rslora") else rank)
    common = next((abs(scaling) for scaling in scalings.values() if scaling), 1.0)
    for place, factors in fused.items():  # one scaling for all; what differs goes into B
        factors["B"] = factors["B"] * (scalings[place] / common)
    ours, targets, rank = _split(fused, config)
    settings = LoRASettings(
        lora_rank=rank,
        lora_alpha=common * rank,
        lora_dropout=record.get("lora_dropout") or 0.0,
        lora_targets=",".join(targets),
    )
    return {"lora": settings}, ours


def _export_adalora(settings, tensors, config):
    fused = _fuse(tensors, config.hidden_size)
    rank = max(len(factors["A"]) for factors in fused.values())
    converted = {}
    for (layer, module), factors in fused.items():  # peft knows one rank for all: the rest has a strength E of zero
        for kind, tensor in factors.items():
            converted[f"{_PREFIX}.{layer}.{module}.lora_{kind}"] = _to_rank(tensor, kind, rank)
    scaling = settings.adalora_alpha / (settings.adalora_start_rank + 1e-5)
    record = {
        "peft_type": "ADALORA",
        "init_r": rank,
        "target_r": settings.adalora_rank,
        "r": rank,
        "lora_alpha": scaling * (rank + 1e-5),
        "lora_dropout": settings.adalora_dropout,
        "target_modules": _target_modules(settings.targets),
        "fan_in_fan_out": True,
        "bias": "none",
        "tinit": 0,
        "tfinal": 0,
        "total_step": 1,  # peft wants one; nothing is allocated any more
        "rank_pattern": None,
    }
    return record, converted


def _import_adalora(record, tensors, config):
    start = record["init_r"]
    check(start >= 1, f"init_r {start} cannot be imported: a rank is 1 or more")

    def rank_of(name):
        kept = (record.get("rank_pattern") or {}).get(f"{name}.lora_E", [True] * start)
        return sum(one is True for one in kept) if isinstance(kept, list) else kept

    fused = _their_factors(record, tensors, r"lora_([ABE])", config, rank_of)
    alpha = record["lora_alpha"] if record["lora_alpha"] > 0 else start  # as peft does
    scaling = alpha / (start + 1e-5)
    for factors in fused.values():  # what has no strength takes no part: it need not come along
        del factors["name"]
        kept = factors["E"].squeeze(1) != 0
        kept[:1] |= not kept.any()
        factors.update(A=factors["A"][kept], E=factors["E"][kept], B=factors["B"][:, kept])
    ours, targets, rank = _split(fused, config)
    settings = AdaLoRASettings(
        adalora_start_rank=rank,
        adalora_rank=rank,
        adalora_alpha=scaling * (rank + 1e-5),
        adalora_dropout=record.get("lora_dropout") or 0.0,
        adalora_targets=",".join(targets),
    )
    return {"adalora": settings}, ours


# ---------------------------------------------------------------------------------------------------------------------
# (IA)^3
# ---------------------------------------------------------------------------------------------------------------------


def _export_ia3(settings, tensors, config):
    width, converted = config.hidden_size, {}
    for layer in range(config.num_hidden_layers):
        scales = {
            name: tensors[f"gpt_layers.{layer}.{'self_attention.' if name in PARTS else ''}{name}.ia3_scale"]
            for name in settings.targets
        }
        if scales.keys() & set(PARTS):  # peft scales all of c_attn: what we do not scale gets ones
            vector = torch.cat([scales.pop(part, torch.ones(width)).cpu() for part in PARTS])
            converted[f"{_PREFIX}.{layer}.attn.c_attn.ia3_l"] = vector[:, None]
        for name, scale in scales.items():
            shaped = scale[None] if name == "out_dense" else scale[:, None]
            converted[f"{_PREFIX}.{layer}.{MODULES[name]}.ia3_l"] = shaped
    record = {
        "peft_type": "IA3",
        "target_modules": _target_modules(settings.targets),
        "feedforward_modules": ["mlp.c_proj"] if "out_dense" in settings.targets else [],
        "fan_in_fan_out": True,
    }
    return record, converted


def _import_ia3(record, tensors, config):
    ours, width = {}, config.hidden_size
    for (layer, module), factors in _layer_tensors(record, tensors, r"(ia3_l)", config).items():
        name, vector = factors["name"], factors["ia3_l"]
        on_input, (wide_in, wide_out) = scales_input(record, name), linear_shapes(config)[module]
        if on_input != (module == "mlp.c_proj"):
            raise UserError(f"{name}: its {'input' if on_input else 'output'} is scaled, which cannot be done here")
        _check_shape(f"ia3_l of {name}", vector, (1, wide_in) if on_input else (wide_out, 1))
        names = [f"self_attention.{part}" for part in PARTS] if module == "attn.c_attn" else [LINEARS[module]]
        for linear, part in zip(names, vector.flatten().chunk(len(names)), strict=True):
            ours[layer, linear] = part.contiguous()
    scaled = {linear.removeprefix("self_attention.") for (_, linear), part in ours.items() if not (part == 1).all()}
    targets = [name for name in (*PARTS, *MODULES) if name in scaled] or ["key", "value", "out_dense"]
    filled = {}
    for layer in range(config.num_hidden_layers):
        for target in targets:
            linear = f"self_attention.{target}" if target in PARTS else target
            size = config.intermediate_size if target in ("interm_dense", "out_dense") else width
            filled[f"gpt_layers.{layer}.{linear}.ia3_scale"] = ours.get((layer, linear), torch.ones(size))
    return {"ia3": IA3Settings(ia3_targets=",".join(targets))}, filled


# ---------------------------------------------------------------------------------------------------------------------
# Virtual tokens and prefixes
# ---------------------------------------------------------------------------------------------------------------------


def _prompt_record(kind, length, config, **more):
    return {
        "peft_type": kind,
        "num_virtual_tokens": length,
        "token_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_transformer_submodules": 1,
    } | more


def _export_prompt(settings, tensors, config):
    return _prompt_record("PROMPT_TUNING", settings.prompt_length, config), {
        "prompt_embeddings": tensors["prompt.embedding"]
    }


def _export_ptuning(settings, tensors, config):
    """peft never saves the encoder: what it writes is kept, as in peft's own folders."""
    more = {
        "encoder_reparameterization_type": settings.ptuning_encoder.upper(),
        "encoder_hidden_size": settings.ptuning_hidden,
    }
    record = _prompt_record("P_TUNING", settings.ptuning_length, config, **more)
    return record, {"prompt_embeddings": tensors["prompt.written"]}


def _export_prefix(settings, tensors, config):
    more = {"prefix_projection": bool(settings.prefix_hidden), "encoder_hidden_size": settings.prefix_hidden or None}
    record = _prompt_record("PREFIX_TUNING", settings.prefix_length, config, **more)
    return record, {"prompt_embeddings": tensors["prompt.written"]}


def _embeddings(record, tensors, config, width):
    """The (P, width) vectors of a folder. Raises UserError for others than adapter_config.json and the base ask for."""
    check("prompt_embeddings" in tensors, "adapter_model.safetensors holds no prompt_embeddings")
    others = tensors.keys() - {"prompt_embeddings"}
    check(not others, f"{min(others, default='')} has no place here: only virtual tokens can be imported")
    fits = {
        "token_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }
    for name, wanted in fits.items():
        found = record.get(name)
        check(found in (None, wanted), f"adapter_config.json says {name} {found}, the base model has {wanted}")
    embeddings = _finite("prompt_embeddings", tensors["prompt_embeddings"])
    length = record.get("num_virtual_tokens") or (len(embeddings) if embeddings.dim() else 0)
    _check_shape("prompt_embeddings", embeddings, (length, width))
    context = config.max_position_embeddings
    check(0 < length < context, f"{length} virtual tokens leave no room for text in the model's {context} positions")
    applied = record.get("task_type") in ("CAUSAL_LM", "FEATURE_EXTRACTION")
    check(applied, f"task_type {record.get('task_type')!r} cannot be imported: peft prepends nothing to GPT-2 with it")
    return embeddings


def _import_prompt(record, tensors, config):
    """P-tuning comes back as the virtual tokens that its encoder wrote: plain prompt tuning from here on."""
    embeddings = _embeddings(record, tensors, config, config.hidden_size)
    return {"prompt": PromptSettings(prompt_length=len(embeddings))}, {"prompt.embedding": embeddings}


def _import_prefix(record, tensors, config):
    embeddings = _embeddings(record, tensors, config, 2 * config.num_hidden_layers * config.hidden_size)
    return {"prefix": PrefixSettings(prefix_length=len(embeddings))}, {"prompt.embedding": embeddings}


LORA = Form("LORA", _export_lora, _import_lora, ("lora_alpha",))
ADALORA = Form("ADALORA", _export_adalora, _import_adalora, ("lora_alpha", "init_r"))
IA3 = Form("IA3", _export_ia3, _import_ia3)
PROMPT_TUNING = Form("PROMPT_TUNING", _export_prompt, _import_prompt)
P_TUNING = Form("P_TUNING", _export_ptuning, _import_prompt)
PREFIX_TUNING = Form("PREFIX_TUNING", _export_prefix, _import_prefix)
