"""Causal self-attention (Vaswani et al. 2017, section 3.2; GPT-2: Radford et al. 2019).

    attend(q, k, v) = softmax(q k^T / sqrt(d)) v

Query, key and value are three linears of their own (GPT-2's released weights fuse them), so that a tuning method can
take any one of them.

Legend: B batch, T new positions, S positions attended to (cached ones included), H heads, d width of a head, D = H d.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modules.dropout import Dropout


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv_adapter = None  # slot: called as kv_adapter(self, query, key, value, mask), calls self.attend itself

    def forward(self, hidden_states, mask=None, cache=None):
        """(B, T, D) -> (B, T, D), before the output projection.

        mask: boolean, broadcastable to (B, H, T, S), True where a query may look; None means plain causal.
        cache: this layer's LayerKVCache; the new keys and values are written to it.
        """
        query, key, value = (self._split_heads(f(hidden_states)) for f in (self.query, self.key, self.value))
        if cache is not None:
            key, value = cache.update(key, value)
        if self.kv_adapter is None:
            attended = self.attend(query, key, value, mask)
        else:
            attended = self.kv_adapter(self, query, key, value, mask)
        return attended.transpose(1, 2).flatten(2)  # (B, H, T, d) -> (B, T, D)

    def attend(self, query, key, value, mask=None):
        """(B, H, T, d), (B, H, S, d), (B, H, S, d) -> (B, H, T, d), fused. `reference_attention` says what it does.

        Without a mask the T queries are the last T of the S positions; T > 1 then needs S = T.
        """
        dropout = self.dropout.p if self.training else 0.0
        if self.training and query.device.type == "cpu" and (dropout or _slow_when_fused(query, key)):
            return reference_attention(query, key, value, mask, self.dropout)  # fused, dropout is slower still there
        causal = mask is None if query.size(-2) > 1 else False  # (`and` gives torch.compile a symbol, no bool)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)

    def _split_heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, d)


def _slow_when_fused(query, key):
    """On the CPU the fused kernel's backward pass takes, in bf16, two to ten times the time of the spelled-out one, up
    to about this length; fp16 goes the same way."""
    return query.dtype in (torch.bfloat16, torch.float16) and key.size(-2) <= 512


def reference_attention(query, key, value, mask=None, dropout=None):
    """What `attend` computes, spelled out. Tests hold one to the other."""
    if mask is None:
        queries, keys = query.size(-2), key.size(-2)
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    scores = (query / math.sqrt(query.size(-1))) @ key.transpose(-1, -2)  # (B, H, T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return (weights if dropout is None else dropout(weights)) @ value


def attention_mask_for(padding_mask, num_queries):
    """Causal AND padding: who may look at whom. (B, S), 1 at real tokens -> boolean (B, 1, T, S), or None.

    The T queries are the last T of the S positions. Every position may look at itself, so a padding position (or a
    fully padded row) averages over something and gives no NaN; nobody else ever looks at it.

    None means that plain causal attention is the same for every real token: no padding, or padding only on the right,
    where it comes after every token that could look at it.
    """
    num_keys = padding_mask.size(1)
    real = padding_mask.bool()
    padded_right_at_most = not (~real[:, :-1] & real[:, 1:]).any()
    if padded_right_at_most and num_queries == num_keys:
        return None
    if num_queries == 1 and real.all():
        return None
    query_positions = torch.arange(num_keys - num_queries, num_keys, device=real.device)[:, None]
    key_positions = torch.arange(num_keys, device=real.device)
    mask = (key_positions <= query_positions) & real[:, None, :]
    return (mask | (key_positions == query_positions))[:, None]
