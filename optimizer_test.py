"""The course's check of AdamW: a small regression of 1000 steps, against the course's array or, without it, torch.

python optimizer_test.py [FILE]    FILE: the course's optimizer_test.npy, looked for here and in data/
"""

import argparse
from pathlib import Path

from cli.flags import FlagParser
from cli.script import run_script, start


def parse(arguments=None):
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="the weights after 1000 steps")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

import numpy as np
import torch

from errors import UserError, check
from optimizer import AdamW

PLACES = ("optimizer_test.npy", "data/optimizer_test.npy")
STEPS, LR, DECAY = 1000, 1e-3, 1e-4
ATOL, RTOL = 1e-6, 1e-4  # the course's


def main(options):
    file = options.file or next((place for place in PLACES if Path(place).is_file()), None)
    ours = regression(lambda parameters: AdamW(parameters, lr=LR, weight_decay=DECAY, correct_bias=True))
    if file:
        reference = read_reference(file)
    else:  # it decays before the update, we after it: at these rates a difference of 1e-10 a step
        reference = regression(lambda parameters: torch.optim.AdamW(parameters, lr=LR, eps=1e-6, weight_decay=DECAY))
    name = file or "torch.optim.AdamW"
    difference = (ours - reference).abs().max().item()
    close = torch.allclose(ours, reference, atol=ATOL, rtol=RTOL)
    check(close, f"after {STEPS} steps AdamW differs from {name} by {difference:.1e}: optimizer.py is wrong")
    print(f"Optimizer test passed: after {STEPS} steps AdamW differs from {name} by {difference:.1e} at most")


def regression(make_optimizer):
    """The weight (2, 3) of a linear that learns y = (x0 + x1, -x2), one random x a step."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = make_optimizer(model.parameters())
    for _ in range(STEPS):
        x = torch.tensor(random.uniform(size=3), dtype=torch.float32)
        loss = ((torch.stack([x[0] + x[1], -x[2]]) - model(x)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.weight.detach()


def read_reference(file):
    try:
        reference = torch.tensor(np.load(file))
    except (OSError, ValueError, EOFError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is no array that numpy wrote"
        raise UserError(
            f"{file} cannot be read ({reason}): give the course's optimizer_test.npy, or no file"
        ) from error
    check(reference.shape == (2, 3), f"{file} holds {list(reference.shape)} numbers, not 2 x 3: give the course's file")
    return reference.float()


if __name__ == "__main__":
    run_script(main, OPTIONS)
