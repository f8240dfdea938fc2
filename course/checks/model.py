"""Cases of the model: embeddings, attention, its mask, a layer. Legend: B batch, T time, S positions, D width."""

import torch
from torch import nn

from config import GPT2Config
from course.checks import case
from errors import UserError

CONFIG = {"vocab_size": 40, "max_position_embeddings": 12, "hidden_size": 8, "num_attention_heads": 2}
DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "embedding_dropout_prob": 0.0}
PADDING = [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]


class Scaled(nn.Module):
    """A stand-in for dropout or an adapter, of which one sees where it was."""

    def __init__(self, factor, shift=0.0):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x):
        return x * self.factor + self.shift * x.square()


# --- embed ------------------------------------------------------------------------------------------------------------


def small_gpt2(draw):
    from models.gpt2 import GPT2Model

    return draw.fill(GPT2Model(GPT2Config(num_hidden_layers=1, **CONFIG, **DROPOUTS))).eval()


@case("embed")
def plain(draw):
    """without a mask token t of a row has position t, and its embedding is word plus position, neither scaled"""
    return {"embedded": small_gpt2(draw).embed(draw.whole(40, 2, 6))}


@case("embed")
def padding(draw):
    """under padding, on either side, the first real token of a row has position 0, the next 1, and so on"""
    mask = torch.tensor(PADDING)
    return {"real tokens": small_gpt2(draw).embed(draw.whole(40, 4, 6), mask)[mask.bool()]}


@case("embed")
def past(draw):
    """with `past` earlier tokens in the cache, input_ids holds the tokens after them; the mask holds all of them"""
    gpt2, mask = small_gpt2(draw), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    ids = draw.whole(40, 2, 2)
    return {"without a mask": gpt2.embed(ids, past=4), "with a mask": gpt2.embed(ids, mask, past=4)}


@case("embed")
def offset(draw):
    """`offset` is the position of the first real token: all positions move up by it"""
    gpt2, mask, ids = small_gpt2(draw), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]), draw.whole(40, 2, 6)
    return {"without a mask": gpt2.embed(ids, offset=3), "real tokens": gpt2.embed(ids, mask, offset=3)[mask.bool()]}


@case("embed")
def too_long(draw):
    """more tokens than the context has room for, earlier ones and the offset counted, are a UserError"""
    gpt2, found = small_gpt2(draw), {}
    for name, tokens, more in (("13", 13, {}), ("2 after 11", 2, {"past": 11}), ("6 from 7 on", 6, {"offset": 7})):
        try:
            gpt2.embed(draw.whole(40, 1, tokens), **more)
            found[f"{name} refused"] = False
        except UserError:
            found[f"{name} refused"] = True
    return found | {"12 tokens": gpt2.embed(draw.whole(40, 1, 12))}


# --- attention --------------------------------------------------------------------------------------------------------


def looks(draw, queries=5, keys=5):
    """A mask (2, 1, T, S) with a True in every row."""
    mask = draw.whole(2, 2, 1, queries, keys).bool()
    return mask | torch.eye(queries, keys, dtype=torch.bool)


def attending(draw, queries=5, keys=5):
    """An attention module and q (2, 3, T, 4), k and v (2, 3, S, 4)."""
    from modules.attention import CausalSelfAttention

    config = GPT2Config(hidden_size=12, num_attention_heads=3, attention_probs_dropout_prob=0.0)
    module = CausalSelfAttention(config).eval()
    return module, (draw.normal(2, 3, queries, 4, scale=2), *(draw.normal(2, 3, keys, 4, scale=2) for _ in "kv"))


@case("attention")
def spelled_out(draw):
    """reference_attention with a mask: scores are scaled by the root of a head's width; where the mask is False the
    weight is 0, and the weights of a row add up to 1"""
    from modules.attention import reference_attention

    _, qkv = attending(draw)
    return {"attended": reference_attention(*qkv, looks(draw))}


@case("attention")
def spelled_out_causal(draw):
    """reference_attention without a mask is causal: position t looks at positions 0 to t"""
    from modules.attention import reference_attention

    return {"attended": reference_attention(*attending(draw)[1])}


@case("attention")
def spelled_out_dropout(draw):
    """reference_attention calls dropout, where it is given, on the weights (B, H, T, S)"""
    from modules.attention import reference_attention

    _, qkv = attending(draw, 4, 4)  # as many keys as a head is wide: weights and output have one shape
    kept = draw.whole(2, 2, 3, 4, 4)
    return {"attended": reference_attention(*qkv, looks(draw, 4, 4), lambda weights: weights * kept)}


@case("attention")
def masked(draw):
    """attend with a mask computes what reference_attention does with it"""
    module, qkv = attending(draw, 3, 5)
    return {"attended": module.attend(*qkv, looks(draw, 3, 5))}


@case("attention")
def causal(draw):
    """attend without a mask is causal where there are as many queries as keys"""
    module, qkv = attending(draw)
    return {"attended": module.attend(*qkv)}


@case("attention")
def one_query(draw):
    """attend without a mask and with one query: it is the last position and looks at all of them"""
    module, qkv = attending(draw, 1, 5)
    return {"attended": module.attend(*qkv)}


# --- mask -------------------------------------------------------------------------------------------------------------


def mask_for(padding_mask, queries):
    """attention_mask_for as one boolean tensor (B, 1, T, S): None stands for the causal one."""
    from modules.attention import attention_mask_for

    mask, keys = attention_mask_for(padding_mask, queries), padding_mask.size(1)
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(len(padding_mask), 1, -1, -1)
    return mask


@case("mask")
def left_padding(draw):
    """a real token looks at the real tokens up to itself; padding on the left is never looked at"""
    padding_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    mask = mask_for(padding_mask, 6)
    return {"shape": torch.tensor(mask.shape), "at real tokens": mask[:, 0][padding_mask.bool()]}


@case("mask")
def right_padding(draw):
    """with padding on the right alone None is enough: what comes later is not looked at anyway"""
    padding_mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    return {"at real tokens": mask_for(padding_mask, 6)[:, 0][padding_mask.bool()]}


@case("mask")
def cached(draw):
    """with a cache the T queries are the last T of the S positions, so the first of them looks at S - T + 1"""
    padding_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    return {"two queries": mask_for(padding_mask, 2), "one query": mask_for(padding_mask, 1)}


@case("mask")
def padded_rows(draw):
    """every position may look at itself, so that no row of the mask is without a True (its softmax would be NaN)"""
    padding_mask = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    return {"looks at something": mask_for(padding_mask, 4).any(dim=-1)}


# --- layer ------------------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """In the place of self_attention, so that a layer can be checked before attention is there."""

    def __init__(self):
        super().__init__()
        self.got = None

    def forward(self, hidden_states, mask=None, cache=None):
        self.got = (mask, cache)
        return hidden_states.cumsum(dim=1) * 0.5


def small_layer(draw):
    from modules.gpt2_layer import GPT2Layer

    layer = GPT2Layer(GPT2Config(**CONFIG, **DROPOUTS))
    layer.self_attention = StandIn()
    return draw.fill(layer).eval()


@case("layer", tolerance=1e-5)
def equation(draw):
    """x + attention_dense(self_attention(LN(x))), then that plus out_dense(gelu(interm_dense(LN(.)))): LayerNorm before
    each sublayer, GELU in its tanh form"""
    return {"output": small_layer(draw)(draw.normal(2, 5, 8))}


@case("layer")
def dropout_and_slots(draw):
    """in each sublayer: after its last linear dropout, then the adapter slot, then the sum"""
    layer = small_layer(draw)
    layer.attention_dropout, layer.out_dropout = Scaled(0.5), Scaled(0.25)
    layer.attention_adapter, layer.ffn_adapter = Scaled(0.7, 0.1), Scaled(0.3, -0.1)
    return {"output": layer(draw.normal(2, 5, 8))}


@case("layer")
def mask_and_cache(draw):
    """mask and cache are handed on to self_attention, as they come"""
    layer, mask, cache = small_layer(draw), torch.ones(1, 1, 5, 5, dtype=torch.bool), object()
    layer(draw.normal(2, 5, 8), mask, cache)
    got = layer.self_attention.got or (None, None)
    return {"mask handed on": got[0] is mask, "cache handed on": got[1] is cache}
