"""Several processes that train as one (`accelerate launch`, torchrun)."""

import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from cli.script import is_main_process
from datasets import LengthGroupedBatches
from errors import UserError


def in_first_process(function, *arguments):
    """What function(*arguments) gives in the first process, known to all; its UserError is raised in all of them.

    (A process that is left waiting for one that has ended shows a traceback.)
    """
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


def predict_rows(predict, model, dataset, batch_size, accelerator, description):
    """{id: answer} for every row of the dataset; the processes share the work.

    predict(loader, model, device) -> (ids, answers), as in evaluation.py. description: what the progress bar is called.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = LengthGroupedBatches(dataset, batch_size, rank=rank, world=world)
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
