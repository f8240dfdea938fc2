"""NF4 against bitsandbytes, and QLoRA against LoRA over the unpacked model."""

import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import (
    LINEAR_NAMES,
    LoRASettings,
)
from modules.quantization import BLOCK, OUTER_BLOCK, NF4Linear, dequantize_nf4, dynamic_levels, quantize_nf4
from tests.peft_hosts import check_gradients, randomise
from tests.tuned import INPUT_IDS
from tuning.attach import attach
from tuning.state import trainable_state_dict


@pytest.mark.parametrize("shape", [(768, 768), (3072, 768), (32, 32), (10, 100), (70, 9), (64, 3)])
def test_nf4_bytes_are_those_of_bitsandbytes(shape):
    weight = torch.randn(shape) * 0.02
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = quantize_nf4(weight)
    assert torch.equal(ours["codes"], codes.flatten())
    assert torch.equal(ours["outer_scales"], state.state2.absmax)
    assert ours["mean"] == state.offset
    assert torch.equal(dynamic_levels(), state.state2.code)
    # The library's CPU kernel looks values up in a table and is off by one where a value lies within its resolution
    # (2^-15) of the middle between two levels; elsewhere its bytes are ours
    scales = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK).abs().amax(dim=1)
    quotients = (scales - scales.mean()) / ours["outer_scales"].repeat_interleave(OUTER_BLOCK)[: len(scales)]
    levels = dynamic_levels()
    doubtful = (quotients[:, None] - (levels[1:] + levels[:-1]) / 2).abs().amin(dim=1) < 2**-15
    assert torch.equal(ours["scale_codes"][~doubtful], state.absmax[~doubtful])
    assert doubtful.float().mean() < 0.02
    exact = (quotients[:, None] - levels).abs().argmin(dim=1)
    assert torch.equal(ours["scale_codes"].long(), exact)


def test_nf4_comes_back_as_in_bitsandbytes():
    weight = torch.randn(96, 128) * 0.02
    weight[3] = 0  # whole blocks of zeros
    ours = quantize_nf4(weight)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    state.absmax = ours["scale_codes"]  # (see above)
    theirs = bnb.dequantize_4bit(codes, state)
    torch.testing.assert_close(dequantize_nf4(ours, weight.shape), theirs, atol=1e-7, rtol=1e-6)
    assert (dequantize_nf4(ours, weight.shape) - weight).abs().max() < 0.02 * 4 * 0.16  # half the widest gap of levels


def test_nf4_takes_4_127_bits_a_weight():
    linear = NF4Linear(nn.Linear(1024, 1024))
    assert linear.size() * 8 / 1024**2 == pytest.approx(4.127, abs=1e-3)


def test_nf4_linear_is_the_linear_of_its_unpacked_weight():
    base = nn.Linear(64, 48)
    linear, x = NF4Linear(base), torch.randn(5, 64, requires_grad=True)
    expected = F.linear(x, linear.weight, base.bias)
    torch.testing.assert_close(linear(x), expected)
    direction = torch.randn(5, 48)
    ours = torch.autograd.grad((linear(x) * direction).sum(), x)[0]
    torch.testing.assert_close(ours, torch.autograd.grad((expected * direction).sum(), x)[0])


def test_nf4_keeps_no_unpacked_weight_for_the_backward_pass():
    linear, saved = NF4Linear(nn.Linear(256, 256)), []
    x = torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        linear(x).sum().backward()
    assert all(count < 256 * 256 for count in saved)


def test_qlora_is_lora_over_the_unpacked_model(gpt2, fresh):
    """Outputs and gradients against ordinary LoRA on a model whose weights were replaced by the unpacked ones."""
    settings = LoRASettings(lora_rank=3, lora_dropout=0.0, lora_targets="query,value,out_dense")
    attach(gpt2, {"qlora": settings})
    randomise(gpt2)
    plain = fresh()
    with torch.no_grad():
        for ours, theirs in zip(gpt2.gpt_layers, plain.gpt_layers, strict=True):
            for name in LINEAR_NAMES:
                parents = (p.self_attention if name in ("query", "key", "value") else p for p in (ours, theirs))
                quantized, linear = (getattr(parent, name) for parent in parents)
                linear.weight.copy_(quantized.weight)
    attach(plain, {"lora": settings})
    tensors = trainable_state_dict(gpt2)
    with torch.no_grad():
        for name, p in trainable_state_dict(plain).items():
            p.copy_(tensors[name])
    outputs = [model(INPUT_IDS)["last_hidden_state"] for model in (gpt2, plain)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(outputs[0])
    for output in outputs:
        (output * direction).sum().backward()
    check_gradients(*({n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in (gpt2, plain)))
