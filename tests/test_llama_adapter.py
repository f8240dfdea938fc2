"""LLaMA-Adapter against a loop over queries and heads."""

import math

import pytest
import torch

from config import (
    LlamaAdapterSettings,
)
from errors import UserError
from models.sonnet_gpt import SonnetGPT
from tests.peft_hosts import randomise
from tests.tuned import INPUT_IDS, MASK
from tuning.attach import attach


@pytest.mark.parametrize("gate", ["scalar", "head"])
def test_llama_adapter_against_a_loop(gpt2, gate):
    """Query by query and head by head, two softmaxes, the second behind tanh(gate)."""
    attach(gpt2, {"llama_adapter": LlamaAdapterSettings(llama_length=5, llama_gate=gate)})
    randomise(gpt2)
    assert gpt2.gpt_layers[0].self_attention.kv_adapter is None
    attention = gpt2.gpt_layers[2].self_attention
    adapter, heads, x = attention.kv_adapter, attention.num_heads, torch.randn(2, 6, 32)
    assert adapter.gate.numel() == (1 if gate == "scalar" else heads)
    query, key, value = (linear(x) for linear in (attention.query, attention.key, attention.value))
    prompt_key, prompt_value = attention.key(adapter.prompt), attention.value(adapter.prompt)
    expected = torch.zeros(2, 6, 32)
    size = 32 // heads
    for row in range(2):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            g = torch.tanh(adapter.gate.flatten()[0 if gate == "scalar" else head])
            for t in range(6):
                q = query[row, t, part] / math.sqrt(size)
                text = torch.softmax(key[row, : t + 1, part] @ q, dim=0) @ value[row, : t + 1, part]
                prompt = torch.softmax(prompt_key[:, part] @ q, dim=0) @ prompt_value[:, part]
                expected[row, t, part] = text + g * prompt
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)
    parameters = [adapter.prompt, adapter.gate]
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad((attention(x) * direction).sum(), parameters)
    theirs = torch.autograd.grad((expected * direction).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_only_the_gate_moves_first(gpt2):
    attach(gpt2, {"llama_adapter": LlamaAdapterSettings()})
    SonnetGPT(gpt2)(INPUT_IDS, MASK, return_loss=True)[0].backward()
    adapter = gpt2.gpt_layers[1].self_attention.kv_adapter
    assert adapter.gate.grad.abs().max() > 0 and adapter.prompt.grad.abs().max() == 0


def test_more_layers_than_there_are(gpt2):
    with pytest.raises(UserError, match="--llama_layers 4: the model has 3 layers"):
        attach(gpt2, {"llama_adapter": LlamaAdapterSettings(llama_layers=4)})
