"""The layers of the original Transformer (Vaswani et al. 2017, section 3): encoder, decoder, and attention across.

    x = LN(x + dropout(attention_dense(attention(x))))         encoder: every real position sees every real position
    x = LN(x + dropout(attention_dense(attention(x, m))))      decoder only: from x to the encoder's output m
    x = LN(x + dropout(out_dense(relu(interm_dense(x)))))

LayerNorm comes after the sum (post-LayerNorm), where GPT-2 has it before the sublayer. Attention is that of
modules/attention.py: given a mask, it is the mask alone that says who sees whom.

Legend: B batch, T target positions, S source positions, D width, H heads, d width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modules.attention import CausalSelfAttention
from modules.dropout import Dropout


class CrossAttention(CausalSelfAttention):
    """Queries from one sequence, keys and values from another, the same for every target position."""

    def keys_and_values(self, memory):
        """(B, S, D) -> (B, H, S, d) twice: computed once for a sentence, however many tokens are written."""
        return self._split_heads(self.key(memory)), self._split_heads(self.value(memory))

    def forward(self, hidden_states, keys_and_values, mask):
        """(B, T, D) -> (B, T, D), before the output projection. mask: boolean, broadcastable to (B, H, T, S)."""
        query = self._split_heads(self.query(hidden_states))
        return self.attend(query, *keys_and_values, mask).transpose(1, 2).flatten(2)


class _Sublayer(nn.Module):
    """What every sublayer has around it: an output projection, dropout, the sum, the LayerNorm."""

    def __init__(self, config, inner_width):
        super().__init__()
        self.dense = nn.Linear(inner_width, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x, inner):
        return self.layer_norm(x + self.dropout(self.dense(inner)))


class EncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attention = CausalSelfAttention(config)
        self.attention_dense = _Sublayer(config, config.hidden_size)
        self.interm_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.out_dense = _Sublayer(config, config.intermediate_size)

    def forward(self, x, mask):
        """(B, S, D) -> (B, S, D). mask: boolean (B, 1, 1, S), True at real tokens."""
        x = self.attention_dense(x, self.self_attention(x, mask))
        return self.out_dense(x, F.relu(self.interm_dense(x)))


class DecoderLayer(EncoderLayer):
    def __init__(self, config):
        super().__init__(config)
        self.cross_attention = CrossAttention(config)
        self.cross_dense = _Sublayer(config, config.hidden_size)

    def forward(self, x, source, source_mask, mask=None, cache=None):
        """(B, T, D) -> (B, T, D). source: keys and values of the cross attention, from its `keys_and_values`.

        mask, cache: of the causal self attention, as in CausalSelfAttention.
        """
        x = self.attention_dense(x, self.self_attention(x, mask, cache))
        x = self.cross_dense(x, self.cross_attention(x, source, source_mask))
        return self.out_dense(x, F.relu(self.interm_dense(x)))


def sinusoids(positions, width):
    """(..., ) -> (..., width): sin and cos of the position at wavelengths from 2 pi to 10000 * 2 pi (section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10000.0) / width))
    angles = positions[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
