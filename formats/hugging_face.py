"""GPT-2 checkpoints in Hugging Face layout, read into our modules and written back.

A checkpoint is a folder with config.json and the tensors, in model.safetensors or pytorch_model.bin, whole or sharded
(then with an .index.json). Names and shapes are held against config.json before any memory is taken. Then tensors are
read one at a time and copied into place: no second model is ever in memory.

Hugging Face's GPT-2 stores linears transposed (its Conv1D: (in, out)) and query, key, value fused into c_attn (D, 3D).
Every tensor is accounted for: an unknown, missing or wrongly shaped one is an error that names it.
"""

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from config import GPT2Config
from errors import UserError, check
from files import is_a, read_json, shortened
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


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. name: as it stands there. read(): brings it into memory."""

    file: Path
    name: str
    shape: list
    read: Callable


class _Undrawn(TorchFunctionMode):
    """Within it torch.nn.init draws nothing: no random numbers for weights that are about to be overwritten.

    (A model on the `meta` device does not draw either, but by way of torch's compiler, whose import takes seconds.)
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def load_pretrained(model_class, model, **overrides):
    """A model_class (GPT2Model) with the weights of a size, hub repository or local folder. Raises UserError."""
    folder = find_model(model)
    config = replace(read_config(folder), **overrides)
    tensors = open_weights(folder)
    check_tensors(config, tensors, folder)
    with _Undrawn():
        gpt2 = model_class(config)
    copy_weights(gpt2, tensors)
    return gpt2


# ---------------------------------------------------------------------------------------------------------------------
# config.json
# ---------------------------------------------------------------------------------------------------------------------


# What config.json must say, or leave unsaid, for a model to be this GPT-2; the first is what it means unsaid.
_REQUIRED = {
    "model_type": ("gpt2",),
    # the tanh form by its five names
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),  # of interest in half precision alone, but what is asked for is not done here
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False, None),
    "tie_word_embeddings": (True,),
    "quantization_config": (None, {}),
    "pruned_heads": (None, {}),
}
_FIELDS = {  # their name: (our name, type, least value, what it must be below)
    "vocab_size": ("vocab_size", int, 1, 2**31),
    "n_positions": ("max_position_embeddings", int, 1, 2**31),
    "n_embd": ("hidden_size", int, 1, 2**31),
    "n_layer": ("num_hidden_layers", int, 1, 2**31),
    "n_head": ("num_attention_heads", int, 1, 2**31),
    "n_inner": ("intermediate_size", (int, None), 1, 2**31),
    "layer_norm_epsilon": ("layer_norm_eps", float, 1e-12, 1),
    "resid_pdrop": ("hidden_dropout_prob", float, 0, 1),
    "attn_pdrop": ("attention_probs_dropout_prob", float, 0, 1),
    "embd_pdrop": ("embedding_dropout_prob", float, 0, 1),
    "initializer_range": ("initializer_range", float, 0, 2**31),
    "eos_token_id": ("eos_token_id", (int, list, None), 0, 2**31),
}
# Other names of the same (transformers' GPT2Config.attribute_map). What else a config.json says is for other tasks,
# for writing text or for training: with the same weights it changes no logit, and transformers reads over it, too.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read_config(folder):
    """GPT2Config of a checkpoint folder. Raises UserError for another architecture or a variant that is not GPT-2's."""
    path = Path(folder) / "config.json"
    check(path.exists(), f"{folder} holds no config.json: it is no model folder in Hugging Face layout")
    kinds = {name: kind for name, (_, kind, *_) in _FIELDS.items()}
    kinds |= {alias: kinds[name] for alias, name in _ALIASES.items()}
    values = read_json(path, optional=kinds, remedy="download the model again")
    for name, wanted in _REQUIRED.items():
        if values.get(name, wanted[0]) not in wanted:
            raise UserError(
                f"{path}: {name} is {shortened(values[name])}, this GPT-2 has {wanted[0]!r}; the model is not supported"
            )
    for alias, name in _ALIASES.items():
        if alias in values and values.setdefault(name, values[alias]) != values[alias]:
            both = f"{name} is {shortened(values[name])}, {alias} {shortened(values[alias])}"
            raise UserError(f"{path}: {both}: which of them holds?")
    ends = values.get("eos_token_id")
    if isinstance(ends, list):
        one = len(ends) == 1 and is_a(ends[0], int)
        check(one, f"{path}: eos_token_id is {shortened(ends)}; a text ends with one token here: leave that one")
        values["eos_token_id"] = ends[0]
    elif ends is None:
        values.pop("eos_token_id", None)
    ours = {}
    for theirs, (name, _, least, limit) in _FIELDS.items():
        value = ours[name] = values.get(theirs, getattr(GPT2Config, name))
        if value is not None and not least <= value < limit:
            names = " or ".join(dict.fromkeys((theirs, name)))
            raise UserError(f"{path}: {names} is {shortened(value)}, which cannot be: download the model again")
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


def linear_shapes(config):
    """{their linear in a layer: (in, out)}"""
    width, inner = config.hidden_size, config.intermediate_size
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }


def _shape(name, config):
    """The shape of a tensor, by its Hugging Face name."""
    width = config.hidden_size
    top = {"wte.weight": [config.vocab_size, width], "wpe.weight": [config.max_position_embeddings, width]}
    if name in top:
        return top[name]
    module, kind = re.sub(r"^h\.\d+\.", "", name).rsplit(".", 1)
    shape = list(linear_shapes(config).get(module, (width,)))
    return shape if kind == "weight" else shape[-1:]


def open_weights(folder):
    """{Hugging Face name: Stored} of a checkpoint folder, prefixes and old buffers left out. Raises UserError."""
    files = weight_files(Path(folder))
    if not files:
        raise UserError(f"{folder} holds no model.safetensors and no pytorch_model.bin: there are no weights to load")
    found = {}
    for file in files:
        for stored in (_safetensors if file.suffix == ".safetensors" else _torch_file)(file):
            short = _PREFIXES.sub("", stored.name)
            if short in found:
                raise UserError(f"{folder}: two tensors are {short}, one of them {stored.name}: which of them holds?")
            if not _IGNORED.fullmatch(short):
                found[short] = stored
    if "wte.weight" not in found and "lm_head.weight" in found:  # tied, and saved under the head's name
        found["wte.weight"] = found.pop("lm_head.weight")
    return found


def check_tensors(config, tensors, folder):
    """Raise UserError unless the tensors ({name: Stored}) are those of a GPT-2 of this config, by name and shape."""
    layers = {match[1] for match in (re.match(r"h\.(\d+)\.", name) for name in tensors) if match}
    targets = checkpoint_layout(replace(config, num_hidden_layers=len(layers)))
    for name, stored in tensors.items():
        if name not in targets and name != "lm_head.weight":
            raise UserError(f"{folder}: unknown tensor {stored.name}; this is not a plain GPT-2 checkpoint")
    if len(layers) != config.num_hidden_layers:
        raise UserError(
            f"{folder}: config.json asks for {config.num_hidden_layers} layers, the weights have {len(layers)}: they "
            "do not belong together"
        )
    missing = targets.keys() - tensors.keys()
    if missing:
        raise UserError(f"{folder}: {len(missing)} tensors are missing, first {min(missing)}")
    for name, stored in tensors.items():
        wanted = _shape("wte.weight" if name == "lm_head.weight" else name, config)
        if stored.shape != wanted:
            raise UserError(f"{folder}: {stored.name} has shape {stored.shape}, config.json asks for {wanted}")


@torch.no_grad()
def copy_weights(gpt2, tensors):
    """Copy the checkpoint's tensors into gpt2 (cast to its dtype). Raises UserError naming the tensor that is wrong."""
    targets, parameters = checkpoint_layout(gpt2.config), dict(gpt2.named_parameters())
    for name, (names, transposed) in targets.items():
        tensor = _numbers(tensors[name], parameters[names[0]].dtype)
        tensor = tensor.t() if transposed else tensor
        for ours, part in zip(names, tensor.chunk(len(names)), strict=True):
            parameters[ours].copy_(part)
    if "lm_head.weight" in tensors:
        head, embedding = tensors["lm_head.weight"], gpt2.word_embedding.weight
        if not torch.equal(_numbers(head, embedding.dtype), embedding):
            raise UserError(f"{head.file}: {head.name} differs from wte.weight; only tied embeddings are supported")


def _numbers(stored, dtype):
    """A stored tensor as dtype. Raises UserError for what are not finite floating-point numbers."""
    tensor, source = stored.read(), f"{stored.file}: {stored.name}"
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        what = "numbers of a format" if tensor.is_floating_point() else "whole numbers"
        raise UserError(f"{source} holds {what} ({kind}) that cannot be weights here: save it in fp32, bf16 or fp16")
    tensor = tensor.to(dtype)
    check_finite(tensor, source)
    return tensor


def check_finite(tensor, source):
    """Raise UserError, with the tensor's source named, unless all its numbers are finite."""
    if not all_finite(tensor):
        raise UserError(f"{source} holds numbers that are not finite: the file is damaged, or its training diverged")


def all_finite(tensor):
    """Whether all of a floating-point tensor's numbers are finite."""
    return not tensor.numel() or torch.stack(torch.aminmax(tensor)).isfinite().all()  # 20 times faster than of each


def _safetensors(file):
    """[Stored] of a safetensors file. Raises UserError."""

    def read(name):
        try:
            return tensors.get_tensor(name)
        except Exception as error:  # the library raises many types for what it does not know
            raise UserError(f"{file}: {name} cannot be read ({error}): download the model again") from error

    try:
        tensors = safe_open(file, framework="pt")
        shapes = {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no dict
    except Exception as error:
        raise UserError(f"{file} cannot be read ({_what_it_is(file) or error}): download the model again") from error
    return [Stored(file, name, shape, lambda name=name: read(name)) for name, shape in shapes.items()]


def _torch_file(file):
    """[Stored] of a file that torch.save wrote, of tensors and their names alone. Raises UserError."""
    try:
        mapped = zipfile.is_zipfile(file)  # files from before torch 1.6, like the first GPT-2's, cannot be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises nearly any type for a damaged file
        reason = _what_it_is(file) or type(error).__name__
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            reason = "it holds Python objects, which are never opened: save the model's state_dict() alone"
        raise UserError(f"{file} cannot be read ({reason}): download the model again") from error
    named = tensors if isinstance(tensors, dict) else {f"a {type(tensors).__name__}": None}
    others = [name for name, value in named.items() if not (isinstance(name, str) and _is_plain(value))]
    if others:
        inside = [
            name for name in others if isinstance(named[name], dict) and any(map(_is_plain, named[name].values()))
        ]
        remedy = f"save what it holds as {inside[0]!r} alone" if inside else "give the file with the tensors alone"
        raise UserError(
            f"{file} holds {others[0]!r} beside or in place of a model's tensors, as a training checkpoint does: "
            f"{remedy}"
        )
    return [Stored(file, name, list(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors.items()]


def _is_plain(value):
    """Whether something out of a file is a tensor with numbers of its own, dense and not quantised."""
    return torch.is_tensor(value) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _what_it_is(file):
    """In words what a file is that should hold tensors, where that is easily seen; else ""."""
    with open(file, "rb") as opened:
        start = opened.read(64).lstrip().lower()
    kinds = {b"version https://git-lfs": "it is Git LFS's pointer to the file: git lfs pull", b"<": "it is a web page"}
    return next((kind for beginning, kind in kinds.items() if start.startswith(beginning)), "")


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
