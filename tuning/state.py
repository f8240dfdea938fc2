"""The state of a tuned model: what of it is trained, kept and loaded again."""

import torch

from errors import UserError


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


def count_parameters(model):
    """(trainable, total): a weight that is packed into fewer bytes counts as the weight that it is."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    packed = sum(module.packed_weights for module in model.modules() if hasattr(module, "packed_weights"))
    return sum(n for n, trained in counts if trained), packed + sum(n for n, _ in counts)
