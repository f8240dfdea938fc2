"""Sharded training: every process keeps its part of the weights, gradients and moments (ZeRO 3: Rajbhandari et al.
2020; by torch's fully_shard, "FSDP2": Zhao et al. 2023).

A layer's weights are put together when the layer runs, forward and backward, and given up again; embeddings, final
LayerNorm and head are one more such group. Of a model of N trained parameters in fp32, P processes hold 16 N / P bytes
each and, for a moment, one group's weights and gradients whole, where each would hold 16 N.

The optimizer, the schedule and the run folder know nothing of it: a part is a DTensor, which AdamW updates as it does
any tensor, and what is kept are whole tensors, gathered one after the other. So a run can go on sharded or not.

accelerate's own plugin for it (FullyShardedDataParallelPlugin) is not asked: it shards on GPUs only, and wraps the
optimizer; what it calls in the end is fully_shard, too.
"""

import copy

import torch

from cli.script import is_main_process


def shard(model, device):
    """A twin of a model (with a GPT-2 as `gpt`), split over all processes. The model itself is emptied until `unshard`.

    device: where the parts go. To be called in all processes, as everything here.
    """
    from torch.distributed.device_mesh import init_device_mesh  # a second of every start, if it stood above
    from torch.distributed.fsdp import fully_shard

    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})  # another frame around the same tensors
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*twin.gpt.gpt_layers, twin):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)  # sums, as everywhere in the loop
        module.set_force_sum_reduction_for_comms(True)  # gloo has nothing else
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    return twin


@torch.no_grad()
def unshard(twin, model):
    """Put all of the twin's weights into the model that it was made from, in every process."""
    parts = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data = parts[name].full_tensor()


def is_sharded(model):
    """Whether a model is what `shard` made."""
    return hasattr(model, "reshard")


def put_together(tensor):
    """A tensor whose parts are in several processes, whole in all of them; any other one as it is."""
    return tensor.full_tensor() if _is_split(tensor) else tensor


def _is_split(tensor):
    return hasattr(tensor, "full_tensor")  # a DTensor's


def in_first(tensors):
    """{name: tensor}, all whole, in the first process; {} in the others, which give up each as soon as it is made."""
    whole = {}
    for name, tensor in tensors.items():
        made = put_together(tensor)
        if is_main_process():
            whole[name] = made if made is tensor else made.cpu()
    return whole


def placed_like(tensor, parameter):
    """A whole tensor as a parameter of its shape is: on its device, or this process's part of it."""
    tensor = tensor.to(parameter.device)
    if _is_split(parameter):
        from torch.distributed.tensor import distribute_tensor

        # (all have the whole one: nothing need be sent)
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor
