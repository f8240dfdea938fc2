"""GPT-2 checkpoints in Hugging Face layout, read into our modules and written back.

A checkpoint is a folder with config.json and the tensors, in model.safetensors or pytorch_model.bin, whole or sharded
(then with an .index.json). Tensors are read one at a time and copied into place: no second model is ever in memory.

Hugging Face's GPT-2 stores linears transposed (its Conv1D: (in, out)) and query, key, value fused into c_attn (D, 3D).
Every tensor is accounted for: an unknown, missing or wrongly shaped one is an error that names it.
"""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from config import GPT2Config
from errors import UserError
from files import read_json
from formats.hub import find_model, weight_files

# Hugging Face's name in a layer: (our name, transposed). c_attn is split into three and handled on its own.
_LAYER_NAMES = {
    "ln_1": ("attention_layer_norm", False),
    "attn.c_proj": ("attention_dense", True),
    "ln_2": ("out_layer_norm", False),
    "mlp.c_fc": ("interm_dense", True),
    "mlp.c_proj": ("out_dense", True),
}
_TOP_NAMES = {"wte": "word_embedding", "wpe": "pos_embedding", "ln_f": "final_layer_norm"}
_IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers of old versions: the causal mask itself
_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|transformer\.)+")  # of DataParallel, torch.compile, GPT2LMHeadModel


def load_pretrained(model_class, model, **overrides):
    """A model_class (GPT2Model) with the weights of a size, hub repository or local folder. Raises UserError."""
    folder = find_model(model)
    config = replace(read_config(folder), **overrides)
    with torch.device("meta"):  # no memory yet, and no random numbers for weights that are about to be overwritten
        gpt2 = model_class(config)
    gpt2.to_empty(device="cpu")
    read_weights(gpt2, folder)
    return gpt2


# ---------------------------------------------------------------------------------------------------------------------
# config.json
# ---------------------------------------------------------------------------------------------------------------------


# What config.json must say, or leave unsaid, for a model to be this GPT-2.
_REQUIRED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # the tanh form by its three names
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
_FIELDS = {  # their name: (our name, type)
    "vocab_size": ("vocab_size", int),
    "n_positions": ("max_position_embeddings", int),
    "n_embd": ("hidden_size", int),
    "n_layer": ("num_hidden_layers", int),
    "n_head": ("num_attention_heads", int),
    "n_inner": ("intermediate_size", (int, None)),
    "layer_norm_epsilon": ("layer_norm_eps", float),
    "resid_pdrop": ("hidden_dropout_prob", float),
    "attn_pdrop": ("attention_probs_dropout_prob", float),
    "embd_pdrop": ("embedding_dropout_prob", float),
    "initializer_range": ("initializer_range", float),
    "eos_token_id": ("eos_token_id", (int, None)),
}
# Other names that transformers knows for the same (GPT2Config.attribute_map, and older files').
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read_config(folder):
    """GPT2Config of a checkpoint folder. Raises UserError for another architecture or a variant that is not GPT-2's."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{folder} holds no config.json: it is no model folder in Hugging Face layout")
    kinds = {name: kind for name, (_, kind) in _FIELDS.items()}
    kinds |= {alias: kinds[name] for alias, name in _ALIASES.items()}
    values = read_json(path, optional=kinds, remedy="download the model again")
    for name, wanted in _REQUIRED.items():
        if values.get(name, wanted[0]) not in wanted:
            raise UserError(
                f"{path}: {name} is {values[name]!r}, this GPT-2 has {wanted[0]!r}; the model is not supported"
            )
    for alias, name in _ALIASES.items():
        if alias in values and values.setdefault(name, values[alias]) != values[alias]:
            raise UserError(f"{path}: {name} is {values[name]}, {alias} {values[alias]}: which of them holds?")
    ours = {_FIELDS[name][0]: value for name, value in values.items() if name in _FIELDS}
    for name, value in ours.items():
        least = 0 if name.endswith(("prob", "eps", "range", "id")) else 1
        if value is not None and not least <= value < (1 if name.endswith("prob") else 2**31):
            raise UserError(f"{path}: {name} is {value}, which cannot be: download the model again")
    if ours.get("eos_token_id", 0) is None:
        del ours["eos_token_id"]
    return GPT2Config(**ours)


def _hugging_face_config(config):
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_position_embeddings,
        "n_ctx": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size,
        "layer_norm_epsilon": config.layer_norm_eps,
        "resid_pdrop": config.hidden_dropout_prob,
        "attn_pdrop": config.attention_probs_dropout_prob,
        "embd_pdrop": config.embedding_dropout_prob,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",  # what to compute in, whatever the weights are stored in
    }


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def checkpoint_layout(config):
    """Where each tensor goes: {Hugging Face name: ([our names], transposed)}; three names are query, key, value."""
    targets = {}
    for theirs, ours in _TOP_NAMES.items():
        for kind in ("weight", "bias") if theirs == "ln_f" else ("weight",):
            targets[f"{theirs}.{kind}"] = ([f"{ours}.{kind}"], False)
    for index in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            layer = f"gpt_layers.{index}"
            fused = [f"{layer}.self_attention.{name}.{kind}" for name in ("query", "key", "value")]
            targets[f"h.{index}.attn.c_attn.{kind}"] = (fused, kind == "weight")
            for theirs, (ours, transposed) in _LAYER_NAMES.items():
                targets[f"h.{index}.{theirs}.{kind}"] = ([f"{layer}.{ours}.{kind}"], transposed and kind == "weight")
    return targets


@torch.no_grad()
def read_weights(gpt2, folder):
    """Copy the checkpoint's tensors into gpt2 (cast to its dtype). Raises UserError naming the tensor that is wrong."""
    targets, parameters = checkpoint_layout(gpt2.config), dict(gpt2.named_parameters())
    seen, head = set(), None
    for name, read in _tensors(Path(folder)):
        short = _PREFIXES.sub("", name)
        if short in seen:
            raise UserError(f"{folder}: two tensors are {short}, one of them {name}: which of them holds?")
        if short == "lm_head.weight":
            head = read()
        elif short in targets:
            _copy(read(), targets[short], parameters, f"{folder}: {name}")
            seen.add(short)
        elif not _IGNORED.fullmatch(short):
            raise UserError(f"{folder}: unknown tensor {name}; this is not a plain GPT-2 checkpoint")
    if head is not None and "wte.weight" not in seen:  # tied, and saved under the head's name
        _copy(head, targets["wte.weight"], parameters, f"{folder}: lm_head.weight")
        seen.add("wte.weight")
    missing = targets.keys() - seen
    if missing:
        raise UserError(f"{folder}: {len(missing)} tensors are missing, first {min(missing)}")
    embedding = gpt2.word_embedding.weight
    if head is not None and not (head.shape == embedding.shape and torch.equal(head.to(embedding.dtype), embedding)):
        raise UserError(f"{folder}: lm_head.weight differs from wte.weight; only tied embeddings are supported")


def _copy(tensor, target, parameters, source):
    """A checkpoint's tensor into the parameters it stands for. Raises UserError, which begins with source."""
    names, transposed = target
    tensor = tensor.t() if transposed and tensor.dim() == 2 else tensor
    wanted = [len(names) * parameters[names[0]].size(0), *parameters[names[0]].shape[1:]]
    if list(tensor.shape) != wanted:
        shapes = [list((t.t() if transposed and t.dim() == 2 else t).shape) for t in (tensor, torch.empty(wanted))]
        raise UserError(f"{source} has shape {shapes[0]}, config.json asks for {shapes[1]}")
    if not tensor.is_floating_point():
        raise UserError(f"{source} holds whole numbers ({tensor.dtype}): only floating-point weights are supported")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{source} holds numbers that are not finite: the file is damaged, or its training diverged")
    for ours, part in zip(names, tensor.chunk(len(names)), strict=True):
        parameters[ours].copy_(part)


def _tensors(folder):
    """(name, read) for every tensor of a folder, `read()` bringing one into memory."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no model.safetensors and no pytorch_model.bin: there are no weights to load")
    for file in files:
        yield from (_safetensors if file.suffix == ".safetensors" else _torch_file)(file)


def _safetensors(file):
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no dict
                yield name, lambda name=name: tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}): download the model again") from error


def _torch_file(file):
    try:
        mapped = zipfile.is_zipfile(file)  # files from before torch 1.6, like the first GPT-2's, cannot be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises nearly any type for a damaged file
        raise UserError(f"{file} cannot be read ({type(error).__name__}): download the model again") from error
    named = tensors.items() if isinstance(tensors, dict) else [(f"a {type(tensors).__name__}", None)]
    others = [name for name, value in named if not torch.is_tensor(value)]
    if others:
        raise UserError(
            f"{file} holds {others[0]!r} beside or in place of a model's tensors, as a training checkpoint does: give "
            "the file with the tensors alone"
        )
    for name in list(tensors):
        yield name, lambda name=name: tensors[name]


def save_pretrained(gpt2, folder, dtype=torch.float32):
    """Write config.json, generation_config.json and model.safetensors (its numbers as dtype).

    transformers.GPT2LMHeadModel.from_pretrained opens the folder. Plain GPT-2 tensors only: merge or leave out tuning
    methods first (their tensors are an error that names them).
    """
    parameters = dict(gpt2.named_parameters())
    tensors = {}
    for theirs, (names, transposed) in checkpoint_layout(gpt2.config).items():
        tensor = torch.cat([parameters.pop(name).detach() for name in names])
        tensors[f"transformer.{theirs}"] = (tensor.t() if transposed else tensor).to("cpu", dtype).contiguous()
    if parameters:
        raise UserError(f"{next(iter(parameters))} has no place in a plain GPT-2: merge the tuning method first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _hugging_face_config(gpt2.config)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    for name, record in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
