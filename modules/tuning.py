"""The register of parameter-efficient tuning methods, and what all of them share.

To add a method: write modules/NAME.py with its module (which lists what it trains in `tuning_parameters()`) and its
apply function, give it a name and a settings dataclass in config.py, and add one line to METHODS.

The order is always: load weights -> attach -> freeze the backbone -> optimizer. Freezing is by module, never by a
letter in a parameter's name, and nothing unfreezes the backbone afterwards. Task heads are outside the backbone: they
always train.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from config import UserError, check
from modules.adalora import AdaLoRALinear, RankAllocator, adalora_penalty, apply_adalora
from modules.adapter import apply_adapter
from modules.ia3 import IA3Linear, apply_ia3
from modules.llama_adapter import apply_llama_adapter
from modules.lora import LoRALinear, apply_lora
from modules.prefix import apply_prefix
from modules.prompt import apply_prompt, apply_ptuning
from modules.quantization import NF4Linear, apply_qlora

FULL_LEARNING_RATE = 1e-5  # full fine-tuning, where no method is chosen


@dataclass(frozen=True)
class Method:
    """settings: the name of its group of flags, None where it has none. learning_rate: its own sound default.

    apply(gpt2, settings): attaches it. select(gpt2, settings): parameters of the backbone itself that it trains.
    merges: whether it can be folded into plain linears. penalty(gpt2, settings): a term of the training loss.
    after_step(gpt2, settings, total_steps) -> function(step): called after every step, while the gradients are there.
    """

    settings: str | None
    learning_rate: float
    apply: Callable | None = None
    select: Callable | None = None
    merges: bool = False
    penalty: Callable | None = None
    after_step: Callable | None = None


def all_biases(gpt2, settings=None):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): every bias, those of the LayerNorms included."""
    return [p for name, p in gpt2.named_parameters() if name.endswith(".bias") and p.dim() == 1]


def lora_biases(gpt2, settings):
    """--lora_bias all: the biases of the whole backbone. (lora_only is the adapted linears' own matter.)"""
    return all_biases(gpt2) if settings.lora_bias == "all" else []


def top_layers(gpt2, settings):
    """The last layers as they are (the FT-Top2 of Hu et al. 2021, section 5.1). Raises UserError."""
    count, layers = settings.top_layers_count, len(gpt2.gpt_layers)
    check(count <= layers, f"--top_layers_count {count}: the model has {layers} layers")
    return list(gpt2.gpt_layers[layers - count :].parameters())


METHODS = {
    "lora": Method("lora", 2e-4, apply_lora, lora_biases, merges=True),
    "qlora": Method("lora", 2e-4, apply_qlora, lora_biases, merges=True),
    "adalora": Method("adalora", 1e-3, apply_adalora, merges=True, penalty=adalora_penalty, after_step=RankAllocator),
    "ia3": Method("ia3", 3e-3, apply_ia3, merges=True),
    "adapter": Method("adapter", 1e-4, apply_adapter),
    "prompt": Method("prompt", 1e-2, apply_prompt),
    "ptuning": Method("ptuning", 1e-3, apply_ptuning),
    "prefix": Method("prefix", 1e-3, apply_prefix),
    "llama_adapter": Method("llama_adapter", 9e-3, apply_llama_adapter),
    "bitfit": Method(None, 1e-3, select=all_biases, merges=True),
    "top_layers": Method("top_layers", 1e-4, select=top_layers, merges=True),
}
MERGEABLE_LINEARS = (LoRALinear, AdaLoRALinear, IA3Linear, NF4Linear)


def chosen_methods(settings):
    """{name: its settings} of the methods chosen in a script's settings, in the register's order."""
    chosen = settings.tuning.methods
    groups = {name: method.settings for name, method in METHODS.items() if name in chosen}
    return {name: group and getattr(settings, group) for name, group in groups.items()}


def default_learning_rate(methods):
    """The methods' own learning rate; the smallest where they combine, full fine-tuning's where there are none."""
    return min((METHODS[name].learning_rate for name in methods), default=FULL_LEARNING_RATE)


def attach(gpt2, methods):
    """Attach the methods ({name: settings}) to gpt2, in place, and freeze the rest of it. No method: full tuning."""
    for name, settings in methods.items():
        if METHODS[name].apply is not None:
            METHODS[name].apply(gpt2, settings)
    if methods:
        freeze(gpt2, methods)


def freeze(gpt2, methods):
    """Leave trainable what the attached methods train, and nothing else."""
    gpt2.requires_grad_(False)
    trained = [
        p for module in gpt2.modules() if hasattr(module, "tuning_parameters") for p in module.tuning_parameters()
    ]
    for name, settings in methods.items():
        if METHODS[name].select is not None:
            trained += METHODS[name].select(gpt2, settings)
    for parameter in trained:
        parameter.requires_grad_(True)


def with_penalties(loss_fn, gpt2, methods):
    """loss_fn(model, batch) -> (sum, count), with the methods' penalties added to the mean."""
    penalties = [(METHODS[name].penalty, group) for name, group in methods.items() if METHODS[name].penalty]
    if not penalties:
        return loss_fn

    def penalised(model, batch):
        loss, count = loss_fn(model, batch)
        return loss + count * sum(penalty(gpt2, group) for penalty, group in penalties), count

    return penalised


def after_step(gpt2, methods, total_steps):
    """What `fit` shall call after every optimizer step: a function(model, step), or None."""
    hooks = [METHODS[n].after_step(gpt2, group, total_steps) for n, group in methods.items() if METHODS[n].after_step]

    def call(model, step):
        for hook in hooks:
            hook(step)

    return call if hooks else None


def cast_frozen(gpt2, dtype):
    """Cast the frozen matrices once, so that autocast need not do so at every step.

    What is trained keeps its fp32 master weights. LayerNorms and position embeddings stay in fp32, too: they are small,
    and the sum of both embeddings, from which every layer's sum starts, is then in fp32.
    """
    for module in [gpt2.word_embedding, *(m for m in gpt2.modules() if isinstance(m, nn.Linear))]:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def cast_for_prediction(module, dtype):
    """Cast all parameters once, where nothing is trained any more: then no weight need be cast at every token.

    Modules that say `stays_fp32`, and buffers (the scales of quantised weights), keep their precision.
    """
    if getattr(module, "stays_fp32", False):
        return
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    for child in module.children():
        cast_for_prediction(child, dtype)


def trainable_state_dict(model, resumable=False):
    """{name: tensor} of what is trained: all that prediction needs. resumable: and what training needs to go on."""
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return tensors | (_tuning_buffers(model) if resumable else {})


def _tuning_buffers(model):
    return {
        f"{prefix}.{name}": getattr(module, name)
        for prefix, module in model.named_modules()
        if hasattr(module, "tuning_buffers")
        for name in module.tuning_buffers()
    }


@torch.no_grad()
def load_tuning(model, tensors, source="the run"):
    """Copy what `trainable_state_dict` gave back into a model built in the same way. Raises UserError for a misfit."""
    wanted, buffers = trainable_state_dict(model), _tuning_buffers(model)
    for name in (wanted.keys() ^ tensors.keys()) - buffers.keys():
        where = "is missing from" if name in wanted else "has no place in the model of"
        raise UserError(f"{name} {where} {source}: it was trained with other tuning flags")
    targets = wanted | buffers
    for name, tensor in tensors.items():
        if targets[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)} in {source}, {list(targets[name].shape)} in the model"
            raise UserError(f"{name} has shape {shapes}: it was trained with other flags or another model")
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def check_mergeable(methods):
    """Raise UserError if there is nothing to merge, or something that cannot be."""
    if not methods:
        raise UserError("there is nothing to merge: --merge folds a tuning method such as --lora into the weights")
    for name in methods:
        if not METHODS[name].merges:
            raise UserError(f"{name} cannot be merged into the weights: leave --merge out")


def merge(gpt2, methods):
    """Fold the methods into plain linears, in place; returns what `unmerge` wants.

    Raises UserError, and changes nothing, if one cannot be folded. Explicit, never a side effect of eval().
    """
    check_mergeable(methods)
    kept = _replaced_linears(gpt2)
    for parent, name, child in kept:
        setattr(parent, name, child.merged())
    return kept


def unmerge(kept):
    """Undo a merge exactly, in half precision too: the linears from before it, which `merge` returned, come back."""
    for parent, name, child in kept:
        setattr(parent, name, child)


def detach(gpt2):
    """Take all methods off: gpt2 is the model that it was, without being loaded again (BitFit and top layers aside)."""
    for layer in gpt2.gpt_layers:
        layer.attention_adapter = layer.ffn_adapter = nn.Identity()
        layer.self_attention.kv_adapter = None
    gpt2.prompt = None
    for parent, name, child in _replaced_linears(gpt2):
        setattr(parent, name, child.plain())


def _replaced_linears(gpt2):
    """[(parent, name, linear)] of the linears that a method has put in the place of plain ones."""
    return [
        (parent, name, child)
        for parent in gpt2.modules()
        for name, child in parent.named_children()
        if isinstance(child, MERGEABLE_LINEARS)
    ]


def count_parameters(model):
    """(trainable, total)"""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)


if __name__ == "__main__":  # python -m modules.tuning: what has been tuned, looked at and carried elsewhere
    from config import run_script
    from models.exchange import main

    run_script(main)
