"""Sampling and generation over a key-value cache.

Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751, section 3.1) draws from the smallest set of tokens whose
probabilities add up to top_p. It is usually done by sorting the vocabulary at every step. It need not be: see
`sample_nucleus`.

Every row has its own random stream, made from the seed and the row's number: a seed gives the same texts at any batch
size and in any order.

Legend: B rows in the batch, T prompt length, V vocabulary.
"""

import torch

from config import UserError
from datasets.batching import pad
from modules.kv_cache import KVCache

VOCABULARY_BLOCK = 2048  # tokens


def row_streams(seed, rows):
    """One torch.Generator for each row number."""
    return [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]


def sample(logits, streams, settings):
    """Draw the next token of every row: (B, V) logits, B streams -> (B,) token ids.

    settings: DecodingSettings (temperature, 0 means greedy; top_k, 0 means all; top_p). Temperature comes first, then
    top-k, then top-p on what is left, renormalised, as in transformers.
    """
    logits = logits.float()
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.size(-1):
        kth_largest = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth_largest, float("-inf"))
    return sample_nucleus(logits.softmax(dim=-1), streams, settings.top_p)


def sample_nucleus(probabilities, streams, top_p):
    """Draw from the nucleus of every row, exactly and without sorting: (B, V) -> (B,).

    A token is in the nucleus if the tokens more probable than it add up to less than top_p. That takes one sum, so:
    draw a token from the whole distribution; keep it if it is in the nucleus; else strike it and everything that is no
    more probable (all outside, too) and draw again. What is left outside shrinks quickly, and at least a share top_p of
    the first draws is kept. (Tokens tied with the nucleus's last one count as inside.)
    """
    tokens = torch.empty(len(probabilities), dtype=torch.long, device=probabilities.device)
    pending = torch.arange(len(probabilities), device=probabilities.device)
    remaining = probabilities
    while len(pending):
        uniforms = torch.stack(
            [torch.rand((), dtype=torch.float64, generator=streams[row]) for row in pending.tolist()]
        )
        cumulative = remaining.cumsum(dim=-1)
        target = uniforms.to(cumulative.device, cumulative.dtype)[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.size(-1) - 1)
        level = remaining.gather(-1, drawn)
        above = torch.where(remaining > level, remaining, 0)
        inside = level.squeeze(-1) > 0
        if top_p < 1:
            inside &= above.sum(dim=-1) < top_p
        tokens[pending[inside]] = drawn[inside].squeeze(-1)
        remaining = above[~inside]
        pending = pending[~inside]
    return tokens


def next_token_logits(gpt2, hidden_states):
    """(B, D) -> (B, V). On the CPU, blocks of the vocabulary times a few rows run a third faster than one product."""
    if hidden_states.device.type != "cpu":
        return gpt2.hidden_state_to_token(hidden_states)
    blocks = gpt2.word_embedding.weight.split(VOCABULARY_BLOCK)
    return torch.cat([block @ hidden_states.t() for block in blocks]).t()


@torch.no_grad()
def generate(gpt2, prompts, settings, seed=0, end_of_text=None, stop=None, rows=None, progress=None, on_select=None):
    """Continue every prompt; returns the new token ids of each, a list of lists, end-of-text not included.

    prompts: lists of token ids, none empty, continued as one left-padded batch. settings: DecodingSettings.
    end_of_text: the token id that ends a text. stop(index, ids): called with a prompt's place and its new ids after
    each token; True ends the text.
    rows: numbers of the rows in the random streams, 0, 1, ... by default. progress: called with the number of new
    tokens after each step. on_select(rows): called when finished texts are dropped, with the batch rows that stay.
    Raises UserError if the longest prompt leaves no room in the model's context.
    """
    longest, context = max(map(len, prompts)), gpt2.context
    if longest >= context:
        raise UserError(f"a prompt of {longest} tokens leaves no room in the model's context of {context}: shorten it")
    new_tokens = min(settings.max_new_tokens, context - longest)
    weight = gpt2.word_embedding.weight
    streams = row_streams(seed, range(len(prompts)) if rows is None else rows)
    outputs = [[] for _ in prompts]

    input_ids, mask = (x.to(weight.device) for x in pad(prompts, pad_id=0, side="left"))
    capacity = longest + new_tokens + gpt2.config.max_position_embeddings - context  # room for virtual tokens, too
    cache = KVCache(gpt2.config, len(prompts), capacity, gpt2.dtype, weight.device)
    active = list(range(len(prompts)))  # the prompt behind each row of the batch
    finished = set()
    for step in range(new_tokens):
        hidden = gpt2(input_ids, mask, cache)["last_hidden_state"][:, -1]
        drawn = sample(next_token_logits(gpt2, hidden), [streams[index] for index in active], settings)
        written = 0
        for index, token in zip(active, drawn.tolist(), strict=True):
            if index in finished:
                continue
            if token != end_of_text:
                outputs[index].append(token)
                written += 1
            if token == end_of_text or (stop is not None and stop(index, outputs[index])):
                finished.add(index)
        if progress is not None:
            progress(written)
        if len(finished) == len(prompts) or step == new_tokens - 1:
            break
        keep = [row for row, index in enumerate(active) if index not in finished]
        if 2 * len(keep) <= len(active):  # moving the cache costs time: drop finished rows when half of them are
            active = [active[row] for row in keep]
            rows_kept = torch.tensor(keep, device=weight.device)
            cache.select(rows_kept)
            if on_select is not None:
                on_select(rows_kept)
            drawn, mask = drawn[rows_kept], mask[rows_kept]
        input_ids = drawn[:, None]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
    return outputs
