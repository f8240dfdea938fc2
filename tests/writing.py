"""Short ways to call the decoders, for tests."""

import torch

from decoding import GPT2Steps, Rules, beam_search, generate, row_streams


def write(gpt2, prompts, settings, seed=0, end_of_text=None, stop=None, constraint=None, rows=None, head=None, **more):
    """`generate` with its rules and streams spelled out; rows: the numbers of the random streams."""
    streams = row_streams(seed, range(len(prompts)) if rows is None else rows)
    steps = GPT2Steps(gpt2, prompts, settings.max_new_tokens, head)
    return generate(steps, prompts, Rules(settings, end_of_text, stop, constraint), streams, **more)


def search(gpt2, prompts, settings, end_of_text=None, stop=None, constraint=None):
    """`beam_search` likewise."""
    steps = GPT2Steps(gpt2, prompts, settings.max_new_tokens)
    return beam_search(steps, prompts, Rules(settings, end_of_text, stop, constraint))


def some_prompts(number, seed=0):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (number,), generator=random).tolist()
    return [torch.randint(0, 8599, (length,), generator=random).tolist() for length in lengths]
