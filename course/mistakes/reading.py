"""Common mistakes in pooling, the key-value cache, sampling and filters."""

import torch

from course.mistakes import mistake
from modules.kv_cache import LayerKVCache
from modules.pooling import SimplePooling

# --- pooling ----------------------------------------------------------------------------------------------------------

LAST, SIMPLE = "modules.pooling:last_token", "modules.pooling:SimplePooling.forward"
SOFTMAX = "modules.pooling:masked_softmax"


@mistake("pooling", "you take position -1: with padding on the right that is padding, not the last real token", LAST)
def final_position(hidden_states, attention_mask=None):
    return hidden_states[:, -1]


@mistake(
    "pooling",
    "you count the real tokens and take that position: with padding on the left the last real token is further right",
    LAST,
)
def counted_position(hidden_states, attention_mask=None):
    if attention_mask is None:
        return hidden_states[:, -1]
    last = attention_mask[:, -hidden_states.size(1) :].sum(dim=1).long() - 1
    return hidden_states[torch.arange(len(last)), last]


def simple(message, mean=None, most=None):
    """Register a wrong mean or maximum: (hidden states, real (B, T, 1)) -> (B, D)."""
    right = SimplePooling.forward

    def wrong(self, hidden_states, mask):
        chosen = {"mean": mean, "max": most}.get(self.kind)
        if chosen is None:
            return right(self, hidden_states, mask)
        return chosen(hidden_states, mask.bool().unsqueeze(-1)), 0.0

    mistake("pooling", message, SIMPLE)(wrong)


simple("the mean is over padding, too: leave it out of the sum and of the number", lambda h, real: h.mean(dim=1))
simple("the mean divides by all positions: divide by the number of real tokens", lambda h, real: (h * real).mean(dim=1))
simple("the maximum takes padding, too", most=lambda h, real: h.amax(dim=1))
simple("padding counts as 0 in the maximum: 0 wins where all is negative", most=lambda h, real: (h * real).amax(dim=1))


@mistake("pooling", "padding gets a weight: its scores are set to 0 before the softmax, and e^0 is 1", SOFTMAX)
def zeroed_before(scores, mask):
    return (scores * mask.view(*mask.shape, *[1] * (scores.dim() - 2))).softmax(dim=1)


@mistake("pooling", "padding is struck after the softmax, so the weights no longer add up to 1", SOFTMAX)
def zeroed_after(scores, mask):
    return scores.softmax(dim=1) * mask.view(*mask.shape, *[1] * (scores.dim() - 2))


@mistake("pooling", "the softmax is over the last axis, it must be over time", SOFTMAX)
def wrong_axis(scores, mask):
    mask = mask.view(*mask.shape, *[1] * (scores.dim() - 2))
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)


# --- cache ------------------------------------------------------------------------------------------------------------


def cache(message, given=None, moves_on=True, keeps=True):
    """Register a wrong cache. given: (keys, values, start, end) -> what update returns."""
    right = LayerKVCache.update

    def wrong(self, key, value):
        start = self.length
        if not keeps and self.keys is not None:
            self.keys, self.values = self.keys.clone(), self.values.clone()
        pair = right(self, key, value)
        end, self.length = self.length, self.length if moves_on else start
        return given(self.keys, self.values, start, end) if given else pair

    mistake("cache", message, "modules.kv_cache:LayerKVCache.update")(wrong)


cache("you return the new positions alone: return everything so far", lambda k, v, a, b: (k[:, :, a:b], v[:, :, a:b]))
cache("you return all the room, empty positions too: return what is filled", lambda k, v, a, b: (k, v))
cache("length does not move on, so each update overwrites the one before", moves_on=False)
cache("each update makes new room: write into the room that is there", keeps=False)


# --- nucleus ----------------------------------------------------------------------------------------------------------


def nucleus(message, inside, minimum=True):
    """Register a wrong nucleus. inside: (sorted probabilities, what stands before each, top_p) -> who is in."""

    def wrong(probabilities, streams, top_p, min_p=0.0):
        ordered, order = probabilities.sort(dim=-1, descending=True)
        kept = inside(ordered, ordered.cumsum(dim=-1) - ordered, top_p)
        if minimum:
            kept = kept & (ordered >= min_p * ordered[:, :1])
        kept[:, 0] = True
        weights = torch.where(kept, ordered, 0.0)
        drawn = [torch.multinomial(row, 1, generator=stream) for row, stream in zip(weights, streams, strict=True)]
        return order.gather(-1, torch.stack(drawn)).squeeze(-1)

    mistake("nucleus", message, "decoding.sampling:sample_nucleus")(wrong)


nucleus(
    "the token that crosses top_p is left out: the nucleus is the smallest set that reaches top_p",
    lambda p, before, top_p: before + p < top_p + 1e-9,
)
nucleus("tokens outside the nucleus come, too", lambda p, before, top_p: torch.ones_like(p).bool())
nucleus("min_p is left out", lambda p, before, top_p: before < top_p, minimum=False)


# --- repetition -------------------------------------------------------------------------------------------------------

PENALTY = "decoding.filters:penalise_repetition"


@mistake("repetition", "negative logits are divided, too, which makes their tokens more probable", PENALTY)
def always_divided(logits, history, penalty):
    logits[sorted(set(history))] /= penalty


@mistake("repetition", "a token that occurred several times is penalised several times: once is enough", PENALTY)
def each_time(logits, history, penalty):
    for token in history:
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty


@mistake("repetition", "the logits are not changed in place", PENALTY)
def not_in_place(logits, history, penalty):
    return logits / penalty
