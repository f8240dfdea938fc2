"""Several processes that train as one (`accelerate launch`, torchrun)."""

import torch
from accelerate.utils import broadcast_object_list

from cli.script import is_main_process
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


def sum_over_processes(gradients):
    """Add up every gradient over all processes, in place.

    Once a step and after all backward passes, where torch's DistributedDataParallel does it during the last one: then a
    process whose memory runs out leaves no other one waiting, and parameters without a gradient need no care.
    """
    handles = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
    for handle in handles:
        handle.wait()
