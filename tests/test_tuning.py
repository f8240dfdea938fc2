"""LoRA and adapters: each method against its oracle, and one table of invariants for all of them."""

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import LINEAR_NAMES, MODEL_SIZES, AdapterSettings, GPT2Config, LoRASettings, UserError
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from modules.adapter import BottleneckAdapter
from modules.lora import LoRALinear
from modules.tuning import (
    METHODS,
    attach,
    cast_frozen,
    count_parameters,
    default_learning_rate,
    load_tuning,
    merge,
    trainable_state_dict,
)
from optimizer import AdamW, parameter_groups

LORA = LoRASettings(lora=True, lora_rank=3, lora_alpha=7, lora_dropout=0.0, lora_targets=",".join(LINEAR_NAMES))
CHOICES = {
    "lora": {"lora": LORA},
    "lora on query and value": {"lora": LoRASettings(lora=True, lora_dropout=0.0, lora_targets="query,value")},
    "houlsby": {"adapter": AdapterSettings(adapter=True, adapter_size=5)},
    "pfeiffer": {"adapter": AdapterSettings(adapter=True, adapter_size=5, adapter_placement="pfeiffer")},
    "lora and houlsby": {"lora": LORA, "adapter": AdapterSettings(adapter=True, adapter_size=5)},
}
INPUT_IDS = torch.arange(40).view(2, 20) * 31 % 8600
MASK = torch.ones_like(INPUT_IDS)


def hidden_states(gpt2):
    with torch.no_grad():
        return gpt2(INPUT_IDS)["last_hidden_state"]


def train_a_little(gpt2, steps=3, lr=0.05):
    model = SonnetGPT(gpt2).train()
    optimizer = AdamW(parameter_groups(model, 0.0), lr=lr)
    for _ in range(steps):
        loss, count = model(INPUT_IDS, MASK, return_loss=True)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    gpt2.eval()


# --- the table of invariants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES)
def test_step_0_is_the_base_model(gpt2, choice):
    before = hidden_states(gpt2)
    attach(gpt2, CHOICES[choice])
    assert torch.equal(hidden_states(gpt2), before)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_trainable_tensor_gets_a_gradient_and_no_frozen_one_does(gpt2, choice):
    attach(gpt2, CHOICES[choice])
    train_a_little(gpt2)  # leaves the zeros of B and up behind, where A and down would get none
    for p in gpt2.parameters():
        p.grad = None
    model = SonnetGPT(gpt2).train()
    model(INPUT_IDS, MASK, return_loss=True)[0].backward()
    for name, p in gpt2.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.grad.abs().max() > 0, name
        else:
            assert p.grad is None, name


@pytest.mark.parametrize("choice", CHOICES)
def test_the_backward_pass_ends_at_trained_tensors_only(gpt2, choice):
    """Walks the graph: the only leaves that the backward pass reaches are the tensors that are trained."""
    attach(gpt2, CHOICES[choice])
    model = SonnetGPT(gpt2).train()
    loss = model(INPUT_IDS, MASK, return_loss=True)[0]
    reached, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in reached:
            reached.add(node)
            stack += [parent for parent, _ in node.next_functions]
    leaves = {id(node.variable) for node in reached if hasattr(node, "variable")}
    assert leaves == {id(p) for p in gpt2.parameters() if p.requires_grad}


@pytest.mark.parametrize("choice", CHOICES)
def test_frozen_tensors_are_bit_identical_after_training(gpt2, choice):
    before = copy.deepcopy(gpt2.state_dict())
    attach(gpt2, CHOICES[choice])
    base = hidden_states(gpt2)
    train_a_little(gpt2)
    after = gpt2.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not torch.equal(hidden_states(gpt2), base)


@pytest.mark.parametrize("choice", CHOICES)
def test_base_keys_are_kept_and_tensors_adopted(gpt2, choice):
    before = {name: p.data_ptr() for name, p in gpt2.named_parameters()}
    attach(gpt2, CHOICES[choice])
    after = {name: p.data_ptr() for name, p in gpt2.named_parameters()}
    assert before.items() <= after.items()
    assert set(trainable_state_dict(gpt2)) == after.keys() - before.keys()


@pytest.mark.parametrize("size", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_counts_equal_their_formulas(size):
    _, d, layers, _ = MODEL_SIZES[size]
    r, m = 4, 64
    widths = dict.fromkeys(LINEAR_NAMES, 2 * d) | {"interm_dense": 5 * d, "out_dense": 5 * d}
    cases = [(LoRASettings(lora=True, lora_targets=name), layers * r * widths[name]) for name in LINEAR_NAMES]
    cases.append((LoRASettings(lora=True, lora_targets="query,value"), layers * 2 * r * 2 * d))
    cases.append((AdapterSettings(adapter=True, adapter_size=m), 2 * layers * (2 * d * m + m + d)))
    pfeiffer = AdapterSettings(adapter=True, adapter_size=m, adapter_placement="pfeiffer")
    cases.append((pfeiffer, layers * (2 * d * m + m + d)))
    for settings, expected in cases:
        with torch.device("meta"):
            gpt2 = GPT2Model(GPT2Config.of_size(size))
            attach(gpt2, {"lora" if isinstance(settings, LoRASettings) else "adapter": settings})
        assert count_parameters(gpt2)[0] == expected, settings
    if size == "gpt2":  # the figures that the papers' readers know
        assert [count for _, count in cases[-3:]] == [147_456, 2_379_264, 1_189_632]


@pytest.mark.parametrize("choice", CHOICES)
def test_save_and_load_round_trip(gpt2, model_folder, choice):
    attach(gpt2, CHOICES[choice])
    train_a_little(gpt2)
    tensors = {name: tensor.clone() for name, tensor in trainable_state_dict(gpt2).items()}
    again = GPT2Model.from_pretrained(str(model_folder)).eval()
    attach(again, CHOICES[choice])
    load_tuning(again, tensors)
    assert torch.equal(hidden_states(again), hidden_states(gpt2))


@pytest.mark.parametrize("choice", CHOICES)
def test_merged_equals_unmerged_or_refuses(gpt2, choice):
    keys = set(gpt2.state_dict())
    attach(gpt2, CHOICES[choice])
    train_a_little(gpt2)
    before, state = hidden_states(gpt2), copy.deepcopy(gpt2.state_dict())
    if any(METHODS[name].merge is None for name in CHOICES[choice]):
        with pytest.raises(UserError, match="adapter cannot be merged"):
            merge(gpt2, CHOICES[choice])
        assert state.keys() == gpt2.state_dict().keys()  # nothing was merged half-way
    else:
        merge(gpt2, CHOICES[choice])
        assert not any(isinstance(module, LoRALinear) for module in gpt2.modules())
        assert set(gpt2.state_dict()) == keys
        torch.testing.assert_close(hidden_states(gpt2), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_eval_merges_nothing(gpt2, choice):
    attach(gpt2, CHOICES[choice])
    state = copy.deepcopy(gpt2.state_dict())
    gpt2.train().eval()
    assert all(torch.equal(tensor, state[name]) for name, tensor in gpt2.state_dict().items())


def test_loading_into_other_flags_is_refused(gpt2):
    attach(gpt2, CHOICES["lora"])
    tensors = trainable_state_dict(gpt2)
    with pytest.raises(UserError, match="other tuning flags"):
        load_tuning(gpt2, dict(list(tensors.items())[1:]))
    with pytest.raises(UserError, match="has no place"):
        load_tuning(gpt2, tensors | {"gpt_layers.0.attention_adapter.up.weight": torch.zeros(1)})
    name = "gpt_layers.0.interm_dense.lora_A"
    with pytest.raises(UserError, match=r"shape \[5, 32\] in the run, \[3, 32\] in the model"):
        load_tuning(gpt2, tensors | {name: torch.zeros(5, 32)})


def test_casting_what_is_frozen_leaves_what_is_trained_and_the_norms(gpt2):
    attach(gpt2, CHOICES["lora and houlsby"])
    cast_frozen(gpt2, torch.bfloat16)
    for name, p in gpt2.named_parameters():
        in_fp32 = p.requires_grad or "norm" in name or "pos_embedding" in name
        assert p.dtype == (torch.float32 if in_fp32 else torch.bfloat16), name
    with torch.autocast("cpu", torch.bfloat16):
        train_a_little(gpt2)
        assert hidden_states(gpt2).dtype == torch.float32  # the residual stream stays in fp32


def test_learning_rates():
    assert default_learning_rate([]) == 1e-5
    assert default_learning_rate(["lora"]) == 2e-4
    assert default_learning_rate(["lora", "adapter"]) == min(2e-4, METHODS["adapter"].learning_rate)


# --- oracles ----------------------------------------------------------------------------------------------------------


class PeftHost(nn.Module):
    """Our GPT-2 where peft can get at it."""

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, input_ids):
        return self.gpt2(input_ids)["last_hidden_state"]


@pytest.mark.parametrize("targets", ["query,value", "query,value,interm_dense", ",".join(LINEAR_NAMES)])
def test_lora_equals_peft_in_our_model(gpt2, model_folder, targets):
    settings = LoRASettings(lora=True, lora_rank=3, lora_alpha=7, lora_dropout=0.0, lora_targets=targets)
    attach(gpt2, {"lora": settings})
    torch.manual_seed(1)
    for p in gpt2.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.3)
    config = peft.LoraConfig(r=3, lora_alpha=7, lora_dropout=0.0, target_modules=settings.targets)
    theirs = peft.inject_adapter_in_model(config, PeftHost(GPT2Model.from_pretrained(str(model_folder)).eval()))
    factors = trainable_state_dict(gpt2)
    with torch.no_grad():
        for name, p in theirs.gpt2.named_parameters():
            if p.requires_grad:
                p.copy_(factors.pop(name.replace(".default.weight", "")))
    assert not factors
    ours_out, theirs_out = gpt2(INPUT_IDS)["last_hidden_state"], theirs(INPUT_IDS)
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(ours_out)
    (ours_out * direction).sum().backward()
    (theirs_out * direction).sum().backward()
    gradients = {name: p.grad for name, p in gpt2.named_parameters() if p.requires_grad}
    for name, p in theirs.gpt2.named_parameters():
        if p.requires_grad:
            ours = gradients[name.replace(".default.weight", "")]
            torch.testing.assert_close(ours, p.grad, atol=1e-5 * p.grad.abs().max().item(), rtol=1e-4)


def test_lora_linear_against_the_equation_and_its_start():
    base = nn.Linear(64, 48)
    layer = LoRALinear(base, rank=4, alpha=16, dropout=0.0)
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
    layer = LoRALinear(base, rank=4, alpha=16, dropout=0.9).train()
    x = torch.randn(5, 64)
    assert torch.equal(layer(x), base(x))  # B is zero: whatever is dropped, the base output stands
    nn.init.normal_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_adapter_against_the_equation():
    adapter = BottleneckAdapter(12, 3)
    for p in adapter.parameters():
        nn.init.normal_(p)
    h = torch.randn(2, 5, 12)
    expected = h + F.gelu(h @ adapter.down.weight.t() + adapter.down.bias) @ adapter.up.weight.t() + adapter.up.bias
    torch.testing.assert_close(adapter(h), expected, atol=1e-5, rtol=1e-5)


def test_adapters_stand_where_the_papers_put_them(gpt2):
    """A layer with adapters against the same layer written out."""
    attach(gpt2, CHOICES["houlsby"])
    layer = gpt2.gpt_layers[1]
    for p in [*layer.attention_adapter.parameters(), *layer.ffn_adapter.parameters()]:
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 6, 32)
    attended = layer.attention_dense(layer.self_attention(layer.attention_layer_norm(x)))
    y = x + layer.attention_adapter(attended)
    fed = layer.out_dense(F.gelu(layer.interm_dense(layer.out_layer_norm(y)), approximate="tanh"))
    torch.testing.assert_close(layer(x), y + layer.ffn_adapter(fed), atol=1e-5, rtol=1e-5)


def test_core_files_know_no_tuning_method():
    from pathlib import Path

    for name in ("modules/attention.py", "modules/gpt2_layer.py", "modules/kv_cache.py", "models/gpt2.py"):
        source = (Path(__file__).parents[1] / name).read_text(encoding="utf-8").lower()
        assert "lora" not in source and "bottleneck" not in source, name
