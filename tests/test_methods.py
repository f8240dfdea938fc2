"""Every tuning method against its oracle: peft, bitsandbytes or, where those deviate from the paper, a naive loop."""

import copy
import math

import bitsandbytes.functional as bnb
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import (
    LINEAR_NAMES,
    AdaLoRASettings,
    AdapterSettings,
    IA3Settings,
    LlamaAdapterSettings,
    LoRASettings,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
)
from errors import UserError
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from modules.adalora import AdaLoRALinear, RankAllocator, adalora_penalty
from modules.adapter import BottleneckAdapter
from modules.ia3 import IA3Linear
from modules.lora import LoRALinear
from modules.prefix import drop_mlp
from modules.quantization import BLOCK, OUTER_BLOCK, NF4Linear, dequantize_nf4, dynamic_levels, quantize_nf4
from training.assembly import Assembly
from tuning.attach import attach
from tuning.state import trainable_state_dict

ALL = ",".join(LINEAR_NAMES)
INPUT_IDS = torch.arange(40).view(2, 20) * 31 % 8600
MASK = torch.ones_like(INPUT_IDS)


def randomise(gpt2):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in gpt2.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))


def check_gradients(ours, theirs):
    """{name: gradient} both; each within 1e-5 of its own scale."""
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4)


class PeftHost(nn.Module):
    """Our GPT-2 where peft can get at it."""

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, input_ids):
        return self.gpt2(input_ids)["last_hidden_state"]


@pytest.fixture
def fresh(model_folder):
    return lambda: GPT2Model.from_pretrained(str(model_folder)).eval()


def compare_with_injected(gpt2, theirs, rename):
    """Outputs and gradients of our tuned gpt2 and of peft injected into our own model; rename(their name) -> ours."""
    tensors = trainable_state_dict(gpt2)
    pairs = {rename(name): p for name, p in theirs.named_parameters() if p.requires_grad}
    assert pairs.keys() == tensors.keys()
    with torch.no_grad():
        for name, p in pairs.items():
            p.copy_(tensors[name].view_as(p))
    ours_out, theirs_out = gpt2(INPUT_IDS)["last_hidden_state"], theirs(INPUT_IDS)
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(ours_out)
    (ours_out * direction).sum().backward()
    (theirs_out * direction).sum().backward()
    ours = {name: p.grad for name, p in gpt2.named_parameters() if p.requires_grad}
    check_gradients(ours, {name: p.grad.view_as(ours[name]) for name, p in pairs.items()})


# --- LoRA and its kin -------------------------------------------------------------------------------------------------


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


def test_ia3_equals_peft(gpt2, fresh):
    attach(gpt2, {"ia3": IA3Settings()})
    randomise(gpt2)
    config = peft.IA3Config(target_modules=["key", "value", "out_dense"], feedforward_modules=["out_dense"])
    theirs = peft.inject_adapter_in_model(config, PeftHost(fresh()))
    compare_with_injected(gpt2, theirs, lambda n: n.removeprefix("gpt2.").replace("ia3_l.default", "ia3_scale"))


def test_ia3_against_the_equation():
    base, x = nn.Linear(6, 4), torch.randn(3, 6)
    outputs, inputs = IA3Linear(base, scales_input=False), IA3Linear(base, scales_input=True)
    with torch.no_grad():
        outputs.ia3_scale.normal_()
        inputs.ia3_scale.normal_()
    torch.testing.assert_close(outputs(x), base(x) * outputs.ia3_scale)
    torch.testing.assert_close(inputs(x), base(x * inputs.ia3_scale))


ADALORA = AdaLoRASettings(
    adalora_start_rank=5, adalora_rank=2, adalora_dropout=0.0, adalora_interval=3, adalora_warmup=0.15,
    adalora_final=0.25, adalora_targets="query,value,out_dense",
)  # fmt: skip


def peft_adalora(gpt2, total_steps):
    config = peft.AdaLoraConfig(
        init_r=5, target_r=2, lora_alpha=32, lora_dropout=0.0, deltaT=3, total_step=total_steps,
        tinit=round(0.15 * total_steps), tfinal=round(0.25 * total_steps), beta1=0.85, beta2=0.85,
        orth_reg_weight=0.5, target_modules=ADALORA.targets,
    )  # fmt: skip
    return peft.AdaLoraModel(PeftHost(gpt2), {"default": config}, "default")


def adalora_name(name):
    name = name.removeprefix("model.").removeprefix("gpt2.")
    return name.replace(".default", "")


def test_adalora_equals_peft(gpt2, fresh):
    attach(gpt2, {"adalora": ADALORA})
    randomise(gpt2)
    theirs = peft_adalora(fresh(), 40)
    compare_with_injected(gpt2, theirs, adalora_name)


def test_adalora_allocates_as_peft_over_a_whole_schedule(gpt2, fresh):
    """40 steps of plain gradient descent on the same loss: the same factors, the same triplets kept, at every step."""
    total_steps, lr = 40, 0.05
    attach(gpt2, {"adalora": ADALORA})
    theirs = peft_adalora(fresh(), total_steps)
    tensors = trainable_state_dict(gpt2)
    pairs = {adalora_name(name): p for name, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in pairs.items():
            p.copy_(tensors[name])
    model, tuned = SonnetGPT(gpt2), Assembly(gpt2, None, {"adalora": ADALORA}, "", None)
    loss_fn = tuned.loss(lambda model, batch: model(batch, torch.ones_like(batch), return_loss=True))
    kept_counts = []
    for step in range(1, total_steps + 1):
        torch.manual_seed(step)
        batch = torch.randint(8600, (2, 12))
        loss, count = loss_fn(model, batch)
        (loss / count).backward()

        hidden = theirs(batch)
        logits = F.linear(hidden, theirs.model.gpt2.word_embedding.weight)
        their_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        factors = [p for name, p in pairs.items() if name.endswith(("lora_A", "lora_B"))]
        penalty = sum(((f @ f.t() if f.size(0) == 5 else f.t() @ f) - torch.eye(5)).norm() for f in factors)
        (their_loss + 0.5 * penalty / len(factors)).backward()
        with torch.no_grad():
            for p in (*gpt2.parameters(), *pairs.values()):
                if p.grad is not None:
                    p -= lr * p.grad
        tuned.after_step(step, total_steps)
        theirs.update_and_allocate(step)
        gpt2.zero_grad()
        theirs.zero_grad()
        for name, p in pairs.items():
            ours = dict(gpt2.named_parameters())[name]
            torch.testing.assert_close(ours, p, atol=1e-5, rtol=1e-4, msg=f"step {step}, {name}")
            if name.endswith("lora_E"):
                assert torch.equal(ours == 0, p == 0), (step, name)
        kept_counts.append(sum(int((p != 0).sum()) for name, p in pairs.items() if name.endswith("lora_E")))
    assert kept_counts[0] == 45 and kept_counts[-1] == 18  # 9 linears: ranks 5 at the start, 2 on average at the end
    assert len(set(kept_counts)) > 4


def test_adaloras_penalty_against_the_equation(gpt2):
    attach(gpt2, {"adalora": ADALORA})
    terms = []
    for module in gpt2.modules():
        if isinstance(module, AdaLoRALinear):
            terms += [(m @ m.t() - torch.eye(5)).pow(2).sum().sqrt() for m in (module.lora_A, module.lora_B.t())]
    torch.testing.assert_close(adalora_penalty(gpt2, ADALORA), 0.5 * sum(terms) / len(terms))


def test_adaloras_budget_falls_on_the_cubic_curve(gpt2):
    attach(gpt2, {"adalora": ADALORA})
    allocator = RankAllocator(gpt2, ADALORA)  # ranks 45 -> 18, warm-up 15 steps, the last 25 fixed
    budgets = [allocator.budget(step, 100)[0] for step in range(1, 101)]
    assert budgets[:15] == [45] * 15 and budgets[74:] == [18] * 26
    for step in range(16, 75):
        assert budgets[step - 1] == int(27 * (1 - (step - 15) / 60) ** 3 + 18)
    assert budgets == sorted(budgets, reverse=True)


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapter_against_the_equation():
    adapter = BottleneckAdapter(12, 3)
    for p in adapter.parameters():
        nn.init.normal_(p)
    h = torch.randn(2, 5, 12)
    expected = h + F.gelu(h @ adapter.down.weight.t() + adapter.down.bias) @ adapter.up.weight.t() + adapter.up.bias
    torch.testing.assert_close(adapter(h), expected, atol=1e-5, rtol=1e-5)


def test_adapters_stand_where_the_papers_put_them(gpt2):
    """A layer with adapters against the same layer written out."""
    attach(gpt2, {"adapter": AdapterSettings(adapter_size=5)})
    layer = gpt2.gpt_layers[1]
    for p in [*layer.attention_adapter.parameters(), *layer.ffn_adapter.parameters()]:
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 6, 32)
    attended = layer.attention_dense(layer.self_attention(layer.attention_layer_norm(x)))
    y = x + layer.attention_adapter(attended)
    fed = layer.out_dense(F.gelu(layer.interm_dense(layer.out_layer_norm(y)), approximate="tanh"))
    torch.testing.assert_close(layer(x), y + layer.ffn_adapter(fed), atol=1e-5, rtol=1e-5)


# --- learned positions ------------------------------------------------------------------------------------------------


def compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, names):
    """Logits and gradients against peft on the same GPT-2 of transformers; names: {their tensor: ours}."""
    theirs = peft.get_peft_model(copy.deepcopy(hugging_face_gpt2), config).eval()
    parameters = dict(gpt2.prompt.named_parameters())
    encoder = dict(theirs.prompt_encoder["default"].named_parameters())
    assert set(names) == set(encoder) and set(names.values()) == set(parameters)
    with torch.no_grad():
        for their_name, name in names.items():
            encoder[their_name].copy_(parameters[name])
    ours_out = gpt2.hidden_state_to_token(gpt2(INPUT_IDS)["last_hidden_state"])
    theirs_out = theirs(input_ids=INPUT_IDS).logits[:, -INPUT_IDS.size(1) :]
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(ours_out)
    (ours_out * direction).sum().backward()
    (theirs_out * direction).sum().backward()
    ours = {name: parameters[name].grad for name in names.values()}
    check_gradients(ours, {name: encoder[their_name].grad for their_name, name in names.items()})


def test_prompt_tuning_equals_peft(gpt2, hugging_face_gpt2):
    attach(gpt2, {"prompt": PromptSettings(prompt_length=7)})
    randomise(gpt2)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
    compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, {"embedding.weight": "embedding"})


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_p_tuning_equals_peft(gpt2, hugging_face_gpt2, encoder):
    settings = PTuningSettings(ptuning_length=7, ptuning_hidden=6, ptuning_encoder=encoder)
    attach(gpt2, {"ptuning": settings})
    randomise(gpt2)
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=7,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
        encoder_dropout=0.0,
    )
    names = {name: name for name, _ in gpt2.prompt.named_parameters()}
    names = {name.replace("lstm.", "lstm_head.").replace("mlp.", "mlp_head."): ours for name, ours in names.items()}
    names["embedding.weight"] = names.pop("embedding")
    compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, names)


@pytest.mark.parametrize("hidden", [0, 6])
def test_prefix_tuning_equals_peft(gpt2, hugging_face_gpt2, hidden):
    attach(gpt2, {"prefix": PrefixSettings(prefix_length=7, prefix_hidden=hidden)})
    randomise(gpt2)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=bool(hidden), encoder_hidden_size=hidden or None
    )
    names = (
        {f"transform.{i}.{kind}": f"mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")} if hidden else {}
    )
    names["embedding.weight"] = "embedding"
    compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, names)


def test_the_prefix_mlp_can_be_thrown_away(gpt2):
    attach(gpt2, {"prefix": PrefixSettings(prefix_length=7, prefix_hidden=6)})
    randomise(gpt2)
    with torch.no_grad():
        before = gpt2(INPUT_IDS)["last_hidden_state"]
        drop_mlp(gpt2)
        assert torch.equal(gpt2(INPUT_IDS)["last_hidden_state"], before)
    assert [tuple(p.shape) for p in gpt2.prompt.parameters()] == [(7, 2 * 3 * 32)]


def test_a_soft_prompt_starts_from_real_words(gpt2):
    attach(gpt2, {"prompt": PromptSettings(prompt_length=7)})
    vocabulary = gpt2.word_embedding.weight
    assert all((vocabulary == vector).all(dim=1).any() for vector in gpt2.prompt.embedding)


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


# --- four bits --------------------------------------------------------------------------------------------------------


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
