"""Pooling against loops."""

import itertools

import pytest
import torch

from config import PairPoolingSettings, PoolingSettings
from modules.alignment import AlignedPooling
from modules.pooling import last_token, make_pooling
from tests.helpers import GENERALIZED

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]])


HIDDEN = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3)) - 2  # negative: a pad's 0 must not win a max


def real_tokens(row):
    return HIDDEN[row][MASK[row].bool()]


def pooled(settings):
    pooling = make_pooling(6, settings)
    return pooling, *pooling(HIDDEN, MASK)


def test_last_mean_max_against_a_loop():
    for kind, reduce in (("last", lambda h: h[-1]), ("mean", lambda h: h.mean(0)), ("max", lambda h: h.max(0).values)):
        _, vectors, penalty = pooled(PoolingSettings(pooling=kind))
        expected = torch.stack([reduce(real_tokens(row)) for row in range(4)])
        torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-6)
        assert penalty == 0


def test_attention_pooling_against_a_loop():
    pooling, vectors, _ = pooled(PoolingSettings(pooling="attention"))
    for row in range(4):
        h = real_tokens(row)
        weights = torch.tanh(h @ pooling.score.weight[0] + pooling.score.bias).softmax(0)
        torch.testing.assert_close(
            vectors[row], sum(w * x for w, x in zip(weights, h, strict=True)), atol=1e-6, rtol=1e-6
        )


def test_generalized_pooling_against_a_loop():
    pooling, vectors, _ = pooled(GENERALIZED)
    assert vectors.shape == (4, 18)
    for row, head in itertools.product(range(4), range(3)):
        h, W1, W2 = real_tokens(row), pooling.W1[head], pooling.W2[head]
        scores = torch.stack([W2.weight @ torch.relu(W1.weight @ x + W1.bias) + W2.bias for x in h])  # (T, D)
        expected = torch.stack([(scores[:, d].softmax(0) * h[:, d]).sum() for d in range(6)])
        torch.testing.assert_close(vectors[row, 6 * head : 6 * head + 6], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["parameters", "attention", "embeddings"])
def test_penalties_against_a_loop(kind):
    margin, weight = 50.0, 0.25
    settings = PoolingSettings(
        pooling="generalized",
        pooling_heads=3,
        pooling_hidden=4,
        pooling_penalty=kind,
        pooling_penalty_weight=weight,
        pooling_penalty_margin=margin,
    )
    pooling, vectors, penalty = pooled(settings)
    expected = 0.0
    for i, j in itertools.combinations(range(3), 2):
        if kind == "parameters":
            expected += max(margin - (pooling.W1[i].weight - pooling.W1[j].weight).square().sum().item(), 0)
        for row in range(4):
            if kind == "embeddings":
                difference = vectors[row, 6 * i : 6 * i + 6] - vectors[row, 6 * j : 6 * j + 6]
                expected += max(margin - difference.square().sum().item(), 0) / 4
            if kind == "attention":
                h = real_tokens(row)
                A, B = (pooling.W2[k](torch.relu(pooling.W1[k](h))).softmax(0) for k in (i, j))
                expected += max(margin - (A - B).square().sum().item(), 0) / 4
    torch.testing.assert_close(penalty.item(), weight * expected, atol=1e-5, rtol=1e-5)
    penalty.backward()
    assert pooling.W1[0].weight.grad.abs().max() > 0


def test_heads_that_are_far_apart_cost_nothing():
    settings = PoolingSettings(
        pooling="generalized", pooling_heads=2, pooling_penalty="parameters", pooling_penalty_margin=1e-9
    )
    _, _, penalty = pooled(settings)
    assert penalty.item() == 0


@pytest.mark.parametrize("kind", ["last", "mean", "max", "attention", "generalized"])
def test_padding_changes_nothing_and_a_fully_padded_row_is_finite(kind):
    pooling = make_pooling(6, PoolingSettings(pooling=kind))
    spoiled = torch.where(MASK[:, :, None].bool(), HIDDEN, 1e4)
    torch.testing.assert_close(pooling(spoiled, MASK)[0], pooling(HIDDEN, MASK)[0], atol=1e-6, rtol=1e-6)
    vectors = pooling(HIDDEN.requires_grad_(), torch.zeros_like(MASK))[0]
    vectors.sum().backward()
    assert torch.isfinite(vectors).all() and torch.isfinite(HIDDEN.grad).all()
    HIDDEN.requires_grad_(False)


# --- aligned ----------------------------------------------------------------------------------------------------------

TYPES = torch.tensor([[1, 1, 0, 2, 2], [1, 2, 0, 0, 0], [0, 0, 2, 2, 2], [0, 0, 0, 0, 0]])  # one text, then none at all
WORDS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(4))


def aligned_pooling():
    torch.manual_seed(5)
    pooling = AlignedPooling(6, PairPoolingSettings(pooling="aligned", pooling_hidden=7))
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    return pooling


@torch.no_grad()
def test_aligned_pooling_against_a_loop():
    pooling = aligned_pooling()
    mask = torch.ones(4, 5, dtype=torch.long)
    vectors, penalty = pooling(HIDDEN, mask, WORDS, TYPES)
    for row in range(4):
        words, states = pooling.word_norm(WORDS[row]), pooling.state_norm(HIDDEN[row])
        tokens = [torch.cat([word, state]) for word, state in zip(words, states, strict=True)]
        aggregate = torch.zeros(14)
        for text, other in ((1, 2), (2, 1)):
            own, others = [(TYPES[row] == which).nonzero().flatten().tolist() for which in (text, other)]
            compared = []
            for i in own:
                cosines = torch.stack(
                    [torch.cosine_similarity(words[i], words[j], dim=0) for j in others] or [torch.zeros(())]
                )
                weights = (pooling.temperature * cosines).softmax(0)
                found = sum((w * tokens[j] for w, j in zip(weights, others, strict=False)), torch.zeros(12))
                features = [tokens[i], (tokens[i] - found).abs(), tokens[i] * found, (weights * cosines).sum().view(1)]
                compared.append(pooling.compare(torch.cat(features)).relu())
            if own:
                weights = torch.stack([pooling.importance(tokens[i]).squeeze() for i in own]).softmax(0)
                mean = sum(w * c for w, c in zip(weights, compared, strict=True))
                aggregate += torch.cat([mean, torch.stack(compared).max(0).values])
        expected = HIDDEN[row, -1] + pooling.answer(aggregate)
        torch.testing.assert_close(vectors[row], expected, atol=1e-5, rtol=1e-5)
    assert penalty == 0


def test_aligned_pooling_begins_as_the_last_token_and_learns_from_both():
    pooling = AlignedPooling(6, PairPoolingSettings(pooling="aligned", pooling_hidden=7))
    vectors, _ = pooling(HIDDEN, MASK, WORDS, TYPES)
    assert torch.equal(vectors, last_token(HIDDEN, MASK))
    pooling, hidden, words = aligned_pooling(), HIDDEN.clone().requires_grad_(), WORDS.clone().requires_grad_()
    pooling(hidden, MASK, words, TYPES)[0].sum().backward()
    gradients = [parameter.grad for parameter in pooling.parameters()] + [hidden.grad, words.grad]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@torch.no_grad()
def test_aligned_pooling_is_the_same_whatever_the_padding_holds():
    pooling, padded = aligned_pooling(), torch.zeros(4, 3, dtype=torch.long)
    mask = torch.ones(4, 5, dtype=torch.long)
    noise = torch.full((4, 3, 6), 1e3)
    plain, _ = pooling(HIDDEN, mask, WORDS, TYPES)
    longer = [
        torch.cat([x, pad], dim=1) for x, pad in ((HIDDEN, noise), (mask, padded), (WORDS, noise), (TYPES, padded))
    ]
    torch.testing.assert_close(pooling(*longer)[0], plain, atol=1e-5, rtol=1e-5)
