"""GPT-2 against transformers, padding, and the checkpoint formats."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from config import MODEL_SIZES, GPT2Config
from errors import UserError
from formats.hugging_face import save_pretrained
from models.gpt2 import GPT2Model
from modules.attention import CausalSelfAttention, attention_mask_for, reference_attention
from tests.conftest import make_hugging_face_gpt2


def logits_of(gpt2, input_ids, attention_mask=None):
    with torch.no_grad():
        return gpt2.hidden_state_to_token(gpt2(input_ids, attention_mask)["last_hidden_state"])


def hugging_face_logits(model, input_ids, attention_mask=None):
    positions = None if attention_mask is None else (attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids, attention_mask=attention_mask, position_ids=positions).logits


def assert_close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


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


def test_fused_attention_equals_the_reference():
    attention = CausalSelfAttention(GPT2Config(hidden_size=32, num_attention_heads=4)).eval()
    query, key, value = torch.randn(3, 2, 4, 11, 8)
    padding = torch.ones(2, 11, dtype=torch.long)
    padding[0, :4] = 0
    mask = attention_mask_for(padding, 11)
    assert_close(attention.attend(query, key, value, mask), reference_attention(query, key, value, mask), 1e-6)
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    assert_close(attention.attend(query, key, value), reference_attention(query, key, value, causal), 1e-6)


def test_mask_against_a_loop():
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]])
    for num_queries in (1, 3, 5):
        mask = attention_mask_for(padding, num_queries)
        for row in range(4):
            for query in range(5 - num_queries, 5):
                for key in range(5):
                    expected = key == query or (key < query and padding[row, key] == 1)
                    assert mask[row, 0, query - 5 + num_queries, key] == expected


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


# --- checkpoints ------------------------------------------------------------------------------------------------------


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
        ("broken config", "not valid JSON"),
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


def test_hub_models_fail_fast_and_name_the_alternative_without_network(monkeypatch, tmp_path):
    import time

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(UserError, match="--model_path a local folder"):
        GPT2Model.from_pretrained("gpt2-medium")
    assert time.perf_counter() - start < 5
    with pytest.raises(UserError, match="does not exist"):
        GPT2Model.from_pretrained("./no/such/folder")


def test_a_text_longer_than_the_context_is_refused(gpt2):
    with pytest.raises(UserError, match="257 tokens do not fit: the model's context is 256"):
        gpt2(torch.zeros(1, 257, dtype=torch.long))
