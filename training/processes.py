"""Several processes that train as one (`accelerate launch`, torchrun)."""

import itertools
import math

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from cli.script import is_main_process
from datasets import LengthGroupedBatches
from errors import UserError, check
from training.sharding import is_sharded


def in_first_process(function, *arguments):
    """What function(*arguments) gives in the first process, known to all; its UserError is raised in all of them.

    (A process that is left waiting for one that has ended shows a traceback.)
    """
    if not _are_several():
        return function(*arguments)
    outcome = [None, None]
    if is_main_process():
        try:
            outcome[0] = function(*arguments)
        except UserError as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def from_first_process(read, *arguments):
    """(name, tensor), one after the other and in all processes, of what read(*arguments) gives in the first one.

    read: a function that gives {name: tensor}; its UserError is raised in all. So only the first process needs the run
    folder, which may lie on its host alone, and no other holds more than one tensor beyond what it is put into.
    """
    found = {}

    def look():
        found.update(read(*arguments))
        return {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()}

    for name, (dtype, shape) in in_first_process(look).items():
        tensor = found.pop(name) if found else torch.empty(shape, dtype=dtype)
        yield name, _sent(tensor) if _are_several() else tensor


def _sent(tensor):
    """The first process's tensor, on the CPU. As bytes: not every back end knows every number format."""
    data = tensor.contiguous().flatten().view(torch.uint8).to(PartialState().device)
    torch.distributed.broadcast(data, 0)
    return data.cpu().view(tensor.dtype).view(tensor.shape)


def check_same_everywhere(values):
    """Raise UserError, in all processes, unless all have the same values ({what: value}), which hosts may not."""
    first, *others = gather_object([values])
    for process, theirs in enumerate(others, start=1):
        differs = next((what for what in first if theirs.get(what) != first[what]), None)
        check(differs is None, f"process {process} has other {differs} than the first: give every host the same files")


def _are_several():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def predict_rows(predict, model, dataset, batch_size, accelerator, description):
    """{id: answer} for every row of the dataset; the processes share the work.

    predict(loader, model, device) -> (ids, answers), as in evaluation.py. description: what the progress bar is called.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = LengthGroupedBatches(dataset, batch_size, rank=rank, world=world)
    if is_sharded(model):  # every process has a part in every batch: who has one less takes the longest again
        missing = math.ceil(len(dataset) / (batch_size * world)) - len(batches)
        again = itertools.islice(LengthGroupedBatches(dataset, batch_size), missing)
        batches = list(itertools.chain(again, batches))
    with accelerator.autocast():
        bar = tqdm(batches, desc=description, unit="batch", leave=False, disable=None)
        ids, answers = predict(bar, model, accelerator.device)
    return dict(gather_object(list(zip(ids, answers, strict=True))))


def sum_over_processes(gradients):
    """Add up every gradient over all processes, in place.

    Once a step and after all backward passes, where torch's DistributedDataParallel does it during the last one: then a
    process whose memory runs out leaves no other one waiting, and parameters without a gradient need no care.
    """
    handles = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
    for handle in handles:
        handle.wait()
