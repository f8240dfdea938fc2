"""Beam search: the most probable continuations, K kept at every step (for text: Sutskever et al. 2014, section 3.2).

A continuation of n tokens, the end included, scores  log p / n^a:  a is the length penalty (Wu et al. 2016 divide by
another function of n); 0 is the plain probability, larger favours longer texts. Sequences and scores are those of
transformers.

Of 2K candidates the K best are looked at for ends and the K best that do not end go on, so that ends never starve the
search. The cache is filled once for every prompt; afterwards a beam keeps its row where it can, and only the rows of
beams that came from elsewhere are copied, from the end of the prompt on.

Legend: K beams, V vocabulary, n new tokens.
"""

from dataclasses import dataclass, field

import torch

from config import UserError
from datasets.batching import pad
from decoding.filters import filter_logits, needs_history
from decoding.generation import next_token_logits
from modules.kv_cache import KVCache


@dataclass
class Search:
    """One prompt's search: `running` and `finished` are (score, new ids) pairs, best first; `rows` the cache's rows."""

    prompt: list
    rows: list
    running: list = field(default_factory=lambda: [(0.0, [])])
    finished: list = field(default_factory=list)
    closed: bool = False


@torch.no_grad()
def beam_search(gpt2, prompts, settings, beams, length_penalty=1.0, early_stopping=False, end_of_text=None, stop=None):
    """The `beams` best continuations of every prompt: lists of (new ids, score), best first, end-of-text left out.

    prompts: lists of token ids. settings: DecodingSettings (max_new_tokens, and the filters that look at the text so
    far; temperature and top-p mean nothing here). early_stopping: True ends a prompt's search with its K-th finished
    text; False when the best running beam, divided by its length now, is no better than the worst finished one; "never"
    only when it could not become better. stop(index, ids): as in `generate`. Raises UserError if a prompt fills the
    context.
    """
    longest, context = max(map(len, prompts)), gpt2.context
    if longest >= context:
        raise UserError(f"a prompt of {longest} tokens leaves no room in the model's context of {context}: shorten it")
    limit = min(settings.max_new_tokens, context - longest)
    device = gpt2.word_embedding.weight.device
    virtual = gpt2.config.max_position_embeddings - context
    input_ids, mask = (x.to(device) for x in pad(prompts, pad_id=0, side="left"))
    cache = KVCache(gpt2.config, len(prompts), longest + limit + virtual, gpt2.dtype, device)
    searches = [Search(prompt, [row]) for row, prompt in enumerate(prompts)]
    logits = next_token_logits(gpt2, gpt2(input_ids, mask, cache)["last_hidden_state"][:, -1])
    prompt_end = cache.length
    first_rows = torch.arange(len(prompts), device=device).repeat_interleave(beams)
    cache.select(first_rows)
    mask = mask[first_rows]

    for length in range(1, limit + 1):
        candidates = [_candidates(search, logits, settings, beams) for search in searches]
        moves = []
        for index, (search, options) in enumerate(zip(searches, candidates, strict=True)):
            slots = range(index * beams, (index + 1) * beams)
            if not search.closed:
                _advance(
                    search, options, index, length, limit, beams, length_penalty, early_stopping, end_of_text, stop
                )
                moves += _assign_rows(search, slots, first=length == 1)
        if length == limit or all(search.closed for search in searches):
            break
        if moves:
            cache.move(*(torch.tensor(part, device=device) for part in zip(*moves, strict=True)), prompt_end)
        tokens = torch.zeros(len(prompts) * beams, 1, dtype=torch.long, device=device)
        for search in searches:
            for row, (_, ids) in zip(search.rows, search.running, strict=True):
                tokens[row] = ids[-1]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = next_token_logits(gpt2, gpt2(tokens, mask, cache)["last_hidden_state"][:, -1])
    return [[(ids, score) for score, ids in search.finished] for search in searches]


def _candidates(search, logits, settings, beams):
    """The 2K best next steps of a prompt: [(score, place of the beam, token)], best first."""
    if search.closed:
        return []
    log_probabilities = logits[search.rows].float().log_softmax(dim=-1)
    if needs_history(settings):
        histories = [search.prompt + ids for _, ids in search.running]
        log_probabilities = filter_logits(log_probabilities, histories, settings)
    scores = torch.tensor([score for score, _ in search.running], device=logits.device)
    totals = (log_probabilities + scores[:, None]).flatten()
    best = totals.topk(min(2 * beams, len(totals)))
    size = logits.size(-1)
    return [
        (score, place // size, place % size)
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if score > float("-inf")
    ]


def _advance(search, options, index, length, limit, beams, length_penalty, early_stopping, end_of_text, stop):
    """Sort a prompt's candidates into finished and running ones; `running` then has their parents' rows in `rows`."""
    full, running, parents = len(search.finished) == beams, [], []
    for place, (score, parent, token) in enumerate(options):
        ids = [*search.running[parent][1], token]
        if token == end_of_text or length == limit or (stop is not None and stop(index, ids)):
            if place < beams and not (full and early_stopping is True):
                text = ids[:-1] if token == end_of_text else ids
                search.finished.append((score / length**length_penalty, text))
        elif len(running) < beams:
            running.append((score, ids))
            parents.append(search.rows[parent])
    search.finished = sorted(search.finished, key=lambda pair: -pair[0])[:beams]
    search.running, search.rows = running, parents
    if not running:
        search.closed = True
    elif len(search.finished) == beams:
        hoped_for = limit if early_stopping == "never" and length_penalty > 0 else length
        could_be = running[0][0] / hoped_for**length_penalty
        search.closed = early_stopping is True or not could_be > search.finished[-1][0]


def _assign_rows(search, slots, first):
    """Give every running beam a row of the cache: its parent's, for one child each, or a free one. Returns the moves.

    first: all rows of the prompt are still alike, so that nothing need be moved.
    """
    if first:
        search.rows = list(slots)[: len(search.running)]
        return []
    parents, rows, moves = search.rows, [], []
    free = [slot for slot in slots if slot not in parents]
    for place, parent in enumerate(parents):
        if parent not in parents[:place]:
            rows.append(parent)
        else:
            rows.append(free.pop())
            moves.append((parent, rows[-1]))
    search.rows = rows
    return moves
