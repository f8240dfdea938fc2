"""The register of parameter-efficient tuning methods, and what all of them share.

To add a method: write modules/NAME.py with its module (which lists what it trains in `tuning_parameters()`) and its
apply function, give it a settings dataclass in config.py whose first field is its switch, and add one line to METHODS.

The order is always: load weights -> attach -> freeze the backbone -> optimizer. Freezing is by module, never by a
letter in a parameter's name, and nothing unfreezes the backbone afterwards. Task heads are outside the backbone: they
always train.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from config import AdapterSettings, LoRASettings, UserError
from modules.adapter import apply_adapter
from modules.lora import apply_lora, merge_lora

FULL_LEARNING_RATE = 1e-5  # full fine-tuning, where no method is chosen


@dataclass(frozen=True)
class Method:
    """apply(gpt2, settings) attaches it; merge(gpt2) folds it into plain linears, None where that cannot be done."""

    settings: type
    apply: Callable
    learning_rate: float
    merge: Callable | None = None


METHODS = {
    "lora": Method(LoRASettings, apply_lora, learning_rate=2e-4, merge=merge_lora),
    "adapter": Method(AdapterSettings, apply_adapter, learning_rate=1e-4),
}


def chosen_methods(settings):
    """{name: its settings} of the methods switched on in a script's settings, in the register's order."""
    groups = {name: getattr(settings, name) for name in METHODS}
    return {name: group for name, group in groups.items() if getattr(group, name)}


def default_learning_rate(methods):
    """The methods' own learning rate; the smallest where they combine, full fine-tuning's where there are none."""
    return min((METHODS[name].learning_rate for name in methods), default=FULL_LEARNING_RATE)


def attach(gpt2, methods):
    """Attach the methods ({name: settings}) to gpt2, in place, and freeze the rest of it. No method: full tuning."""
    for name, settings in methods.items():
        METHODS[name].apply(gpt2, settings)
    if methods:
        freeze(gpt2)


def freeze(gpt2):
    """Leave trainable what the attached methods train, and nothing else."""
    gpt2.requires_grad_(False)
    for module in gpt2.modules():
        if hasattr(module, "tuning_parameters"):
            for parameter in module.tuning_parameters():
                parameter.requires_grad_(True)


def cast_frozen(gpt2, dtype):
    """Cast the frozen matrices once, so that autocast need not do so at every step.

    What is trained keeps its fp32 master weights. LayerNorms and position embeddings stay in fp32, too: they are small,
    and the sum of both embeddings, from which every layer's sum starts, is then in fp32.
    """
    for module in [gpt2.word_embedding, *(m for m in gpt2.modules() if isinstance(m, nn.Linear))]:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def trainable_state_dict(model):
    """{name: tensor} of what is trained: all that a run keeps."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_tuning(model, tensors, source="the run"):
    """Copy what `trainable_state_dict` gave back into a model built in the same way. Raises UserError for a misfit."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in parameters.keys() ^ tensors.keys():
        where = "is missing from" if name in parameters else "has no place in the model of"
        raise UserError(f"{name} {where} {source}: it was trained with other tuning flags")
    for name, tensor in tensors.items():
        if parameters[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)} in {source}, {list(parameters[name].shape)} in the model"
            raise UserError(f"{name} has shape {shapes}: it was trained with other flags or another model")
        parameters[name].copy_(tensor)


def check_mergeable(methods):
    """Raise UserError if there is nothing to merge, or something that cannot be."""
    if not methods:
        raise UserError("there is nothing to merge: --merge folds a tuning method such as --lora into the weights")
    for name in methods:
        if METHODS[name].merge is None:
            raise UserError(f"{name} cannot be merged into the weights: leave --merge out")


def merge(gpt2, methods):
    """Fold the methods into gpt2's plain linears, in place. Raises UserError, and changes nothing, if one cannot."""
    check_mergeable(methods)
    for name in methods:
        METHODS[name].merge(gpt2)


def count_parameters(model):
    """(trainable, total)"""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
