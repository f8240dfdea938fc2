"""Compiled training steps (--compile): torch.compile (Ansel et al. 2024, PyTorch 2) over GPT-2's layers.

Each layer is compiled by itself, for any batch size and length. As all layers have the same code, what is compiled for
one serves the others; a tuning method that sits in some layers only makes two kinds. Embeddings, heads and losses stay
as they are, and so do measuring and writing, whose many shapes would each be compiled again.

On the CPU a compiled run draws the very dropout of a plain one, and has its losses up to rounding.
"""

import statistics

import torch

from cli.script import say
from errors import UserError

SLOW = 3.0  # a step of so many times the usual length is one in which something was compiled


def check_compiler(device):
    """Raise UserError where torch has no compiler that it can compile with."""
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # what comes from a broken compiler is the back end's own affair
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--compile: torch cannot compile here ({cause}): on the CPU it needs a C++ compiler (g++), on CUDA triton "
            "and a C compiler; leave the flag out to train without"
        ) from error


def compile_layers(gpt2, **options):
    """Have a GPT2Model's layers compiled when they first run within `compiled_steps`. options: torch.compile's."""
    for layer in gpt2.gpt_layers:
        layer.compile(dynamic=True, **options)
    torch.compiler.set_stance("force_eager")  # outside of it, for all that is still to come


def compiled_steps():
    """A context in which compiled layers run compiled."""
    return torch.compiler.set_stance("default")


class Warmup:
    """How long compiling took: what slow steps took beyond the usual one.

    on: whether anything is compiled at all; if not, nothing is said.
    """

    def __init__(self, on):
        self.on, self.steps = on, []

    def count(self, seconds):
        """Count a step of so many seconds."""
        if self.on:
            self.steps.append(seconds)

    def tell(self):
        """Say it, once, when an epoch is over."""
        if not self.steps:
            return
        usual = statistics.median(self.steps)
        spent = sum(seconds - usual for seconds in self.steps if seconds > SLOW * usual)
        say(f"--compile: compiling took about {spent:.0f} s; a step without it takes {usual:.2f} s")
        self.on, self.steps = False, []
