"""modules/packed.py computes what the plain parts compute: with every tuning method, padding and number format."""

import copy
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sonnet_generation
from config import DecodingSettings, GPT2Config
from decoding.steps import GPT2Steps, next_token_logits
from errors import UserError
from models.gpt2 import GPT2Model
from modules import packed
from modules.packed import Int8Linear, PackedLinear, can_pack, has_int8, pack
from tests.inputs import ROOT
from tests.tuned import CHOICES, train_a_little
from tests.writing import some_prompts, write
from tuning.attach import attach, cast_for_prediction


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8600, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    return GPT2Model(config).eval()


def tune(gpt2, name):
    """Attach and train a choice of methods; "plain": none."""
    if name != "plain":
        attach(gpt2, CHOICES[name])
        train_a_little(gpt2)


def logits_of(gpt2, head, prompts, steps=4):
    """The logits of the prompts and of some steps after them: left-padded, over the cache."""
    torch.manual_seed(1)
    writing = GPT2Steps(gpt2, prompts, steps, head)
    found = [writing.logits]
    for _ in range(steps - 1):
        writing.advance(torch.randint(8600, (len(prompts),)))
        found.append(writing.logits)
    return torch.stack(found).float()


@pytest.mark.parametrize("name", ["plain", *CHOICES])
def test_packed_parts_compute_the_same(gpt2, name):
    tune(gpt2, name)
    prompts = some_prompts(3)
    expected = logits_of(gpt2, None, prompts)
    head = pack(gpt2, rows=3)
    assert not any(type(module) is nn.Linear for layer in gpt2.gpt_layers for module in layer.modules())
    torch.testing.assert_close(logits_of(gpt2, head, prompts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "lora", "qlora", "houlsby", "prefix", "llama_adapter"])
def test_in_bf16_they_are_no_further_from_fp32_than_the_plain_parts(gpt2, name):
    tune(gpt2, name)
    prompts = some_prompts(3)
    truth = logits_of(gpt2, None, prompts)
    cast_for_prediction(gpt2, torch.bfloat16)
    plain = logits_of(copy.deepcopy(gpt2), None, prompts)
    head = pack(gpt2, rows=3)
    ours = logits_of(gpt2, head, prompts)
    assert (ours - truth).abs().mean() <= 1.5 * (plain - truth).abs().mean()


def test_greedy_texts_are_the_same(gpt2):
    prompts, greedy = some_prompts(4), DecodingSettings(temperature=0.0, max_new_tokens=9)
    expected = write(gpt2, prompts, greedy)
    head = pack(gpt2, rows=4)
    assert write(gpt2, prompts, greedy, head=head) == expected


def test_without_what_is_not_public_the_plain_product_serves(gpt2, monkeypatch):
    monkeypatch.setattr(packed, "can_pack", lambda weight, rows: False)
    expected = logits_of(gpt2, None, some_prompts(3))
    head = pack(gpt2, rows=3)
    assert not any(module.packs for module in gpt2.modules() if isinstance(module, PackedLinear))
    torch.testing.assert_close(logits_of(gpt2, head, some_prompts(3)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 48), (12, 48), (3, 1, 48), (3, 7, 48)])
def test_a_packed_product_is_the_plain_one(dtype, shape):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(40, 48, dtype=dtype), torch.randn(40, dtype=dtype), torch.randn(shape, dtype=dtype)
    for rows in (1, 12):
        expected = F.linear(x.double(), weight.double(), bias.double())
        limit = 1e-5 if dtype == torch.float32 else 2**-7 * expected.abs().max().item()
        assert (PackedLinear(weight, bias, rows)(x).double() - expected).abs().max() <= limit
    assert can_pack(torch.randn(4, 4), 12) == (hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def test_an_8_bit_product_is_that_of_the_rounded_numbers():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(40, 48), torch.randn(40), torch.randn(3, 48)
    scales = weight.abs().amax(1) / 127
    rounded = (weight / scales[:, None]).round() * scales[:, None]
    low, high = min(0, x.min().item()), max(0, x.max().item())
    step = (high - low) / 127  # the input: 128 levels from its smallest to its largest number
    zero = round(-low / step)
    levels = ((x / step).round() + zero).clamp(0, 127) - zero
    expected = F.linear(levels * step, rounded, bias)
    torch.testing.assert_close(Int8Linear(weight, bias)(x), expected, atol=1e-3, rtol=1e-4)
    product = Int8Linear(weight, bias)(x)
    assert (product - F.linear(x, weight, bias)).abs().max() > 1e-4  # it is not the plain product


def test_8_bits_change_the_logits_a_little(gpt2):
    prompts = some_prompts(3)
    expected = logits_of(gpt2, None, prompts)
    difference = logits_of(gpt2, pack(gpt2, rows=3, int8=True), prompts) - expected
    assert 0 < difference.abs().max() < 0.1 * expected.std()


@pytest.mark.slow
def test_int8_from_the_shell(tmp_path):
    """The loss with 8 bits is said beside the plain one, and is near it; where torch has no such products, one line."""
    sample = "data/sample"
    flags = ["--model_path", "data/gpt2-mini", "--sonnet_path", f"{sample}/sonnets.txt", "--train_rows", "8"]
    flags += ["--held_out_sonnet_path", f"{sample}/sonnets_held_out.txt", "--epochs", "1", "--score_seeds", "1"]
    flags += ["--gold_sonnet_path", f"{sample}/TRUE_sonnets_held_out_dev.txt", "--run_dir", str(tmp_path / "run")]
    flags += ["--sonnet_out", str(tmp_path / "a.txt"), "--sonnet_dev_out", str(tmp_path / "b.txt"), "--int8"]
    done = subprocess.run([sys.executable, "sonnet_generation.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    difference = float(re.search(r"8 bits: [\d.]+ nats a token, ([+-][\d.]+)", done.stdout)[1])
    assert abs(difference) < 0.1
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").startswith("--Generated Sonnets--")


def test_without_8_bit_products_int8_is_refused(monkeypatch):
    monkeypatch.setattr(sonnet_generation, "has_int8", lambda: False)
    with pytest.raises(UserError, match="--int8 needs a CPU with"):
        sonnet_generation.check_decoding(DecodingSettings(int8=True), torch.device("cpu"))
    monkeypatch.undo()
    sonnet_generation.check_decoding(DecodingSettings(int8=has_int8()), torch.device("cpu"))
    with pytest.raises(UserError, match="--int8 needs a CPU with"):
        sonnet_generation.check_decoding(DecodingSettings(int8=True), torch.device("cuda"))


def test_the_head_alone(gpt2):
    hidden = torch.randn(5, 48)
    expected = next_token_logits(gpt2.word_embedding.weight, hidden)
    torch.testing.assert_close(pack(gpt2, rows=5)(hidden), expected, atol=1e-5, rtol=1e-5)
