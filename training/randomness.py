"""Random states: seeded, kept with a run, and put back."""

import hashlib

import torch
from accelerate.utils import set_seed

LARGEST_SEED = 2**31 - 1  # that numpy and torch take, whatever is added to it


def seed_everything(seed, process=0):
    """Seed Python, numpy and torch. Any whole number will do: one too large for them stands for its SHA-256."""
    if seed > LARGEST_SEED:
        seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big") % LARGEST_SEED
    set_seed(seed + process)


def random_states(gather, accelerator):
    """{"cpu.0": uint8 tensor, ...}: the state of torch's generators in every process. gather: collects lists."""
    rank, device = accelerator.process_index, accelerator.device.type
    mine = [(f"cpu.{rank}", torch.get_rng_state())]
    if device in ("cuda", "mps"):
        mine.append((f"{device}.{rank}", getattr(torch, device).get_rng_state().cpu()))
    return dict(gather(mine))


def restore_random_states(states, process):
    """Put back what `random_states` gave, for this process."""
    for name, state in states.items():
        device, _, rank = name.partition(".")
        if rank == str(process):
            (torch if device == "cpu" else getattr(torch, device)).set_rng_state(state)
