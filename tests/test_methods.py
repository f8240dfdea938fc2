"""Every tuning method against one table of invariants."""

import copy
import re

import pytest
import torch

from config import (
    LINEAR_NAMES,
    MODEL_SIZES,
    TUNING_METHODS,
    AdaLoRASettings,
    AdapterSettings,
    DecodingSettings,
    GPT2Config,
    IA3Settings,
    LlamaAdapterSettings,
    LoRASettings,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
    TopLayersSettings,
)
from errors import UserError
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from modules.kv_cache import KVCache
from modules.lora import TunedLinear
from modules.quantization import quantize_linears
from tests.helpers import mostly_slow
from tests.tuned import CHOICES, INPUT_IDS, MASK, hidden_states, train_a_little
from tests.writing import write
from tuning.attach import attach, cast_frozen, detach, merge, unmerge
from tuning.register import METHODS
from tuning.state import count_parameters, load_tuning, trainable_state_dict

# No start at the base model: learned positions are there from the first step on (their papers promise nothing else)
WITHOUT_IDENTITY = {"prompt", "ptuning", "prefix"}


def test_every_method_is_in_the_table():
    assert {name for choice in CHOICES.values() for name in choice} == set(METHODS) == set(TUNING_METHODS)


@pytest.mark.parametrize("choice", CHOICES)
def test_step_0_is_the_base_model_where_the_paper_promises_it(gpt2, choice):
    base = copy.deepcopy(gpt2)
    if "qlora" in CHOICES[choice]:
        quantize_linears(base)  # this is what QLoRA starts from
    attach(gpt2, CHOICES[choice])
    same = torch.equal(hidden_states(gpt2), hidden_states(base))
    assert same == (not WITHOUT_IDENTITY & CHOICES[choice].keys())


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
    attach(gpt2, CHOICES[choice])
    trained = trainable_state_dict(gpt2)
    before, outputs = copy.deepcopy(gpt2.state_dict()), hidden_states(gpt2)
    train_a_little(gpt2)
    after = gpt2.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (name not in trained), name
    assert not torch.equal(hidden_states(gpt2), outputs)


@pytest.mark.parametrize("choice", CHOICES)
def test_base_keys_are_kept_and_tensors_adopted(gpt2, choice):
    before = {name: p.data_ptr() for name, p in gpt2.named_parameters()}
    attach(gpt2, CHOICES[choice])
    after = {name: p.data_ptr() for name, p in gpt2.named_parameters()}
    if "qlora" in CHOICES[choice]:  # the linears' weights are stored in another form: that is its purpose
        linears = re.compile(rf"gpt_layers\.\d+\.(self_attention\.)?({'|'.join(LINEAR_NAMES)})\.weight")
        assert {name for name in before if linears.fullmatch(name)} == before.keys() - after.keys()
        before = {name: pointer for name, pointer in before.items() if not linears.fullmatch(name)}
    assert before.items() <= after.items()
    trained, new = set(trainable_state_dict(gpt2)), after.keys() - before.keys()
    of_the_base = {name for name in before if "bias" in name}
    if "top_layers" in CHOICES[choice]:
        of_the_base = {name for name in before if name.startswith(("gpt_layers.1.", "gpt_layers.2."))}
    elif choice == "lora, its biases":
        of_the_base = {name for name in of_the_base if re.search(r"\.(query|value|interm_dense)\.", name)}
    elif not ("bitfit" in CHOICES[choice] or "all biases" in choice):
        of_the_base = set()
    assert trained == new | of_the_base


def formulas(d, layers, heads):
    """[(method, settings, parameters trained)] for a GPT-2 of width d: what the documentation says, as code."""
    r, m, p, h = 4, 64, 20, 128
    widths = dict.fromkeys(LINEAR_NAMES, 2 * d) | {"interm_dense": 5 * d, "out_dense": 5 * d}
    outputs = dict.fromkeys(LINEAR_NAMES, d) | {"interm_dense": 4 * d}
    cases = [("lora", LoRASettings(lora_targets=name), layers * r * widths[name]) for name in LINEAR_NAMES]
    cases.append(("lora", LoRASettings(lora_targets="query,value"), layers * 2 * r * 2 * d))
    cases.append(("lora", LoRASettings(lora_targets="query,key,value"), layers * 3 * r * 2 * d))
    cases.append(("qlora", LoRASettings(lora_targets="query,value"), layers * 2 * r * 2 * d))
    biases = layers * 11 * d + d
    cases.append(("lora", LoRASettings(lora_targets="query", lora_bias="all"), layers * r * 2 * d + biases))
    cases.append(("lora", LoRASettings(lora_targets="query", lora_bias="lora_only"), layers * (r * 2 * d + d)))
    cases.append(("adalora", AdaLoRASettings(), layers * 12 * sum(width + 1 for width in widths.values())))
    cases.append(("ia3", IA3Settings(), layers * 6 * d))
    cases += [("ia3", IA3Settings(ia3_targets=n), layers * outputs[n]) for n in LINEAR_NAMES if n != "out_dense"]
    cases.append(("adapter", AdapterSettings(), 2 * layers * (2 * d * m + m + d)))
    cases.append(("adapter", AdapterSettings(adapter_placement="pfeiffer"), layers * (2 * d * m + m + d)))
    cases.append(("prompt", PromptSettings(), p * d))
    cases.append(("ptuning", PTuningSettings(), p * d + (d * h + h) + (h * h + h) + (h * d + d)))
    lstm = 2 * (4 * h * (d + h) + 8 * h) + 2 * (4 * h * (2 * h + h) + 8 * h)
    lstm += (2 * h * 2 * h + 2 * h) + (2 * h * d + d)
    cases.append(("ptuning", PTuningSettings(ptuning_encoder="lstm"), p * d + lstm))
    cases.append(("prefix", PrefixSettings(), 2 * layers * p * d))
    with_mlp = p * d + d * h + h + 2 * layers * d * (h + 1)
    cases.append(("prefix", PrefixSettings(prefix_hidden=h), with_mlp))
    cases.append(("llama_adapter", LlamaAdapterSettings(), (layers - 1) * (10 * d + 1)))
    cases.append(("llama_adapter", LlamaAdapterSettings(llama_gate="head"), (layers - 1) * (10 * d + heads)))
    cases.append(("bitfit", None, biases))
    cases.append(("top_layers", TopLayersSettings(), 2 * (12 * d * d + 13 * d)))
    return cases


@pytest.mark.parametrize("size", mostly_slow(["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]))
def test_counts_equal_their_formulas(size):
    _, d, layers, heads = MODEL_SIZES[size]
    known = {}
    with torch.device("meta"):
        gpt2 = GPT2Model(GPT2Config.of_size(size))
        for name, settings, expected in sorted(formulas(d, layers, heads), key=lambda case: case[0] == "qlora"):
            attach(gpt2, {name: settings})
            assert count_parameters(gpt2)[0] == expected, (name, settings)
            known[expected] = name
            detach(gpt2)  # (QLoRA's base stays quantised: it comes last)
    if size == "gpt2":  # the figures that the papers' readers know
        figures = {147_456, 221_184, 184_320, 55_296, 15_360, 368_640, 229_376, 1_593_344, 84_491}
        assert figures | {2_379_264, 1_189_632, 102_144} <= known.keys()


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
    refusing = [name for name in CHOICES[choice] if not METHODS[name].merges]
    assert set(refusing) <= {"adapter", "prompt", "ptuning", "prefix", "llama_adapter"}
    if refusing:
        with pytest.raises(UserError, match=f"^{refusing[0]} cannot be merged into the weights: leave --merge out$"):
            merge(gpt2, CHOICES[choice])
        assert state.keys() == gpt2.state_dict().keys()  # nothing was merged half-way
        return
    kept = merge(gpt2, CHOICES[choice])
    assert not any(isinstance(module, TunedLinear) for module in gpt2.modules())
    assert set(gpt2.state_dict()) == keys
    torch.testing.assert_close(hidden_states(gpt2), before, atol=1e-5, rtol=1e-5)
    unmerge(kept)
    after = gpt2.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(hidden_states(gpt2), before)


def test_unmerging_is_exact_in_half_precision(gpt2):
    """Where subtracting the update again would leave most weights changed."""
    attach(gpt2, CHOICES["lora"])
    train_a_little(gpt2)
    cast_frozen(gpt2, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    kept = merge(gpt2, CHOICES["lora"])
    unmerge(kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt2.state_dict().items())


@pytest.mark.parametrize("choice", CHOICES)
def test_detaching_gives_the_base_back_without_loading_it(gpt2, choice):
    base = copy.deepcopy(gpt2)
    if "qlora" in CHOICES[choice]:
        quantize_linears(base)
    attach(gpt2, CHOICES[choice])
    detach(gpt2)
    assert torch.equal(hidden_states(gpt2), hidden_states(base))
    assert gpt2.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(gpt2, choice, side):
    attach(gpt2, CHOICES[choice])
    train_a_little(gpt2)
    short = INPUT_IDS[:1, :12]
    padding = torch.full((1, 8), 5)
    padded = torch.cat([padding, short] if side == "left" else [short, padding], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :8] = side == "right"
    if side == "right":
        mask[:, 12:] = 0
    batch, masks = torch.cat([INPUT_IDS[1:], padded]), torch.cat([MASK[:1], mask])
    with torch.no_grad():
        alone = gpt2(short)["last_hidden_state"][0]
        together = gpt2(batch, masks)["last_hidden_state"]
        whole = gpt2(INPUT_IDS[1:])["last_hidden_state"][0]
    torch.testing.assert_close(together[0], whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1][mask[0].bool()], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_cache_filled_in_chunks_gives_what_one_pass_gives(gpt2, choice):
    """(Whole texts, cached and uncached, in left-padded batches, are compared in test_decoding.py.)"""
    attach(gpt2, CHOICES[choice])
    train_a_little(gpt2)
    cache = KVCache(len(gpt2.gpt_layers), 40)
    with torch.no_grad():
        chunks = [gpt2(ids, cache=cache)["last_hidden_state"] for ids in INPUT_IDS.split([9, 1, 6, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), hidden_states(gpt2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", ["prompt", "ptuning, lstm", "prefix, mlp"])
def test_virtual_tokens_take_room_in_the_context(gpt2, choice):
    attach(gpt2, CHOICES[choice])
    assert gpt2.context == 256 - 7
    with torch.no_grad():
        assert gpt2(torch.zeros(1, 249, dtype=torch.long))["last_hidden_state"].shape == (1, 249, 32)
        with pytest.raises(UserError, match="the model's context is 249 tokens"):
            gpt2(torch.zeros(1, 250, dtype=torch.long))
    assert len(write(gpt2, [[1] * 240], DecodingSettings(temperature=0.0))[0]) == 9
    with pytest.raises(UserError, match="no room in the model's context of 249"):
        write(gpt2, [[1] * 249], DecodingSettings())


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


@pytest.mark.parametrize("choice", CHOICES)
def test_casting_what_is_frozen_leaves_what_is_trained_and_the_norms(gpt2, choice):
    attach(gpt2, CHOICES[choice])
    cast_frozen(gpt2, torch.bfloat16)
    for name, p in gpt2.named_parameters():
        in_fp32 = p.requires_grad or "norm" in name or "pos_embedding" in name
        assert p.dtype == (torch.float32 if in_fp32 else torch.bfloat16), name
    with torch.autocast("cpu", torch.bfloat16):
        train_a_little(gpt2)
        assert hidden_states(gpt2).dtype == torch.float32  # the residual stream stays in fp32
