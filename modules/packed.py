"""The linears of a model that only writes: packed once, query, key and value in one, LoRA and the like folded in.

A step of writing multiplies a few rows with every weight. A plain linear then spends its time on laying the weight out
for the processor, anew at every token. Here that is done once, and one product takes the place of three. `pack` puts
these parts in the place of the plain ones; what they compute is the same up to rounding, and nothing of it can be
trained. In 8 bits (`int8`) a weight is a whole number times a scale of its row, and the input is brought to 7 bits
as it comes: reading a weight is most of the work, and a byte is a quarter of a float.

What lays weights out is not public in torch (its compiler uses it); where it is missing, the plain product serves.
Tests hold one to the other. Legend: B batch, T new positions, S positions so far, H heads, d width of a head, D = H d.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from modules.attention import CausalSelfAttention
from modules.lora import TunedLinear


class PackedLinear(nn.Module):
    """y = x W^T + b. weight: (out, in), bias: (out,) or None. rows: of the inputs to come, about."""

    def __init__(self, weight, bias, rows):
        super().__init__()
        weight, self.bias = weight.detach(), None if bias is None else bias.detach().to(weight.dtype)
        self.packs = can_pack(weight, rows)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if self.packs else weight

    def forward(self, x):
        """(..., in) -> (..., out)"""
        if not self.packs:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, self.bias, "none", [], "")


def can_pack(weight, rows):
    """Whether torch can lay this weight out, and it pays: in fp32 a single row is as fast without."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and rows > 1 and torch.backends.mkldnn.is_available()


class Int8Linear(nn.Module):
    """y = s_x s_w (x / s_x) (W / s_w)^T + b, with both quotients rounded: a row of W to 8 bits with its own scale, the
    whole input to 7, shifted to use all levels (products of 8 times 8 bits overflow on processors without VNNI)."""

    def __init__(self, weight, bias):
        super().__init__()
        weight = weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch will move these to another package some day
            zeros = torch.zeros(len(weight), dtype=torch.long)
            whole = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(whole, None if bias is None else bias.detach().float())

    def forward(self, x):
        """(..., in) -> (..., out)"""
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed, True).to(x.dtype)


class FusedAttention(CausalSelfAttention):
    """The same attention with one product for query, key and value. Its cache is in fp32, in half precision too: the
    fused attention of a single query is several times faster there."""

    def __init__(self, attention, qkv):
        nn.Module.__init__(self)
        self.num_heads, self.dropout, self.qkv = attention.num_heads, attention.dropout, qkv
        self.kv_adapter = None
        self.train(attention.training)

    def forward(self, hidden_states, mask=None, cache=None):
        """As CausalSelfAttention's."""
        parts = self.qkv(hidden_states)
        query, key, value = (self._split_heads(part) for part in parts.float().chunk(3, dim=-1))
        if cache is not None:
            key, value = cache.update(key, value)
        return self.attend(query, key, value, mask).transpose(1, 2).flatten(2).to(parts.dtype)


def has_int8():
    """Whether this build of torch has the products of Int8Linear."""
    return not {"x86", "fbgemm"}.isdisjoint(torch.backends.quantized.supported_engines)


def pack(gpt2, rows, int8=False):
    """Put packed parts in the place of gpt2's linears, in place and for good; returns the output head, a callable
    (..., D) -> (..., V), or None where the decoders' own is as fast. rows: texts written at a time, about."""
    embedding = gpt2.word_embedding.weight

    def packed(*linears):
        """One part for linears of the same input, what is attached to them folded in."""
        plain = [linear.merged() if isinstance(linear, TunedLinear) else linear for linear in linears]
        weight, bias = (torch.cat([getattr(linear, name).detach() for linear in plain]) for name in ("weight", "bias"))
        weight = weight.to(embedding.dtype)  # of four bits it comes in fp32
        return Int8Linear(weight, bias) if int8 else PackedLinear(weight, bias, rows)

    for layer in gpt2.gpt_layers:
        attention = layer.self_attention
        if attention.kv_adapter is None:
            layer.self_attention = FusedAttention(attention, packed(attention.query, attention.key, attention.value))
        for parent in (layer, layer.self_attention, layer.attention_adapter, layer.ffn_adapter):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, packed(child))
    if int8:
        return Int8Linear(embedding, None)
    return PackedLinear(embedding, None, rows) if can_pack(embedding, rows) else None
