"""Poolings against loops over rows and tokens, and the paraphrase model's heads."""

import itertools

import pytest
import torch
from torch import nn

from config import HeadSettings, PoolingSettings
from errors import UserError
from models.paraphrase_gpt import ParaphraseGPT
from modules.pooling import make_pooling

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]])
HIDDEN = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3)) - 2  # negative: a pad's 0 must not win a max
GENERALIZED = PoolingSettings(pooling="generalized", pooling_heads=3, pooling_hidden=4)


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


# --- heads ------------------------------------------------------------------------------------------------------------

IDS = torch.arange(24).view(2, 12) * 17 % 8600
PADDING = torch.tensor([[1] * 12, [1] * 8 + [0] * 4])


def test_cloze_head_is_the_language_models_own_opinion(gpt2, hugging_face_gpt2):
    model = ParaphraseGPT(gpt2).eval()
    with torch.no_grad():
        logits = model(IDS, PADDING)
        theirs = hugging_face_gpt2(IDS, attention_mask=PADDING).logits
    expected = torch.stack([theirs[0, 11, [3919, 8505]], theirs[1, 7, [3919, 8505]]])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in gpt2.parameters())


@pytest.mark.parametrize("head, pooling", [("cloze", "last"), ("linear", "mean"), ("linear", "generalized")])
def test_vocabulary_logits_stand_at_the_two_answers(gpt2, head, pooling):
    settings = GENERALIZED if pooling == "generalized" else PoolingSettings(pooling=pooling)
    model = ParaphraseGPT(gpt2, HeadSettings(head=head), settings).eval()
    with torch.no_grad():
        two, all_of_them = model(IDS, PADDING), model(IDS, PADDING, vocabulary_logits=True)
    assert two.shape == (2, 2) and all_of_them.shape == (2, 8600)
    assert torch.equal(all_of_them[:, [3919, 8505]], two)
    assert torch.isinf(all_of_them).sum() == 2 * 8598
    assert [[3919, 8505][i] for i in two.argmax(1)] == all_of_them.argmax(1).tolist()


def test_loss_is_the_summed_cross_entropy_plus_the_penalty(gpt2):
    settings = PoolingSettings(
        pooling="generalized", pooling_heads=2, pooling_penalty="embeddings", pooling_penalty_margin=1e5
    )
    model = ParaphraseGPT(gpt2, HeadSettings(head="linear"), settings).eval()
    labels = torch.tensor([1, 0])
    loss, count = model(IDS, PADDING, labels=labels)
    _, penalty = model.pooling(gpt2(IDS, PADDING)["last_hidden_state"], PADDING)
    expected = nn.functional.cross_entropy(model(IDS, PADDING), labels) + penalty
    torch.testing.assert_close(loss / count, expected, atol=1e-4, rtol=1e-5)


def test_heads_that_cannot_be_are_refused(gpt2, tmp_path):
    with pytest.raises(UserError, match="one pooling head"):
        ParaphraseGPT(gpt2, HeadSettings(head="cloze"), GENERALIZED)
    gpt2.config.vocab_size = 5000
    with pytest.raises(UserError, match="vocabulary has 5000 tokens"):
        ParaphraseGPT(gpt2)


@torch.no_grad()
def test_the_auxiliary_language_model_loss_is_that_of_transformers(gpt2, hugging_face_gpt2):
    """lm_weight adds, for each of B rows, its share of the mean loss over all real targets."""
    input_ids, mask = torch.randint(8600, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = mask[2, 4:] = 0
    labels = torch.tensor([0, 1, 1])
    plain, _ = ParaphraseGPT(gpt2).eval()(input_ids, mask, labels)
    both, count = ParaphraseGPT(gpt2, HeadSettings(lm_weight=0.5)).eval()(input_ids, mask, labels)
    theirs = hugging_face_gpt2(input_ids, attention_mask=mask, labels=input_ids.masked_fill(mask == 0, -100)).loss
    torch.testing.assert_close(both - plain, 3 * 0.5 * theirs, atol=1e-4, rtol=1e-5)
    assert count == 3
