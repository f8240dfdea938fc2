"""Fused attention against the reference, masks against a loop."""

import torch

from config import GPT2Config
from modules.attention import CausalSelfAttention, attention_mask_for, reference_attention
from tests.helpers import assert_close


def test_fused_attention_equals_the_reference():
    attention = CausalSelfAttention(GPT2Config(hidden_size=32, num_attention_heads=4)).eval()
    query, key, value = torch.randn(3, 2, 4, 11, 8)
    padding = torch.ones(2, 11, dtype=torch.long)
    padding[0, :4] = 0
    mask = attention_mask_for(padding, 11)
    assert_close(attention.attend(query, key, value, mask), reference_attention(query, key, value, mask), 1e-6)
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    assert_close(attention.attend(query, key, value), reference_attention(query, key, value, causal), 1e-6)


def test_without_a_mask_the_last_queries_are_the_last_positions():
    query, key, value = torch.randn(3, 2, 4, 11, 8)
    whole = reference_attention(query, key, value)
    for queries in (1, 3):
        assert_close(reference_attention(query[:, :, -queries:], key, value), whole[:, :, -queries:], 1e-6)
    attention = CausalSelfAttention(GPT2Config(hidden_size=32, num_attention_heads=4, attention_probs_dropout_prob=0.0))
    assert_close(attention.eval().attend(query[:, :, -1:], key, value), whole[:, :, -1:], 1e-6)


def test_mask_against_a_loop():
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]])
    for num_queries in (1, 3, 5):
        mask = attention_mask_for(padding, num_queries)
        for row in range(4):
            for query in range(5 - num_queries, 5):
                for key in range(5):
                    expected = key == query or (key < query and padding[row, key] == 1)
                    assert mask[row, 0, query - 5 + num_queries, key] == expected
