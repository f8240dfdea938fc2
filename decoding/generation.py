"""Generation over a key-value cache.

Every row has its own random stream, made from the seed and the row's number: a seed gives the same texts at any batch
size and in any order.

Legend: B rows in the batch, D width, V vocabulary.
"""

import torch

from config import UserError
from datasets.batching import pad
from decoding.constraint import constrain
from decoding.filters import filter_logits, needs_history
from decoding.sampling import row_streams, sample
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


def admissible(scores, histories, settings, constraint=None, states=None):
    """(B, V) logits or log-probabilities after all that depends on the text so far: the filters, then the constraint.

    histories: the rows' token ids, iterated over only if a filter wants them. states: the rows' states.
    """
    filtered = filter_logits(scores, histories, settings) if needs_history(settings) else scores
    return filtered if constraint is None else constrain(filtered, constraint, states, scores)


@torch.no_grad()
def generate(
    gpt2,
    prompts,
    settings,
    seed=0,
    end_of_text=None,
    stop=None,
    rows=None,
    progress=None,
    on_select=None,
    constraint=None,
):
    """Continue every prompt; returns the new token ids of each, a list of lists, end-of-text not included.

    prompts: lists of token ids, none empty, continued as one left-padded batch. settings: DecodingSettings.
    end_of_text: the token id that ends a text. stop(index, ids): called with a prompt's place and its new ids after
    each token; True ends the text.
    rows: numbers of the rows in the random streams, 0, 1, ... by default. progress: called with the number of new
    tokens after each step. on_select(rows): called when finished texts are dropped, with the batch rows that stay.
    constraint: what may come where (see decoding/constraint.py); its end is the text's end, too.
    Raises UserError if the longest prompt leaves no room in the model's context.
    """
    new_tokens, input_ids, mask, cache = prepare(gpt2, prompts, settings.max_new_tokens)
    device = input_ids.device
    streams = row_streams(seed, range(len(prompts)) if rows is None else rows)
    outputs = [[] for _ in prompts]
    active = list(range(len(prompts)))  # the prompt behind each row of the batch
    states = [constraint.start(index, new_tokens) if constraint is not None else None for index in active]
    finished = set()
    for step in range(new_tokens):
        hidden = gpt2(input_ids, mask, cache)["last_hidden_state"][:, -1]
        histories = (prompts[index] + outputs[index] for index in active)
        now = [states[index] if index not in finished else None for index in active]
        logits = admissible(next_token_logits(gpt2, hidden), histories, settings, constraint, now)
        drawn = sample(logits, [streams[index] for index in active], settings)
        written = 0
        for index, token in zip(active, drawn.tolist(), strict=True):
            if index in finished:
                continue
            if token != end_of_text:
                outputs[index].append(token)
                written += 1
            if constraint is not None:
                states[index] = constraint.advance(states[index], token)
            if (
                token == end_of_text
                or (stop is not None and stop(index, outputs[index]))
                or (constraint is not None and constraint.done(states[index]))
            ):
                finished.add(index)
        if progress is not None:
            progress(written)
        if len(finished) == len(prompts) or step == new_tokens - 1:
            break
        keep = [row for row, index in enumerate(active) if index not in finished]
        if 2 * len(keep) <= len(active):  # moving the cache costs time: drop finished rows when half of them are
            active = [active[row] for row in keep]
            rows_kept = torch.tensor(keep, device=device)
            cache.select(rows_kept)
            if on_select is not None:
                on_select(rows_kept)
            drawn, mask = drawn[rows_kept], mask[rows_kept]
        input_ids = drawn[:, None]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
    return outputs
