"""Tuned tensors in peft's folder format on Hugging Face GPT-2, and back.

A folder holds adapter_config.json and adapter_model.safetensors. Hugging Face's GPT-2 fuses query, key and value into
c_attn, and peft tunes c_attn as a whole. A LoRA on some of the three is still exact there: the A of each part are
stacked, [A_q; A_v], and B is block-wise, [[B_q, 0], [0, 0], [0, B_v]]; rank and alpha grow alike. Coming back, the
parts whose block of B is empty are left out, and so are the ranks that a part does not use.

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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from config import AdaLoRASettings, IA3Settings, LoRASettings, PrefixSettings, PromptSettings
from errors import UserError
from files import read_json
from formats.peft_config import names_module, pattern_value

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
            raise UserError(f"{folder} is no peft folder: it has no {path.name}")
    patterns = {"alpha_pattern": (dict, None), "rank_pattern": (dict, None), "feedforward_modules": (list, str, None)}
    numbers = dict.fromkeys(("lora_alpha", "init_r", "lora_dropout"), (float, None))
    record = read_json(config, {"peft_type": str}, patterns | numbers, remedy="export it again")
    try:
        return record, load_file(weights)
    except (SafetensorError, OSError) as error:
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


def _split(fused, width):
    """The opposite of `_fuse`; unused parts of c_attn and unused ranks of a part are left out."""
    ours = {}
    for (layer, module), factors in fused.items():
        if module != "attn.c_attn":
            ours[layer, LINEARS[module]] = factors
            continue
        for part, block in zip(PARTS, factors["B"].split(width), strict=True):
            used = block.any(dim=0)
            if used.any():
                ours[layer, part] = {"B": block[:, used]} | {
                    kind: factors[kind][used] for kind in ("A", "E") if kind in factors
                }
    linears = {linear for _, linear in ours}
    rank = max(len(factors["A"]) for factors in ours.values())
    tensors = {}
    for (layer, linear), factors in ours.items():
        parent = "self_attention." if linear in PARTS else ""
        for kind, tensor in factors.items():
            missing = rank - (tensor.size(1) if kind == "B" else len(tensor))  # smaller ranks are filled up with zeros
            padding = (0, missing) if kind == "B" else (0, 0, 0, missing)
            padded = torch.nn.functional.pad(tensor, padding)
            tensors[f"gpt_layers.{layer}.{parent}{linear}.lora_{kind}"] = padded.contiguous()
    layers = {layer for layer, _ in ours}
    for linear in linears:
        if any((layer, linear) not in ours for layer in layers):
            raise UserError(f"{linear} is tuned in some layers only: that cannot be imported")
    return tensors, [name for name in (*PARTS, *MODULES) if name in linears], rank


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


def _layer_tensors(tensors, tail, config):
    """{(layer, module, *groups of tail): (full name of the module, tensor)} of the linears of GPT-2's layers.

    tail: a regular expression for what comes after the module's name. Raises UserError for any other key, for a layer
    that the model lacks, and for numbers that are not finite.
    """
    found = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"base_model\.model\.((?:transformer\.)?h\.(\d+)\.([\w.]+?))\.{tail}", key)
        if match is None or match[3] not in ("attn.c_attn", *LINEARS):
            raise UserError(f"{key} has no place here: only the linears of GPT-2's layers can be imported")
        if int(match[2]) >= config.num_hidden_layers:
            raise UserError(f"{key} is of layer {int(match[2]) + 1}, the model has {config.num_hidden_layers} layers")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{key} holds numbers that are not finite: the file is damaged, or its training diverged")
        found[int(match[2]), match[3], *match.groups()[3:]] = match[1], tensor.float()
    if not found:
        raise UserError("the folder holds no factors")
    return found


def _widths(module, config):
    """(in, out) of one of their linears."""
    width, inner = config.hidden_size, config.intermediate_size
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }[module]


def _their_factors(tensors, tail, config):
    """{(layer, module): {"A", "B", perhaps "E", "name": the module's full name}}. Raises UserError for other widths."""
    found = {}
    for (layer, module, kind), (name, tensor) in _layer_tensors(tensors, tail, config).items():
        found.setdefault((layer, module), {"name": name})[kind] = tensor
    for (_, module), factors in found.items():
        wide_in, wide_out = _widths(module, config)
        for kind in "AB":
            if kind not in factors:
                raise UserError(f"{factors['name']} has no lora_{kind}: the folder is not whole")
        rank = len(factors["A"])
        wanted = {"A": (rank, wide_in), "B": (wide_out, rank), "E": (rank, 1)}
        for kind in factors.keys() & wanted.keys():
            if tuple(factors[kind].shape) != wanted[kind]:
                shape, fits = list(factors[kind].shape), list(wanted[kind])
                raise UserError(f"lora_{kind} of {factors['name']} has shape {shape}, this base model needs {fits}")
    return found


def _import_lora(record, tensors, config):
    fused = _their_factors(tensors, r"lora_([AB])\.weight", config)
    scalings = {}
    for place, factors in fused.items():
        alpha = pattern_value(record.get("alpha_pattern"), factors.pop("name"), record["lora_alpha"])
        rank = len(factors["A"])
        scalings[place] = alpha / (rank**0.5 if record.get("use_rslora") else rank)
    common = next(iter(scalings.values()))
    for place, factors in fused.items():  # one scaling for all; what differs goes into B
        factors["B"] = factors["B"] * (scalings[place] / common)
    ours, targets, rank = _split(fused, config.hidden_size)
    settings = LoRASettings(
        lora_rank=rank,
        lora_alpha=common * rank,
        lora_dropout=record.get("lora_dropout", 0.0),
        lora_targets=",".join(targets),
    )
    return {"lora": settings}, ours


def _export_adalora(settings, tensors, config):
    fused = _fuse(tensors, config.hidden_size)
    rank = max(len(factors["A"]) for factors in fused.values())
    converted = {}
    for (layer, module), factors in fused.items():  # peft knows one rank for all: the rest has a strength E of zero
        missing = rank - len(factors["A"])
        for kind, tensor in factors.items():
            padding = (0, missing) if kind == "B" else (0, 0, 0, missing)
            converted[f"{_PREFIX}.{layer}.{module}.lora_{kind}"] = torch.nn.functional.pad(tensor, padding)
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
    fused = _their_factors(tensors, r"lora_([ABE])", config)
    scaling = record["lora_alpha"] / (record["init_r"] + 1e-5)
    for factors in fused.values():  # what has no strength takes no part: it need not come along
        if "E" not in factors:
            raise UserError(f"{factors['name']} has no lora_E: the folder is not whole")
        del factors["name"]
        kept = factors["E"].squeeze(1) != 0
        kept[0] |= not kept.any()
        factors.update(A=factors["A"][kept], E=factors["E"][kept], B=factors["B"][:, kept])
    ours, targets, rank = _split(fused, config.hidden_size)
    settings = AdaLoRASettings(
        adalora_start_rank=rank,
        adalora_rank=rank,
        adalora_alpha=scaling * (rank + 1e-5),
        adalora_dropout=record.get("lora_dropout", 0.0),
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
    ours, targets = {}, set()
    for (layer, module), (key, tensor) in _layer_tensors(tensors, "ia3_l", config).items():
        vector = tensor.flatten()
        scales_input = names_module(record.get("feedforward_modules"), key)
        if scales_input != (module == "mlp.c_proj"):
            raise UserError(f"{key} scales the module's {'input' if scales_input else 'output'}: ours does the other")
        wanted = _widths(module, config)[0 if scales_input else 1]
        if len(vector) != wanted:
            raise UserError(f"ia3_l of {key} has {len(vector)} numbers, this base model needs {wanted}")
        if module == "attn.c_attn":
            parts = zip((f"self_attention.{part}" for part in PARTS), vector.split(config.hidden_size), strict=True)
        else:
            parts = [(LINEARS[module], vector)]
        for name, part in parts:
            ours[f"gpt_layers.{layer}.{name}.ia3_scale"] = part.contiguous()
            if not (part == 1).all():
                targets.add(name.rpartition(".")[2])
    targets = [name for name in (*PARTS, *MODULES) if name in targets] or ["key", "value", "out_dense"]
    ours = {name: tensor for name, tensor in ours.items() if name.split(".")[-2] in targets}
    return {"ia3": IA3Settings(ia3_targets=",".join(targets))}, ours


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


def _embeddings(tensors):
    if "prompt_embeddings" not in tensors:
        raise UserError("adapter_model.safetensors holds no prompt_embeddings")
    if not torch.isfinite(tensors["prompt_embeddings"]).all():
        raise UserError("prompt_embeddings holds numbers that are not finite: the file is damaged")
    return tensors["prompt_embeddings"].float()


def _import_prompt(record, tensors, config):
    """P-tuning comes back as the virtual tokens that its encoder wrote: plain prompt tuning from here on."""
    embeddings = _embeddings(tensors)
    if embeddings.size(1) != config.hidden_size:
        raise UserError(f"the virtual tokens are {embeddings.size(1)} wide, the model {config.hidden_size}")
    return {"prompt": PromptSettings(prompt_length=len(embeddings))}, {"prompt.embedding": embeddings}


def _import_prefix(record, tensors, config):
    embeddings = _embeddings(tensors).flatten(1)
    wanted = 2 * config.num_hidden_layers * config.hidden_size
    if embeddings.size(1) != wanted:
        raise UserError(f"the prefix has {embeddings.size(1)} numbers a position, this model needs {wanted}")
    return {"prefix": PrefixSettings(prefix_length=len(embeddings))}, {"prompt.embedding": embeddings}


LORA = Form("LORA", _export_lora, _import_lora, ("lora_alpha",))
ADALORA = Form("ADALORA", _export_adalora, _import_adalora, ("lora_alpha", "init_r"))
IA3 = Form("IA3", _export_ia3, _import_ia3)
PROMPT_TUNING = Form("PROMPT_TUNING", _export_prompt, _import_prompt)
P_TUNING = Form("P_TUNING", _export_ptuning, _import_prompt)
PREFIX_TUNING = Form("PREFIX_TUNING", _export_prefix, _import_prefix)
