"""What all tuning methods share: attach and detach, freeze, merge and unmerge, and the number formats of a tuned model.

The order is always: load weights -> attach -> freeze the backbone -> optimizer. Freezing is by module, never by a
letter in a parameter's name, and nothing unfreezes the backbone afterwards. Task heads are outside the backbone: they
always train.
"""

from torch import nn

from errors import UserError
from modules.lora import TunedLinear
from tuning.register import METHODS


def attach(gpt2, methods):
    """Attach the methods ({name: settings}) to gpt2, in place, and freeze the rest of it. No method: full tuning.

    Raises UserError where something is attached already.
    """
    if methods and is_tuned(gpt2):
        raise UserError("the model has a tuning method already, which another would silently replace: detach it first")
    for name, settings in methods.items():
        if METHODS[name].apply is not None:
            METHODS[name].apply(gpt2, settings)
    if methods:
        freeze(gpt2, methods)


def is_tuned(gpt2):
    """Whether a slot is filled or a linear replaced. (QLoRA's four bits alone count as a base.)"""
    slots = [gpt2.prompt, *(layer.self_attention.kv_adapter for layer in gpt2.gpt_layers)]
    adapters = [slot for layer in gpt2.gpt_layers for slot in (layer.attention_adapter, layer.ffn_adapter)]
    return (
        any(slot is not None for slot in slots)
        or not all(isinstance(slot, nn.Identity) for slot in adapters)
        or any(child.plain() is not child for _, _, child in _replaced_linears(gpt2))
    )


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


def detach(gpt2):
    """Take off whatever was put on, several LoRAs too: gpt2 is the model that it was, and all of it can be trained.

    What a method changed in the base itself stays: the values that BitFit and top layers trained, QLoRA's four bits.
    """
    for layer in gpt2.gpt_layers:
        layer.attention_adapter = layer.ffn_adapter = nn.Identity()
        layer.self_attention.kv_adapter = None
    gpt2.prompt = None
    for parent, name, child in _replaced_linears(gpt2):
        setattr(parent, name, child.plain())
    gpt2.requires_grad_(True)


def check_mergeable(methods):
    """Raise UserError if there is nothing to merge, or something that cannot be."""
    if not methods:
        raise UserError("there is nothing to merge: --merge folds a tuning method into the weights; leave it out")
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


def _replaced_linears(gpt2):
    """[(parent, name, linear)] of the linears that a method has put in the place of plain ones."""
    return [
        (parent, name, child)
        for parent in gpt2.modules()
        for name, child in parent.named_children()
        if isinstance(child, TunedLinear)
    ]


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
