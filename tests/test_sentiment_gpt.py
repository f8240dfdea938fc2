"""The sentiment head against a few lines of torch, the frozen GPT-2, every pooling, and the course's evaluation."""

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy

from config import PoolingSettings, SentimentHeadSettings
from datasets import LengthGroupedBatches, SentimentDataset, SentimentTestDataset
from errors import Diverged
from evaluation import bag_of_words, model_eval, model_test_eval
from models.sentiment_gpt import SentimentGPT
from optimizer import AdamW, parameter_groups
from tests.helpers import GENERALIZED, assert_close

IDS = torch.arange(24).view(3, 8) * 31 % 8600
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 8])
LABELS = torch.tensor([4, 0, 2])
POOLINGS = [*(PoolingSettings(pooling=name) for name in ("last", "mean", "max", "attention")), GENERALIZED]


def test_logits_and_loss_are_the_last_tokens(gpt2, hugging_face_gpt2):
    """Oracle: transformers' hidden state at each row's last real token, alone in its batch."""
    model = SentimentGPT(gpt2, 5).eval()
    hidden = [
        hugging_face_gpt2.transformer(row[:length].unsqueeze(0)).last_hidden_state[0, -1]
        for row, length in zip(IDS, MASK.sum(1), strict=True)
    ]
    expected = torch.stack(hidden) @ model.classifier.weight.T + model.classifier.bias
    logits = model(IDS, MASK)
    assert_close(logits, expected, 1e-5)
    loss, count = model(IDS, MASK, labels=LABELS)
    assert count == 3
    assert_close(loss, cross_entropy(expected, LABELS, reduction="sum"), 1e-5)


def test_dropout_is_of_the_vector_alone_where_gpt2_is_frozen(gpt2):
    model = SentimentGPT(gpt2.requires_grad_(False), 5, SentimentHeadSettings(hidden_dropout_prob=0.5)).train()
    assert not model.gpt.training and model.dropout.training and model.classifier.training
    first, second = (model.pool(IDS, MASK)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(3)
    logits = model(IDS, MASK)
    torch.manual_seed(3)
    assert torch.equal(logits, model.classifier(model.dropout(first)))
    torch.manual_seed(3)
    assert torch.equal(logits, model(IDS, MASK, vectors=first))


@pytest.mark.parametrize("pooling", POOLINGS, ids=lambda p: p.pooling)
@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_gets_no_gradient_and_stays_bit_identical(gpt2, pooling, frozen):
    model = SentimentGPT(gpt2.requires_grad_(not frozen), 5, pooling=pooling).train()
    assert model.has_fixed_vectors == (frozen and pooling.pooling in ("last", "mean", "max"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    vectors, _ = model.pool(IDS, MASK)
    assert vectors.requires_grad == (not model.has_fixed_vectors)
    optimizer = AdamW(parameter_groups(model, 0.1), lr=0.01)
    for _ in range(2):
        loss, count = model(IDS, MASK, labels=LABELS)
        (loss / count).backward()
        assert all((p.grad is None) == (frozen and name.startswith("gpt.")) for name, p in model.named_parameters())
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):  # its gradient is zero: softmax does not see it
            assert torch.equal(parameter, before[name]) == (frozen and name.startswith("gpt.")), name


def test_a_frozen_gpt2_builds_no_graph(gpt2):
    """No layer keeps what a backward pass would need."""
    kept = []
    model = SentimentGPT(gpt2.requires_grad_(False), 5).train()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        model(IDS, MASK, labels=LABELS)[0].backward()
    assert kept and max(kept) <= 5 * 32  # the vectors and the linear layer, no hidden states of all positions


class FixedLogits(torch.nn.Module):
    """Logits by the first token of a row."""

    def forward(self, input_ids, attention_mask):
        return torch.nn.functional.one_hot(input_ids[:, 0] % 5, 5).float()


def test_the_courses_evaluation_equals_scikit_learn(tokenizer):
    rows = [(chr(97 + n % 23) * (1 + n % 7), n * 7 % 5, f"id{n}") for n in range(40)]
    loader = LengthGroupedBatches(SentimentDataset(rows, tokenizer), 6)
    accuracy, f1, predictions, truths, sentences, ids = model_eval(loader, FixedLogits(), "cpu")
    by_id = {row[2]: row for row in rows}
    assert sorted(ids) == sorted(by_id)
    assert [by_id[i][0] for i in ids] == sentences and [by_id[i][1] for i in ids] == truths
    assert predictions == [tokenizer.encode(text).ids[0] % 5 for text in sentences]
    assert accuracy == pytest.approx(accuracy_score(truths, predictions), abs=1e-12)
    assert f1 == pytest.approx(f1_score(truths, predictions, average="macro", zero_division=0), abs=1e-12)
    test = LengthGroupedBatches(SentimentTestDataset([(row[0], row[2]) for row in rows], tokenizer), 6)
    assert model_test_eval(test, FixedLogits(), "cpu") == (predictions, sentences, ids)


def test_no_class_is_made_of_numbers_that_are_none(tokenizer, gpt2):
    model = SentimentGPT(gpt2, 5)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    loader = LengthGroupedBatches(SentimentTestDataset([("abc", "x")], tokenizer), 6)
    with pytest.raises(Diverged, match="not finite for 1 rows, first x"):
        model_test_eval(loader, model, "cpu")


def test_a_bag_of_words_knows_words_and_no_order():
    training = [("a good film", 1), ("good , good", 1), ("a bad film", 0), ("bad bad", 0), ("film a", 0), ("a film", 1)]
    assert bag_of_words(training, ["it was good", "it was bad", "good it was", "it was bad !"]) == [1, 0, 1, 0]
    assert bag_of_words([("a", 3), ("b", 3)], ["c", "d"]) == [3, 3]
