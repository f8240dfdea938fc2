"""Beam search: the most probable continuations, K kept at every step (for text: Sutskever et al. 2014, section 3.2).

A continuation of n tokens, the end included, scores  log p / n^a:  a is the length penalty (Wu et al. 2016 divide by
another function of n); 0 is the plain probability, larger favours longer texts. Sequences and scores are those of
transformers.

Of 2K candidates the K best are looked at for ends and the K best that do not end go on, so that ends never starve the
search. The cache is filled once for every prompt; afterwards a beam keeps its row where it can, and only the rows of
beams that came from elsewhere are copied, from the end of the prompt on. Prompts whose search is over leave the batch.

Legend: K beams, V vocabulary, n new tokens.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from decoding.sampling import NOT_FINITE
from errors import Diverged


class Beam(NamedTuple):
    """A running continuation."""

    score: float  # the sum of its log-probabilities
    ids: list  # its new tokens
    state: Any  # its constraint's
    row: int  # of the cache


@dataclass
class Search:
    """One prompt's search. finished: (score, new ids), best first; slots: the cache rows that are its own."""

    index: int
    prompt: list
    slots: list
    running: list
    finished: list = field(default_factory=list)
    closed: bool = False


@torch.no_grad()
def beam_search(steps, prompts, rules, progress=None):
    """The K best continuations of every prompt: lists of (new ids, score), best first, end-of-text left out.

    steps: the model, as in decoding/steps.py, for these prompts. prompts: lists of token ids, what filters see of the
    text so far. rules: Rules, with settings: beams (K), length_penalty, the filters (temperature and top-p mean nothing
    here), and early_stopping: "true" ends a search with its K-th finished text; "false" when the best running beam,
    divided by its length now, is no better than the worst finished one; "never" only when it could not become better.
    What a constraint forbids is struck (or moved, where it says so), the probabilities of the rest stay what they were.
    progress: as in `generate`.
    """
    beams, limit = rules.settings.beams, steps.limit
    steps.select(torch.arange(len(prompts)).repeat_interleave(beams))
    searches = [_start(rules, index, prompt, limit) for index, prompt in enumerate(prompts)]
    active = searches  # those whose rows are in the batch
    for length in range(1, limit + 1):
        still_open = [search for search in active if not search.closed]
        moves = []
        for search, candidates in zip(still_open, _candidates(rules, still_open, steps.logits), strict=True):
            running = _advance(rules, search, candidates, last=length == limit)
            moves += _assign_rows(search, running)
            search.closed = _is_over(rules.settings, search, length, limit)
        still_open = [search for search in still_open if not search.closed]
        if progress is not None:
            progress(sum(len(search.running) for search in still_open))
        if not still_open or length == limit:
            break
        if moves:
            steps.move(*(torch.tensor(part) for part in zip(*moves, strict=True)))
        if 4 * len(still_open) <= 3 * len(active):  # dropping rows moves the cache: when a quarter of them are idle
            _drop_closed(steps, still_open, beams)
            active = still_open
        tokens = torch.zeros(len(active) * beams, dtype=torch.long)
        for search in still_open:
            for beam in search.running:
                tokens[beam.row] = beam.ids[-1]
        steps.advance(tokens)
    return [[(ids, score) for score, ids in search.finished] for search in searches]


def _start(rules, index, prompt, limit):
    beams = rules.settings.beams
    slots = list(range(index * beams, (index + 1) * beams))
    return Search(index, prompt, slots, [Beam(0.0, [], rules.start(index, limit), slots[0])])


def _drop_closed(steps, still_open, beams):
    """Drop the rows of searches that are over from the batch."""
    steps.select(torch.tensor([slot for search in still_open for slot in search.slots]))
    for place, search in enumerate(still_open):
        _renumber(search, place * beams)


def _candidates(rules, searches, logits):
    """For every search its 2K best next steps: [(score, parent, token)], best first; parent is a place in `running`."""
    everyone = [(search, beam) for search in searches for beam in search.running]
    scores = logits[[beam.row for _, beam in everyone]].float().log_softmax(dim=-1)
    histories = (search.prompt + beam.ids for search, beam in everyone)
    scores = rules.admissible(scores, histories, [beam.state for _, beam in everyone])
    scores = scores + torch.tensor([[beam.score] for _, beam in everyone], device=scores.device)
    size, found, row = scores.size(-1), [], 0
    for search in searches:
        mine = scores[row : row + len(search.running)].flatten()
        row += len(search.running)
        best = mine.topk(min(2 * rules.settings.beams, len(mine)))
        if best.values.isnan().any():  # NaN counts as the largest
            raise Diverged(NOT_FINITE)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        found.append([(score, place // size, place % size) for score, place in pairs if score > float("-inf")])
    return found


def _advance(rules, search, candidates, last):
    """Sort the candidates: ended ones into `finished`; the K best others are returned, in their parents' rows.

    last: there is no room for a further token, so that every text ends.
    """
    settings = rules.settings
    full, running = len(search.finished) == settings.beams, []
    for place, (score, parent, token) in enumerate(candidates):
        ids = [*search.running[parent].ids, token]
        state, over = rules.advance(search.index, ids, search.running[parent].state)
        if over or last:
            if place < settings.beams and not (full and settings.early_stopping == "true"):
                search.finished.append((score / len(ids) ** settings.length_penalty, rules.text(ids)))
        elif len(running) < settings.beams:
            running.append(Beam(score, ids, state, search.running[parent].row))
    search.finished = sorted(search.finished, key=lambda pair: -pair[0])[: settings.beams]
    return running


def _is_over(settings, search, length, limit):
    if not search.running:
        return True
    if len(search.finished) < settings.beams:
        return False
    hoped_for = limit if settings.early_stopping == "never" and settings.length_penalty > 0 else length
    could_be = search.running[0].score / hoped_for**settings.length_penalty
    return settings.early_stopping == "true" or not could_be > search.finished[-1][0]


def _assign_rows(search, running):
    """Give every running beam a row of the cache: its parent's, for one child each, or a free one. Returns the moves.

    After the prompt all its rows are alike, and nothing need be moved.
    """
    first = not search.running[0].ids
    free = [slot for slot in search.slots if slot not in {beam.row for beam in running}]
    taken, moves, search.running = set(), [], []
    for beam in running:
        row = beam.row if beam.row not in taken else free.pop()
        if row != beam.row and not first:
            moves.append((beam.row, row))
        taken.add(row)
        search.running.append(beam._replace(row=row))
    return moves


def _renumber(search, first_row):
    """Its rows are now those from first_row on, in the order of its slots."""
    search.running = [beam._replace(row=first_row + search.slots.index(beam.row)) for beam in search.running]
    search.slots = list(range(first_row, first_row + len(search.slots)))
