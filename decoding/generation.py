"""Generation over a key-value cache.

In fp32 a seed gives the same texts at any batch size and in any order, but for a draw that falls within a rounding
error of the border between two tokens. In bf16 that is often: the last bits of a product depend on how many rows it
has, and bf16 has so few bits that the texts part after some tokens, each of them as good a sample as the other.

The model is anything that gives next-token logits from a cache (decoding/steps.py).
"""

import torch

from decoding.sampling import sample


@torch.no_grad()
def generate(steps, prompts, rules, streams, progress=None, on_select=None):
    """Continue every prompt; returns the new token ids of each, a list of lists, end-of-text not included.

    steps: the model, as in decoding/steps.py, for these prompts. prompts: lists of token ids, what filters see of the
    text so far. rules: Rules. streams: a random stream for each prompt, as from `row_streams`. progress: called with
    the number of new tokens after each step. on_select(rows): called when finished texts are dropped, with the batch
    rows that stay.
    """
    outputs = [[] for _ in prompts]
    active = list(range(len(prompts)))  # the prompt behind each row of the batch
    states = [rules.start(index, steps.limit) for index in active]
    finished = set()
    for step in range(steps.limit):
        histories = (prompts[index] + outputs[index] for index in active)
        now = [states[index] if index not in finished else None for index in active]
        logits = rules.admissible(steps.logits, histories, now, rules.settings.temperature)
        drawn = sample(logits, [streams[index] for index in active], rules.settings)
        growing = [(index, token) for index, token in zip(active, drawn.tolist(), strict=True) if index not in finished]
        for index, token in growing:
            outputs[index].append(token)
            states[index], over = rules.advance(index, outputs[index], states[index])
            if over:
                finished.add(index)
        if progress is not None:
            progress(sum(token != rules.end_of_text for _, token in growing))
        if len(finished) == len(prompts) or step == steps.limit - 1:
            break
        keep = [row for row, index in enumerate(active) if index not in finished]
        if 2 * len(keep) <= len(active):  # moving the cache costs time: drop finished rows when half of them are
            active = [active[row] for row in keep]
            rows = torch.tensor(keep)
            steps.select(rows)
            if on_select is not None:
                on_select(rows)
            drawn = drawn[rows.to(drawn.device)]
        steps.advance(drawn)
    return [rules.text(ids) for ids in outputs]
