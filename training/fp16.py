"""What fp16 takes and bf16 does not: a scaled loss, and steps left out (Micikevicius et al. 2018, arXiv 1710.03740).

fp16 has more bits of precision than bf16, but numbers only from 6e-8 to 65504: gradients vanish below and overflow
above. So the loss is multiplied by a scale S before the backward pass, and the gradients by 1 / S after it, before they
are clipped. S is a power of two, so that both are exact. A step whose gradient overflows is left out, and S halved;
after GROWTH_INTERVAL steps in a row without that, it is doubled. (torch.amp.GradScaler does the same; tests hold one to
the other.)

As in accelerate the learning rate's schedule waits: a step that is left out is none for it. S and the steps since it
was changed are part of the run's state (Progress), so a run that goes on is exact.

torch starts at 65536, for the mean of a batch's losses. Here losses are summed, and the sum is larger by their number,
from 8 pairs to thousands of tokens: START serves all of them, and hardly a run begins with steps that are left out.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32

START = 2.0**4
SMALLEST = 2.0**-10  # a gradient that overflows even so is no matter of the scale
GROWTH_INTERVAL = 2000  # steps


def adapted(scale, steady, overflowed):
    """(S, steps in a row without an overflow) after a step. overflowed: whether its gradient was not finite."""
    if overflowed:
        return scale / 2, 0
    return (2 * scale, 0) if steady + 1 == GROWTH_INTERVAL else (scale, steady + 1)


class HalfAccelerator(Accelerator):
    """accelerate's Accelerator in fp16, on every device, the CPU included, where accelerate itself refuses it; and
    without its scaler, which knows no summed losses and no saved state of a run."""

    def __init__(self, cpu):
        super().__init__(cpu=cpu, mixed_precision="no")

    @property
    def mixed_precision(self):
        return "fp16"

    def autocast(self, autocast_handler=None):
        return torch.autocast(self.device.type, torch.float16)

    def prepare_model(self, model, device_placement=None, evaluation_mode=False):
        """On its device, its forward pass under autocast, what it returns in fp32: as in accelerate's own."""
        model = super().prepare_model(model, device_placement, evaluation_mode)
        model.forward = convert_outputs_to_fp32(self.autocast()(model.forward))
        return model
