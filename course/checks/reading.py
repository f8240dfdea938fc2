"""Cases of pooling, the key-value cache, sampling and filters. Legend: B batch, T time, D width, V vocabulary."""

import torch

from course.checks import case

MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]]


def states(draw):
    """Hidden states (4, 5, 6), most of them negative: a 0 at padding must not win a maximum."""
    return draw.normal(4, 5, 6) - 2, torch.tensor(MASK)


# --- pooling ----------------------------------------------------------------------------------------------------------


@case("pooling")
def last(draw):
    """last_token is the hidden state of a row's last real token, whichever side the padding is on; it has seen the
    whole text"""
    from modules.pooling import SimplePooling, last_token

    hidden, mask = states(draw)
    longer = torch.cat([torch.tensor([[1, 1], [1, 1], [0, 0], [0, 1]]), mask], dim=1)  # with a cache's positions
    return {
        "last token": last_token(hidden, mask),
        "without a mask": last_token(hidden),
        "under a longer mask": last_token(hidden, longer),
        "pooling 'last'": SimplePooling("last")(hidden, mask)[0],
    }


@case("pooling")
def mean(draw):
    """the mean is over the real tokens alone: divide by their number"""
    from modules.pooling import SimplePooling

    return {"mean": SimplePooling("mean")(*states(draw))[0]}


@case("pooling")
def maximum(draw):
    """the maximum is over the real tokens alone, and may be negative"""
    from modules.pooling import SimplePooling

    return {"maximum": SimplePooling("max")(*states(draw))[0]}


@case("pooling")
def softmax(draw):
    """masked_softmax is over time: 0 at padding, and the real tokens' weights add up to 1; scores may have more axes"""
    from modules.pooling import masked_softmax

    hidden, mask = states(draw)
    return {
        "of (B, T)": masked_softmax(hidden[..., 0], mask.bool()),
        "of (B, T, D)": masked_softmax(hidden, mask.bool()),
    }


@case("pooling")
def attention(draw):
    """attention pooling: the softmax over real tokens of tanh(w . h + b), then the weighted sum of the hidden states"""
    from modules.pooling import AttentionPooling

    hidden, mask = states(draw)
    pooling = draw.fill(AttentionPooling(6))
    vectors, penalty = pooling(hidden, mask)
    (weights,) = pooling.weights(hidden, mask)
    return {"weights": weights, "vectors": vectors, "penalty": float(penalty)}


@case("pooling")
def padded_row(draw):
    """a row of padding alone gives finite numbers"""
    from modules.pooling import AttentionPooling, SimplePooling

    hidden, mask = states(draw)[0], torch.zeros(4, 5, dtype=torch.long)
    kinds = [SimplePooling("mean"), SimplePooling("max"), AttentionPooling(6)]
    return {type(p).__name__ + getattr(p, "kind", ""): p(hidden, mask)[0].isfinite().all().item() for p in kinds}


# --- cache ------------------------------------------------------------------------------------------------------------


def updates(draw, capacity, *lengths):
    """A cache after updates of these lengths, what was put in, and what each gave back."""
    from modules.kv_cache import LayerKVCache

    cache, pieces = LayerKVCache(capacity), [(draw.normal(2, 3, n, 4), draw.normal(2, 3, n, 4)) for n in lengths]
    return cache, pieces, [tuple(part.clone() for part in cache.update(*piece)) for piece in pieces]


@case("cache")
def grows(draw):
    """each update returns all keys and all values so far, (B, H, S, d), and `length` counts them"""
    cache, _, given = updates(draw, 7, 3, 1, 2)
    found = {
        f"{kind} after update {n}": pair[i]
        for n, pair in enumerate(given, 1)
        for i, kind in enumerate(("keys", "values"))
    }
    return found | {"length": cache.length}


@case("cache")
def keeps_its_place(draw):
    """room for `capacity` positions is made once, (B, H, capacity, d); later updates write into it"""
    cache, _, _ = updates(draw, 7, 3)
    before = cache.keys
    key, _ = cache.update(draw.normal(2, 3, 1, 4), draw.normal(2, 3, 1, 4))
    return {
        "room": torch.tensor(cache.keys.shape),
        "the same tensor": cache.keys is before,
        "a view of it": key.data_ptr() == before.data_ptr(),
    }


@case("cache")
def overflow(draw):
    """more positions than `capacity` are a ValueError, exactly as many are not"""
    cache, _, _ = updates(draw, 4, 3, 1)
    try:
        cache.update(draw.normal(2, 3, 1, 4), draw.normal(2, 3, 1, 4))
    except ValueError:
        return {"refused": True, "length": cache.length}
    return {"refused": False, "length": cache.length}


# --- nucleus ----------------------------------------------------------------------------------------------------------

DRAWS = 3000
NUCLEUS = [0.4, 0.25, 0.15, 0.1, 0.06, 0.04]


def shares(draw, top_p, min_p=0.0):
    """How often each of six tokens comes in 3,000 draws, and which come at all; the tokens stand in a drawn order."""
    from decoding.sampling import row_streams, sample_nucleus

    probabilities = torch.tensor(NUCLEUS)[torch.randperm(6, generator=draw.random)]
    streams = row_streams(int(draw.whole(10**6)), range(DRAWS))
    tokens = sample_nucleus(probabilities.repeat(DRAWS, 1), streams, top_p, min_p)
    counted = torch.bincount(tokens, minlength=6)
    return {"which tokens come": counted > 0, "how often": counted / DRAWS}


@case("nucleus", tolerance=0.05)
def crossing(draw):
    """top_p = 0.75: tokens of 0.4, 0.25 and 0.15, for the one that crosses top_p is the last of the nucleus; they come
    as often as their probabilities, renormalised, say"""
    return shares(draw, 0.75)


@case("nucleus", tolerance=0.05)
def everything(draw):
    """top_p = 1: every token can come"""
    return shares(draw, 1.0)


@case("nucleus", tolerance=0.05)
def most_probable(draw):
    """top_p = 0.1, less than the most probable token has: it alone comes, the nucleus is never empty"""
    return shares(draw, 0.1)


@case("nucleus", tolerance=0.05)
def min_p(draw):
    """min_p = 0.5: of the nucleus only tokens at least half as probable as the most probable one"""
    return shares(draw, 0.99, 0.5)


@case("nucleus")
def own_streams(draw):
    """every row draws from its own stream: alone or in a batch, a row gets the same token"""
    from decoding.sampling import row_streams, sample_nucleus

    probabilities, seed = draw.normal(8, 30).softmax(dim=-1), int(draw.whole(10**6))
    batch = sample_nucleus(probabilities, row_streams(seed, range(8)), 0.9)
    alone = [sample_nucleus(probabilities[i : i + 1], row_streams(seed, [i]), 0.9) for i in range(8)]
    return {"the same tokens": torch.equal(batch, torch.cat(alone)), "number of tokens": len(batch)}


# --- repetition -------------------------------------------------------------------------------------------------------


@case("repetition")
def penalty(draw):
    """logits of tokens that occurred: divided by the penalty where positive, multiplied where negative, once each; in
    place"""
    from decoding.filters import penalise_repetition

    logits = draw.normal(12, scale=3)
    penalise_repetition(logits, [3, 5, 3, 3, 7, 0, 9], 1.5)
    return {"logits": logits}


@case("repetition")
def ngrams(draw):
    """repeating_tokens: what followed each earlier occurrence of the last n - 1 tokens; for n = 1 all that occurred"""
    from decoding.filters import repeating_tokens

    history, found = [4, 5, 6, 4, 5, 7, 5, 4, 5], {}
    for n, tokens in ((1, history), (2, history), (3, history), (3, [4, 5]), (4, [1])):
        banned = torch.zeros(8, dtype=torch.bool)
        banned[list(repeating_tokens(tokens, n))] = True
        found[f"n = {n} after {len(tokens)} tokens"] = banned
    return found
