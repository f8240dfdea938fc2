"""Common mistakes in the model: embeddings, attention, its mask, a layer."""

import functools
import math

import torch
import torch.nn.functional as F

from course.mistakes import MISTAKES, mistake

# --- embed ------------------------------------------------------------------------------------------------------------

EMBED = "models.gpt2:GPT2Model.embed"


def embedding(positions_of, scale=1.0):
    """A wrong `embed` with these positions: a function of (mask, past, length)."""

    def embed(self, input_ids, attention_mask=None, past=0, offset=0):
        length = past + input_ids.size(1)
        mask = torch.ones(len(input_ids), length).long() if attention_mask is None else attention_mask.long()
        positions = positions_of(mask, past, length) + offset
        return self.word_embedding(input_ids) * scale + self.pos_embedding(positions)

    return embed


def counted(mask, past, length):
    return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]


for message, positions_of, scale in (
    (
        "with padding on the left your positions count the padding, too: the first real token has position 0",
        lambda mask, past, length: torch.arange(past, length).expand(len(mask), -1),
        1.0,
    ),
    ("your positions begin at 1, GPT-2's begin at 0", lambda m, past, n: m.cumsum(dim=1)[:, past:], 1.0),
    ("your positions begin anew after the earlier tokens", lambda m, past, n: counted(m[:, past:], 0, n), 1.0),
    ("your word embeddings are scaled by sqrt(D): the Transformer of 2017 does so, GPT-2 does not", counted, 8**0.5),
):
    mistake("embed", message, EMBED)(embedding(positions_of, scale))


@mistake("embed", "the offset is left out", EMBED)
def without_offset(self, input_ids, attention_mask=None, past=0, offset=0):
    return embedding(counted)(self, input_ids, attention_mask, past)


# --- attention --------------------------------------------------------------------------------------------------------

REFERENCE, ATTEND = "modules.attention:reference_attention", "modules.attention:CausalSelfAttention.attend"


def attention(message, scale=lambda q: q.size(-1) ** -0.5, weigh=None, dropout_on_output=False, causal="last"):
    """Register a wrong attention. weigh: (scores, mask) -> weights."""

    def wrong(query, key, value, mask=None, dropout=None):
        if mask is None:
            mask = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool)
            mask = {"last": mask.tril(key.size(-2) - query.size(-2)), "first": mask.tril(), "none": mask}[causal]
        scores = query @ key.transpose(-1, -2) * scale(query)
        weights = weigh(scores, mask) if weigh else scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        dropout = dropout or (lambda weights: weights)
        return dropout(weights @ value) if dropout_on_output else dropout(weights) @ value

    MISTAKES.setdefault("attention", []).append((message, {REFERENCE: wrong, ATTEND: lambda self, *qkv: wrong(*qkv)}))


attention("the scores are not scaled by sqrt(d), the root of a head's width", lambda q: 1.0)
attention("the scores are divided by d, not by its root", lambda q: 1 / q.size(-1))
attention("the scores are scaled by the root of the model's width, not of a head's", lambda q: 12**-0.5)
attention(
    "the mask comes after the softmax, so the weights of a row no longer add up to 1: it belongs before",
    weigh=lambda scores, mask: scores.softmax(dim=-1) * mask,
)
attention(
    "hidden scores are set to 0 before the softmax, and e^0 is a weight: they must get none",
    weigh=lambda scores, mask: (scores * mask).softmax(dim=-1),
)
attention(
    "the mask is taken the wrong way round: True is where a query may look",
    weigh=lambda scores, mask: scores.masked_fill(mask, -math.inf).softmax(dim=-1).nan_to_num(),
)
attention(
    "the softmax runs over the queries, not over the keys",
    weigh=lambda scores, mask: scores.masked_fill(~mask, -math.inf).softmax(dim=-2).nan_to_num(),
)
attention("without a mask every position sees the later ones: it must be causal", causal="none")
attention(
    "with fewer queries than keys the causal mask is in the wrong corner: queries are the last ones", causal="first"
)
attention("dropout is on the output, it belongs on the weights", dropout_on_output=True)


# --- mask -------------------------------------------------------------------------------------------------------------

MASK = "modules.attention:attention_mask_for"


@mistake("mask", "padding can be looked at: your mask is causal and nothing else", MASK)
def causal_only(padding_mask, num_queries):
    keys = padding_mask.size(1)
    mask = torch.ones(num_queries, keys, dtype=torch.bool).tril(keys - num_queries)
    return mask.expand(len(padding_mask), 1, -1, -1)


NOT_CAUSAL = "later positions can be looked at: the causal half is missing"


@mistake("mask", NOT_CAUSAL, MASK)
def padding_only(padding_mask, num_queries):
    return padding_mask.bool()[:, None, None, :].expand(-1, 1, num_queries, -1)


@mistake("mask", NOT_CAUSAL, MASK)
def padding_and_self(padding_mask, num_queries):
    keys = padding_mask.size(1)
    return padding_only(padding_mask, num_queries) | torch.eye(keys, dtype=torch.bool)[keys - num_queries :]


@mistake("mask", "a row at padding has no True, so its softmax is NaN: let every position look at itself", MASK)
def nothing_at_padding(padding_mask, num_queries):
    return causal_only(padding_mask, num_queries) & padding_only(padding_mask, num_queries)


@mistake("mask", "with a cache the queries are taken for the first positions: they are the last", MASK)
def first_positions(padding_mask, num_queries):
    keys = padding_mask.size(1)
    mask = torch.ones(num_queries, keys, dtype=torch.bool).tril() & padding_mask.bool()[:, None, :]
    return (mask | torch.eye(num_queries, keys, dtype=torch.bool))[:, None]


# --- layer ------------------------------------------------------------------------------------------------------------

LAYER = "modules.gpt2_layer:GPT2Layer.forward"


TANH_GELU = functools.partial(F.gelu, approximate="tanh")


def layer(message, gelu=TANH_GELU, **changes):
    """Register a wrong layer; changes: post (LayerNorm after), residual, parallel, late_dropout, no_dropout."""

    def wrong(self, x, mask=None, cache=None):
        return _wrong_layer(self, x, mask, cache, gelu, changes)

    mistake("layer", message, LAYER)(wrong)


def _wrong_layer(self, x, mask, cache, gelu, changes):
    first, second = (self.attention_layer_norm, self.out_layer_norm)
    second = first if changes.get("one_norm") else second
    before = (lambda norm, x: x) if changes.get("post") else (lambda norm, x: norm(x))
    after = (lambda norm, x: norm(x)) if changes.get("post") else (lambda norm, x: x)

    def ending(dropout, adapter, output):
        if changes.get("no_dropout"):
            return adapter(output)
        return dropout(adapter(output)) if changes.get("late_dropout") else adapter(dropout(output))

    kept = 0 if changes.get("residual") is False else 1
    attended = self.attention_dense(self.self_attention(before(first, x), mask, cache))
    y = after(first, kept * x + ending(self.attention_dropout, self.attention_adapter, attended))
    fed = self.out_dense(gelu(self.interm_dense(before(second, x if changes.get("parallel") else y))))
    return after(second, kept * y + ending(self.out_dropout, self.ffn_adapter, fed))


layer("this is what GELU in its exact form gives: GPT-2 was trained with the tanh approximation", F.gelu)
layer("this is what ReLU gives: GPT-2 has GELU, in its tanh form", F.relu)
layer("LayerNorm comes after the sum: in GPT-2 it comes before the sublayer", post=True)
layer("the residual connection is missing: x itself must be part of the sum", residual=False)
layer("the second sublayer reads the layer's input: it must read what the first one left", parallel=True)
layer("both sublayers use the first LayerNorm: the second has its own", one_norm=True)
layer("dropout comes after the adapter: it belongs before", late_dropout=True)
layer("dropout is left out", no_dropout=True)
