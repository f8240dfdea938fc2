"""Generation over a key-value cache.

In fp32 a seed gives the same texts at any batch size and in any order, but for a draw that falls within a rounding
error of the border between two tokens. In bf16 that is often: the last bits of a product depend on how many rows it
has, and bf16 has so few bits that the texts part after some tokens, each of them as good a sample as the other.

Legend: B rows in the batch, D width, V vocabulary.
"""

import torch

from datasets.batching import pad
from decoding.sampling import sample
from errors import UserError
from modules.kv_cache import KVCache

VOCABULARY_BLOCK = 2048  # tokens


def next_token_logits(gpt2, hidden_states):
    """(B, D) -> (B, V). On the CPU, blocks of the vocabulary times a few rows run a third faster than one product."""
    if hidden_states.device.type != "cpu":
        return gpt2.hidden_state_to_token(hidden_states)
    blocks = gpt2.word_embedding.weight.split(VOCABULARY_BLOCK)
    return torch.cat([block @ hidden_states.t() for block in blocks]).t()


def prepare(gpt2, prompts, max_new_tokens):
    """(new tokens that there is room for, input_ids, attention_mask, empty cache) for left-padded prompts.

    Raises UserError if the longest prompt leaves no room in the model's context.
    """
    longest, context = max(map(len, prompts)), gpt2.context
    if longest >= context:
        raise UserError(f"a prompt of {longest} tokens leaves no room in the model's context of {context}: shorten it")
    new_tokens = min(max_new_tokens, context - longest)
    device = gpt2.word_embedding.weight.device
    input_ids, mask = (x.to(device) for x in pad(prompts, pad_id=0, side="left"))
    capacity = longest + new_tokens + gpt2.config.max_position_embeddings - context  # room for virtual tokens, too
    return new_tokens, input_ids, mask, KVCache(len(gpt2.gpt_layers), capacity)


@torch.no_grad()
def generate(gpt2, prompts, rules, streams, progress=None, on_select=None):
    """Continue every prompt; returns the new token ids of each, a list of lists, end-of-text not included.

    prompts: lists of token ids, none empty, continued as one left-padded batch. rules: Rules. streams: a random stream
    for each prompt, as from `row_streams`. progress: called with the number of new tokens after each step.
    on_select(rows): called when finished texts are dropped, with the batch rows that stay.
    Raises UserError if the longest prompt leaves no room in the model's context.
    """
    new_tokens, input_ids, mask, cache = prepare(gpt2, prompts, rules.settings.max_new_tokens)
    outputs = [[] for _ in prompts]
    active = list(range(len(prompts)))  # the prompt behind each row of the batch
    states = [rules.start(index, new_tokens) for index in active]
    finished = set()
    for step in range(new_tokens):
        hidden = gpt2(input_ids, mask, cache)["last_hidden_state"][:, -1]
        histories = (prompts[index] + outputs[index] for index in active)
        now = [states[index] if index not in finished else None for index in active]
        logits = rules.admissible(next_token_logits(gpt2, hidden), histories, now)
        drawn = sample(logits, [streams[index] for index in active], rules.settings)
        growing = [(index, token) for index, token in zip(active, drawn.tolist(), strict=True) if index not in finished]
        for index, token in growing:
            outputs[index].append(token)
            states[index], over = rules.advance(index, outputs[index], states[index])
            if over:
                finished.add(index)
        if progress is not None:
            progress(sum(token != rules.end_of_text for _, token in growing))
        if len(finished) == len(prompts) or step == new_tokens - 1:
            break
        keep = [row for row, index in enumerate(active) if index not in finished]
        if 2 * len(keep) <= len(active):  # moving the cache costs time: drop finished rows when half of them are
            active = [active[row] for row in keep]
            rows = torch.tensor(keep, device=mask.device)
            cache.select(rows)
            if on_select is not None:
                on_select(rows)
            drawn, mask = drawn[rows], mask[rows]
        input_ids = drawn[:, None]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
    return [rules.text(ids) for ids in outputs]
