"""Checkpoints in Hugging Face layout against transformers, in every layout, and damaged."""

import itertools
import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from errors import UserError
from formats.hugging_face import all_finite, save_pretrained
from models.gpt2 import GPT2Model
from tests.helpers import hugging_face_logits


def test_saved_model_opens_in_transformers(gpt2, hugging_face_gpt2, tmp_path):
    save_pretrained(gpt2, tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    input_ids = torch.randint(0, 8600, (2, 12))
    assert torch.equal(hugging_face_logits(again, input_ids), hugging_face_logits(hugging_face_gpt2, input_ids))
    assert again.config.n_layer == 3 and again.config.eos_token_id == 8599


@pytest.mark.parametrize(
    "layout", ["prefix", "no prefix", "sharded", "bin", "legacy bin", "sharded bin", "half", "with buffers"]
)
def test_every_checkpoint_layout_loads(layout, hugging_face_gpt2, gpt2, tmp_path):
    model = hugging_face_gpt2
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    if layout == "sharded":
        model.save_pretrained(tmp_path, max_shard_size="400KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
    else:
        model.config.save_pretrained(tmp_path)
    if layout == "prefix":
        save_file(state, tmp_path / "model.safetensors")
    elif layout == "no prefix":
        save_file({k.removeprefix("transformer."): v for k, v in state.items()}, tmp_path / "model.safetensors")
    elif layout == "bin":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # lm_head included, as old checkpoints have it
    elif layout == "legacy bin":
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "sharded bin":
        names = sorted(state)
        halves = {"a.bin": names[:9], "b.bin": names[9:]}
        for file, keys in halves.items():
            torch.save({k: state[k] for k in keys}, tmp_path / file)
        index = {"weight_map": {k: file for file, keys in halves.items() for k in keys}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif layout == "half":
        save_file({k: v.half() for k, v in state.items()}, tmp_path / "model.safetensors")
    elif layout == "with buffers":
        buffers = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(3)}
        save_file(state | buffers, tmp_path / "model.safetensors")
    loaded = dict(GPT2Model.from_pretrained(str(tmp_path)).named_parameters())
    for name, parameter in gpt2.named_parameters():
        expected = parameter.half().float() if layout == "half" else parameter
        assert torch.equal(loaded[name], expected), name


@pytest.mark.parametrize(
    "damage, words",
    [
        ("missing", "transformer.h.1.mlp.c_fc.bias|h.1.mlp.c_fc.bias is"),
        ("unknown", "unknown tensor transformer.h.0.crossattention.q_attn.weight"),
        ("shape", r"transformer.h.2.attn.c_attn.weight has shape \[32, 95\], config.json asks for \[32, 96\]"),
        ("untied", "lm_head.weight differs"),
        ("truncated", "cannot be read"),
        ("no weights", "no model.safetensors"),
        ("lost shard", "model-00002-of-00002.safetensors, which is missing"),
        ("no config", "no config.json"),
        ("broken config", "config.json is damaged"),
        ("other model", "model_type is 'bert'"),
        ("other activation", "activation_function is 'relu'"),
        ("width", "has hidden_size 32, not 768"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_name(damage, words, model_folder, hugging_face_gpt2, tmp_path):
    state = load_file(model_folder / "model.safetensors")
    config = json.loads((model_folder / "config.json").read_text())
    if damage == "missing":
        del state["transformer.h.1.mlp.c_fc.bias"]
        words = "1 tensors are missing, first h.1.mlp.c_fc.bias"
    if damage == "unknown":
        state["transformer.h.0.crossattention.q_attn.weight"] = torch.zeros(2, 2)
    if damage == "shape":
        state["transformer.h.2.attn.c_attn.weight"] = torch.zeros(32, 95)
    if damage == "untied":
        state["lm_head.weight"] = torch.zeros_like(state["transformer.wte.weight"])
    if damage == "other model":
        config["model_type"] = "bert"
    if damage == "other activation":
        config["activation_function"] = "relu"
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if damage == "truncated":
        whole = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[:5000])
    if damage == "no weights":
        (tmp_path / "model.safetensors").unlink()
    if damage == "lost shard":
        (tmp_path / "model.safetensors").unlink()
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        save_file(state, tmp_path / names["a"])
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    if damage == "no config":
        (tmp_path / "config.json").unlink()
    if damage == "broken config":
        (tmp_path / "config.json").write_text("{")
    shape = {"d": 768, "l": 12, "num_heads": 12} if damage == "width" else {}
    with pytest.raises(UserError, match=words):
        GPT2Model.from_pretrained(str(tmp_path), **shape)


def test_a_pickle_with_code_in_it_is_refused(model_folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    torch.save({"transformer.wte.weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        GPT2Model.from_pretrained(str(tmp_path))
    assert not (tmp_path / "owned").exists()


def saved(model, folder, change_tensors=None, change_config=None):
    """The model as transformers saves it, with changes to its tensors and its config.json."""
    model.save_pretrained(folder)
    if change_tensors:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(change_tensors(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    if change_config:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(change_config(config)))
    return folder


def as_head_alone(tensors):
    return {name.replace("transformer.wte.weight", "lm_head.weight"): tensor for name, tensor in tensors.items()}


ALIASES = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
ALIASES |= {"n_positions": "max_position_embeddings"}


@pytest.mark.parametrize(
    "change_tensors, change_config",
    [
        (as_head_alone, None),
        (lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}, None),
        (lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, None),
        (None, lambda config: {ALIASES.get(name, name): value for name, value in config.items()}),
        (None, lambda config: config | {"activation_function": "gelu_pytorch_tanh"}),
        (None, lambda config: config | {"n_ctx": config["n_positions"], "eos_token_id": None}),
    ],
    ids=["tied, under the head's name", "wrapped", "GPT2Model's names", "other names", "gelu's name", "n_ctx"],
)
def test_other_spellings_of_the_same_model_are_read(hugging_face_gpt2, tmp_path, change_tensors, change_config):
    gpt2 = GPT2Model.from_pretrained(str(saved(hugging_face_gpt2, tmp_path, change_tensors, change_config))).eval()
    ids = torch.arange(24).view(2, 12) * 17 % 8600
    with torch.no_grad():
        ours, theirs = gpt2.hidden_state_to_token(gpt2(ids)["last_hidden_state"]), hugging_face_gpt2(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def spoiled(value):
    def change(tensors):
        tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
        return tensors

    return change


@pytest.mark.parametrize(
    "change_tensors, change_config, message",
    [
        (spoiled(float("nan")), None, r"h\.1\.mlp\.c_fc\.weight holds numbers that are not finite"),
        (spoiled(float("inf")), None, r"h\.1\.mlp\.c_fc\.weight holds numbers that are not finite"),
        (lambda t: t | {"wpe.weight": t["transformer.wpe.weight"] + 1}, None, r"two tensors are wpe\.weight"),
        (lambda t: t | {"transformer.ln_f.bias": t["transformer.ln_f.bias"].long()}, None, "holds whole numbers"),
        (lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] + 1}, None, r"lm_head\.weight differs"),
        (None, lambda c: c | {"num_attention_heads": 8}, "n_head is 4, num_attention_heads 8: which of them holds"),
        (None, lambda c: c | {"n_head": "4"}, r"config\.json is damaged \(n_head is '4'\)"),
        (None, lambda c: c | {"n_layer": -1}, "num_hidden_layers is -1, which cannot be"),
        (None, lambda c: c | {"resid_pdrop": 1.5}, r"hidden_dropout_prob is 1\.5, which cannot be"),
        (None, lambda c: c | {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
        (None, lambda c: [c], "it holds no object"),
    ],
)
def test_what_would_be_another_model_is_refused(hugging_face_gpt2, tmp_path, change_tensors, change_config, message):
    folder = saved(hugging_face_gpt2, tmp_path, change_tensors, change_config)
    with pytest.raises(UserError, match=message):
        GPT2Model.from_pretrained(str(folder))


@pytest.mark.parametrize("thing", [{"model_state_dict": {}, "epoch": 3}, [torch.ones(2)], torch.ones(3)], ids=str)
def test_a_file_that_is_no_model_says_what_it_is(hugging_face_gpt2, tmp_path, thing):
    hugging_face_gpt2.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(thing, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="in place of a model's tensors, as a training checkpoint does"):
        GPT2Model.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_number_that_is_not_finite_is_seen_wherever_it_stands(dtype):
    tensor = torch.randn(3, 700).to(dtype)
    assert all_finite(tensor) and all_finite(tensor[:0]) and all_finite(tensor[0, 0])
    for place, value in itertools.product((0, 699, 1400, 2099), (math.nan, math.inf, -math.inf)):
        damaged = tensor.clone()
        damaged.view(-1)[place] = value
        assert not all_finite(damaged)
