"""GPT-2 against transformers: logits, padding, positions, sizes."""

import pytest
import torch

from config import MODEL_SIZES, GPT2Config
from errors import UserError
from models.gpt2 import GPT2Model
from tests.helpers import assert_close, hugging_face_logits
from tests.tiny import make_hugging_face_gpt2


def logits_of(gpt2, input_ids, attention_mask=None):
    with torch.no_grad():
        return gpt2.hidden_state_to_token(gpt2(input_ids, attention_mask)["last_hidden_state"])


def test_logits_equal_transformers(gpt2, hugging_face_gpt2):
    input_ids = torch.randint(0, 8600, (3, 50))
    assert_close(logits_of(gpt2, input_ids), hugging_face_logits(hugging_face_gpt2, input_ids), 1e-5)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_logits_equal_transformers_at_real_tokens_under_padding(gpt2, hugging_face_gpt2, side):
    input_ids = torch.randint(0, 8600, (3, 20))
    mask = torch.ones_like(input_ids)
    if side in ("left", "both"):
        mask[0, :7] = 0
    if side in ("right", "both"):
        mask[1, 13:] = 0
    ours, theirs = logits_of(gpt2, input_ids, mask), hugging_face_logits(hugging_face_gpt2, input_ids, mask)
    assert_close(ours[mask.bool()], theirs[mask.bool()], 1e-5)


def test_padding_on_either_side_changes_nothing(gpt2):
    tokens = torch.randint(0, 8600, (1, 9))
    alone = logits_of(gpt2, tokens)[0]
    for left in (0, 5, 11):
        input_ids = torch.full((2, 20), 7)
        input_ids[0, left : left + 9] = tokens[0]
        mask = torch.zeros_like(input_ids)
        mask[0, left : left + 9], mask[1] = 1, 1
        assert_close(logits_of(gpt2, input_ids, mask)[0, left : left + 9], alone, 1e-5)
        with torch.no_grad():
            last = gpt2.hidden_state_to_token(gpt2(input_ids, mask)["last_token"])[0]
        assert_close(last, alone[-1], 1e-5)


def test_a_fully_padded_row_gives_no_nan(gpt2):
    input_ids = torch.randint(0, 8600, (3, 6))
    for mask in (torch.zeros(3, 6), torch.tensor([[0] * 6, [1] * 6, [0, 0, 1, 1, 1, 1]])):
        assert torch.isfinite(logits_of(gpt2, input_ids, mask.long())).all()
    gpt2.train()
    out = gpt2(input_ids, torch.tensor([[0] * 6, [1] * 6, [0, 0, 1, 1, 1, 1]]))["last_hidden_state"]
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in gpt2.parameters())


def test_position_ids_count_real_tokens_only(gpt2):
    input_ids, mask = torch.full((1, 5), 3), torch.tensor([[0, 0, 1, 1, 1]])
    expected = gpt2.word_embedding.weight[3] + gpt2.pos_embedding.weight[:3]
    assert_close(gpt2.embed(input_ids, mask)[0, 2:], expected, 0)


def test_last_token_and_tied_head(gpt2):
    out = gpt2(torch.randint(0, 8600, (2, 4)))
    assert torch.equal(out["last_token"], out["last_hidden_state"][:, -1])
    hidden = torch.randn(2, 32)
    assert_close(gpt2.hidden_state_to_token(hidden), hidden @ gpt2.word_embedding.weight.t(), 1e-6)


@pytest.mark.slow
def test_logits_equal_transformers_at_124m_size(tmp_path):
    theirs = make_hugging_face_gpt2(
        vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, initializer_range=0.02
    )
    theirs.save_pretrained(tmp_path)
    ours = GPT2Model.from_pretrained(str(tmp_path), d=768, l=12, num_heads=12).eval()
    assert sum(p.numel() for p in ours.parameters()) == 124_439_808
    input_ids = torch.randint(0, 50257, (2, 40))
    mask = torch.ones_like(input_ids)
    mask[0, :9] = 0
    difference = logits_of(ours, input_ids, mask) - hugging_face_logits(theirs, input_ids, mask)
    assert difference[mask.bool()].abs().max() < 1e-4


@pytest.mark.parametrize("size", sorted(MODEL_SIZES))
def test_released_sizes_have_the_released_number_of_parameters(size):
    released = {
        "distilgpt2": 81_912_576,
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }
    with torch.device("meta"):
        gpt2 = GPT2Model(GPT2Config.of_size(size))
    assert sum(p.numel() for p in gpt2.parameters()) == released[size]


def test_a_text_longer_than_the_context_is_refused(gpt2):
    with pytest.raises(UserError, match="257 tokens do not fit: the model's context is 256"):
        gpt2(torch.zeros(1, 257, dtype=torch.long))
