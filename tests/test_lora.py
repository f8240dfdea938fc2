"""LoRA against peft and the equation; several added up."""

import peft
import pytest
import torch
from torch import nn

from config import LoRASettings
from modules.lora import LoRALinear, combine_lora
from tests.peft_hosts import PeftHost, compare_with_injected, randomise
from tests.tuned import ALL
from tuning.attach import attach, detach
from tuning.state import load_tuning, trainable_state_dict


@pytest.mark.parametrize("targets", ["query,value", "query,value,interm_dense", ALL])
def test_lora_equals_peft(gpt2, fresh, targets):
    settings = LoRASettings(lora_rank=3, lora_alpha=7, lora_dropout=0.0, lora_targets=targets)
    attach(gpt2, {"lora": settings})
    randomise(gpt2)
    config = peft.LoraConfig(r=3, lora_alpha=7, lora_dropout=0.0, target_modules=settings.targets)
    theirs = peft.inject_adapter_in_model(config, PeftHost(fresh()))
    compare_with_injected(gpt2, theirs, lambda n: n.removeprefix("gpt2.").replace(".default.weight", ""))


def test_rank_stabilised_lora_with_biases_equals_peft(gpt2, fresh):
    settings = LoRASettings(
        lora_rank=3, lora_alpha=7, lora_dropout=0.0, lora_rank_stabilized=True, lora_bias="lora_only"
    )
    attach(gpt2, {"lora": settings})
    randomise(gpt2)
    config = peft.LoraConfig(
        r=3, lora_alpha=7, use_rslora=True, bias="lora_only", target_modules=settings.targets, lora_dropout=0.0
    )
    theirs = peft.inject_adapter_in_model(config, PeftHost(fresh()))

    def rename(name):
        return name.removeprefix("gpt2.").replace(".default.weight", "").replace(".base_layer", "")

    compare_with_injected(gpt2, theirs, rename)


def test_lora_linear_against_the_equation_and_its_start():
    base = nn.Linear(64, 48)
    layer = LoRALinear(base, rank=4, scaling=16 / 4)
    bound = 1 / 64**0.5
    assert layer.lora_A.abs().max() <= bound and layer.lora_A.abs().max() > 0.9 * bound
    assert abs(layer.lora_A.std().item() - bound / 3**0.5) < 0.1 * bound
    assert not layer.lora_B.any()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 64)
    expected = x @ (base.weight + 16 / 4 * layer.lora_B @ layer.lora_A).t() + base.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_lora_dropout_touches_its_own_branch_only():
    base = nn.Linear(64, 48)
    layer = LoRALinear(base, rank=4, scaling=16 / 4, dropout=0.9).train()
    x = torch.randn(5, 64)
    assert torch.equal(layer(x), base(x))  # B is zero: whatever is dropped, the base output stands
    nn.init.normal_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_several_loras_add_up_with_their_weights(gpt2):
    """Against the sum of the updates written out, on ranks that differ."""
    parts, linear = [], gpt2.gpt_layers[1].self_attention.query
    expected = linear.weight.clone()
    for rank, weight in ((2, 0.7), (5, -1.3)):
        settings = LoRASettings(lora_rank=rank, lora_dropout=0.0, lora_targets="query,value")
        attach(gpt2, {"lora": settings})
        for p in trainable_state_dict(gpt2).values():
            p.normal_(std=0.3)
        tensors = {key: tensor.clone() for key, tensor in trainable_state_dict(gpt2).items()}
        parts.append((tensors, settings.scaling, weight))
        ours = gpt2.gpt_layers[1].self_attention.query
        expected += weight * 16 / rank * ours.lora_B @ ours.lora_A
        detach(gpt2)
    attach(gpt2, {"lora": LoRASettings(lora_rank=7, lora_alpha=7, lora_dropout=0.0, lora_targets="query,value")})
    load_tuning(gpt2, combine_lora(parts))
    merged = gpt2.gpt_layers[1].self_attention.query.merged().weight
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
