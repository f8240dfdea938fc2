"""Our dropout against what dropout must be: who is zeroed, by how much the rest grows, and when nothing happens."""

import pytest
import torch

from config import GPT2Config
from modules.attention import CausalSelfAttention, reference_attention
from modules.dropout import Dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_a_share_p_is_zeroed_independently_and_the_rest_scaled(p):
    rows, columns = 400, 1001  # an odd number of elements: the last random word is used in part
    out = Dropout(p).train()(torch.ones(rows, columns))
    zero = out == 0
    assert abs(zero.double().mean().item() - p) < 4 * (p * (1 - p) / zero.numel()) ** 0.5
    torch.testing.assert_close(out[~zero], torch.full_like(out[~zero], 1 / (1 - p)), atol=0, rtol=1e-3)
    for axis, length in ((0, rows), (1, columns)):  # no row, column or place within the random words is favoured
        deviation = (p * (1 - p) / length) ** 0.5
        assert (zero.double().mean(axis) - p).abs().max() < 5 * deviation
    for place in range(4):
        assert abs(zero.flatten()[place::4].double().mean().item() - p) < 5 * (p * (1 - p) / (zero.numel() / 4)) ** 0.5
    neighbours = (zero[:, 1:] & zero[:, :-1]).double().mean().item()
    assert abs(neighbours - p * p) < 5 * (p * p / zero.numel()) ** 0.5


def test_the_gradient_is_the_same_mask():
    x = torch.randn(50, 40, requires_grad=True)
    out = Dropout(0.3).train()(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 1 / 0.7), atol=1e-3, rtol=1e-3)


def test_eval_p_0_and_p_1_and_the_seed():
    x = torch.randn(30, 7)
    assert Dropout(0.5).eval()(x) is x or torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert not Dropout(1.0).train()(x).any()
    draws = []
    for _ in range(2):
        torch.manual_seed(4)
        draws.append(Dropout(0.5).train()(x))
    assert torch.equal(*draws) and not torch.equal(draws[0], Dropout(0.5).train()(x))
    assert Dropout(0.5).train()(x.bfloat16()).dtype == torch.bfloat16


def test_attention_dropout_drops_weights_and_is_off_in_eval():
    attention = CausalSelfAttention(GPT2Config(hidden_size=32, num_attention_heads=4, attention_probs_dropout_prob=0.5))
    query, key, value = torch.randn(3, 2, 4, 11, 8)
    expected = reference_attention(query, key, value)
    torch.testing.assert_close(attention.eval().attend(query, key, value), expected, atol=1e-6, rtol=1e-6)
    attention.train()
    mean = torch.stack([attention.attend(query, key, value) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.1, rtol=0)  # unbiased: standard errors here are about 0.02
    first = attention.attend(query, key, value)[:, :, 0]  # sees itself only: its one weight is 1, dropped or doubled
    dropped = (first == 0).all(-1)
    torch.testing.assert_close(first, torch.where(dropped[..., None], 0.0, 2 * value[:, :, 0]), atol=1e-3, rtol=1e-3)
