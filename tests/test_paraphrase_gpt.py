"""The answer's heads and losses against the language model and transformers."""

import pytest
import torch
from torch import nn

from config import HeadSettings, PoolingSettings
from errors import UserError
from models.paraphrase_gpt import ParaphraseGPT
from tests.helpers import GENERALIZED

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
