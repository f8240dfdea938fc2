"""Bottleneck adapters against the equation and the papers' places."""

import torch
import torch.nn.functional as F
from torch import nn

from config import (
    AdapterSettings,
)
from modules.adapter import BottleneckAdapter
from tuning.attach import attach


def test_adapter_against_the_equation():
    adapter = BottleneckAdapter(12, 3)
    for p in adapter.parameters():
        nn.init.normal_(p)
    h = torch.randn(2, 5, 12)
    expected = h + F.gelu(h @ adapter.down.weight.t() + adapter.down.bias) @ adapter.up.weight.t() + adapter.up.bias
    torch.testing.assert_close(adapter(h), expected, atol=1e-5, rtol=1e-5)


def test_adapters_stand_where_the_papers_put_them(gpt2):
    """A layer with adapters against the same layer written out."""
    attach(gpt2, {"adapter": AdapterSettings(adapter_size=5)})
    layer = gpt2.gpt_layers[1]
    for p in [*layer.attention_adapter.parameters(), *layer.ffn_adapter.parameters()]:
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 6, 32)
    attended = layer.attention_dense(layer.self_attention(layer.attention_layer_norm(x)))
    y = x + layer.attention_adapter(attended)
    fed = layer.out_dense(F.gelu(layer.interm_dense(layer.out_layer_norm(y)), approximate="tanh"))
    torch.testing.assert_close(layer(x), y + layer.ffn_adapter(fed), atol=1e-5, rtol=1e-5)
