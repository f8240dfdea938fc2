"""Filters that look at the text so far: repetition penalty and no repeated n-grams. They come before the temperature.

Repetition penalty (Keskar et al. 2019, CTRL, arXiv 1909.05858, section 4.1): the logit of every token that has occurred
is divided by the penalty where it is positive and multiplied by it where it is negative.

No repeated n-gram (Paulus et al. 2017, arXiv 1705.04304, section 2.5): a token that would complete an n-gram which the
text already holds cannot come.

As in transformers the prompt counts as text. Legend: B rows in the batch, V vocabulary.
"""

import torch


def needs_history(settings):
    return settings.repetition_penalty != 1 or settings.no_repeat_ngram > 0


def filter_logits(logits, histories, settings):
    """(B, V) -> (B, V). histories: the token ids of every row so far, lists. settings: DecodingSettings."""
    logits = logits.float().clone()
    for row, history in enumerate(histories):
        if settings.repetition_penalty != 1:
            penalise_repetition(logits[row], history, settings.repetition_penalty)
        if settings.no_repeat_ngram:
            logits[row, repeating_tokens(history, settings.no_repeat_ngram)] = float("-inf")
    return logits


def penalise_repetition(logits, history, penalty):
    """In place, on the (V,) logits of one row."""
    seen = torch.tensor(sorted(set(history)), device=logits.device)
    scores = logits[seen]
    logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)


def repeating_tokens(history, n):
    """The tokens that would complete an n-gram of the history once more."""
    start = history[len(history) - n + 1 :]
    return [history[i + n - 1] for i in range(len(history) - n + 1) if history[i : i + n - 1] == start]
