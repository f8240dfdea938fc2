"""Tuned tensors in peft's folders against peft's own logits, there and back."""

import copy
import json

import peft
import pytest
import torch
from peft.utils.other import get_pattern_key

from config import (
    AdaLoRASettings,
    AdapterSettings,
    IA3Settings,
    LlamaAdapterSettings,
    LoRASettings,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
    TopLayersSettings,
)
from errors import UserError
from formats import peft_config
from formats.peft import read_folder, write_folder
from formats.peft_config import check_fields, pattern_value
from tests.peft_hosts import their_logits
from tests.tiny import make_hugging_face_gpt2
from tests.tuned import ALL, INPUT_IDS
from tuning.attach import attach
from tuning.portable import from_peft, prompt_tensors, to_peft
from tuning.state import load_tuning, trainable_state_dict

METHODS = {
    "lora": {"lora": LoRASettings(lora_rank=3, lora_alpha=7, lora_targets=ALL)},
    "lora on query and value": {"lora": LoRASettings(lora_rank=3, lora_alpha=7, lora_targets="query,value")},
    "lora on key and out_dense": {"lora": LoRASettings(lora_rank=3, lora_targets="key,out_dense")},
    "rank-stabilised": {
        "lora": LoRASettings(lora_rank=3, lora_rank_stabilized=True, lora_targets="value,interm_dense")
    },
    "adalora": {"adalora": AdaLoRASettings(adalora_start_rank=4, adalora_rank=2)},
    "adalora on value and out_dense": {
        "adalora": AdaLoRASettings(adalora_start_rank=4, adalora_rank=2, adalora_targets="value,out_dense")
    },
    "ia3": {"ia3": IA3Settings()},
    "ia3 everywhere": {"ia3": IA3Settings(ia3_targets=ALL)},
    "prompt": {"prompt": PromptSettings(prompt_length=7)},
    "ptuning": {"ptuning": PTuningSettings(ptuning_length=7, ptuning_hidden=6)},
    "prefix": {"prefix": PrefixSettings(prefix_length=7)},
    "prefix, mlp": {"prefix": PrefixSettings(prefix_length=7, prefix_hidden=6)},
}


def tuned(gpt2, methods):
    """gpt2 with the methods and random trained tensors, in eval mode."""
    attach(gpt2, methods)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in gpt2.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    return gpt2.eval()


@torch.no_grad()
def logits(gpt2):
    return gpt2.hidden_state_to_token(gpt2(INPUT_IDS)["last_hidden_state"])


@pytest.mark.parametrize("choice", METHODS)
def test_what_we_export_gives_peft_our_logits_and_comes_back(gpt2, hugging_face_gpt2, model_folder, tmp_path, choice):
    base = copy.deepcopy(gpt2)
    ours = tuned(gpt2, METHODS[choice])
    tensors = trainable_state_dict(ours) | prompt_tensors(ours)
    write_folder(tmp_path, *to_peft(METHODS[choice], tensors, ours.config, model_folder))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(hugging_face_gpt2), tmp_path).eval()
    torch.testing.assert_close(logits(ours), their_logits(theirs), atol=1e-5, rtol=1e-5)

    methods, back = from_peft(*read_folder(tmp_path), ours.config)
    attach(base, methods)
    load_tuning(base, back)
    torch.testing.assert_close(logits(base.eval()), logits(ours), atol=1e-5, rtol=1e-5)
    if "lora" in methods or "ia3" in methods:  # the very tensors
        before = trainable_state_dict(ours)
        assert before.keys() == back.keys() and all(torch.equal(before[name], back[name]) for name in back)


THEIRS = {
    "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=9, target_modules=["c_attn"], fan_in_fan_out=True),
    "lora, patterns": peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=5,
        lora_alpha=9,
        target_modules=["c_attn", "c_fc", "attn.c_proj"],
        rank_pattern={"c_fc": 2},
        alpha_pattern={"c_attn": 3},
        fan_in_fan_out=True,
    ),
    "rslora": peft.LoraConfig(
        task_type="CAUSAL_LM", r=5, lora_alpha=9, use_rslora=True, target_modules=["c_proj"], fan_in_fan_out=True
    ),
    "adalora": peft.AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=5,
        target_r=3,
        total_step=9,
        target_modules=["c_attn", "c_fc"],
        fan_in_fan_out=True,
    ),
    "ia3": peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True,
    ),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
    "ptuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=7, encoder_hidden_size=6),
    "prefix": peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=True, encoder_hidden_size=6
    ),
}


@pytest.mark.parametrize("choice", THEIRS)
def test_what_peft_saves_gives_us_its_logits(gpt2, hugging_face_gpt2, tmp_path, choice):
    theirs = peft.get_peft_model(copy.deepcopy(hugging_face_gpt2), THEIRS[choice]).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path)
    methods, tensors = from_peft(*read_folder(tmp_path), gpt2.config)
    attach(gpt2, methods)
    load_tuning(gpt2, tensors)
    torch.testing.assert_close(logits(gpt2.eval()), their_logits(theirs), atol=1e-5, rtol=1e-5)


def test_qlora_is_exported_as_lora_over_a_base_in_full_precision(gpt2, tmp_path):
    settings = LoRASettings(lora_rank=3, lora_targets="query,value")
    ours = tuned(gpt2, {"qlora": settings})
    exports = [to_peft({name: settings}, trainable_state_dict(ours), ours.config, "base") for name in ("qlora", "lora")]
    assert exports[0][0] == exports[1][0] and exports[0][1].keys() == exports[1][1].keys()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"adapter": AdapterSettings()}, "adapter cannot be exported: peft has no bottleneck adapters"),
        ({"bitfit": None}, "bitfit cannot be exported: peft has no method that trains biases alone"),
        ({"top_layers": TopLayersSettings()}, "top_layers cannot be exported: peft has no method that trains whole"),
        ({"llama_adapter": LlamaAdapterSettings()}, "llama_adapter cannot be exported: peft's LLaMA-Adapter"),
        ({"lora": LoRASettings(), "prompt": PromptSettings()}, "lora and prompt cannot be exported: peft holds one"),
        ({}, "a full fine-tuning cannot be exported"),
        ({"lora": LoRASettings(lora_bias="all")}, "bias cannot be exported: peft has no place for it"),
    ],
)
def test_what_peft_cannot_say_is_refused_with_the_reason(gpt2, methods, message):
    attach(gpt2, methods)
    with pytest.raises(UserError, match=message):
        to_peft(methods, trainable_state_dict(gpt2), gpt2.config, "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type VERA is not known here"),
        ({"use_dora": True}, "use_dora True cannot be imported: its magnitudes"),
        ({"bias": "all"}, "bias 'all' cannot be imported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_alpha": None}, "names no lora_alpha: peft would take its default in silence"),
        ({"peft_type": "PROMPT_TUNING"}, "r 3 cannot be imported"),
    ],
)
def test_what_we_cannot_say_is_refused_with_the_reason(gpt2, changes, message):
    methods = METHODS["lora"]
    record, tensors = to_peft(methods, trainable_state_dict(tuned(gpt2, methods)), gpt2.config, "base")
    with pytest.raises(UserError, match=message):
        from_peft(record | changes, tensors, gpt2.config)


def test_a_damaged_or_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="is no peft folder"):
        read_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="is no peft folder"):
        read_folder(tmp_path)


# --- adapter_config.json as peft reads it -----------------------------------------------------------------------------

CONFIGS = (peft.LoraConfig, peft.AdaLoraConfig, peft.IA3Config, peft.PromptTuningConfig, peft.PromptEncoderConfig)


@pytest.mark.parametrize("config_class", [*CONFIGS, peft.PrefixTuningConfig])
def test_every_field_that_peft_knows_has_a_verdict(config_class):
    """Harmless with any value, or harmless by peft's default and refused by name with another."""
    options = {"total_step": 1} if config_class is peft.AdaLoraConfig else {}
    record = json.loads(json.dumps(config_class(**options).to_dict(), default=str))
    kind = record["peft_type"] = config_class(**options).peft_type.value
    check_fields(record)  # what peft writes by default
    harmless = peft_config.ALWAYS | peft_config.HARMLESS[kind]
    for name in record.keys() - harmless.keys():
        with pytest.raises(UserError, match=f"{name} 'something' cannot be imported"):
            check_fields(record | {name: "something"})
    with pytest.raises(UserError, match="a_field_of_tomorrow 1 cannot be imported: it is not known here"):
        check_fields(record | {"a_field_of_tomorrow": 1})


PATTERNS = ("h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "c_attn", r"h\.[01]\.attn\.c_attn", "attn", "c_fc|c_attn")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_alpha_and_rank_patterns_are_matched_as_peft_does(gpt2, hugging_face_gpt2, tmp_path, pattern):
    for index in range(3):
        for module in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"):
            name = f"transformer.h.{index}.{module}"
            theirs = {pattern: 7}.get(get_pattern_key([pattern], name), 1)
            assert pattern_value({pattern: 7}, name, 1) == theirs, name
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    config.alpha_pattern, config.rank_pattern, config.use_rslora = {pattern: 3}, {pattern: 4}, True
    compare_import(gpt2, hugging_face_gpt2, config, tmp_path)


def compare_import(gpt2, base, config, folder):
    """peft's own logits against ours, of an adapter that peft saved."""
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.normal_(std=0.2)
        expected = their_logits(theirs)
    theirs.save_pretrained(folder)
    methods, tensors = from_peft(*read_folder(folder), gpt2.config)
    attach(gpt2, methods)
    load_tuning(gpt2, tensors)
    with torch.no_grad():
        torch.testing.assert_close(logits(gpt2.eval()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("feedforward", [["mlp.c_proj"], r".*\.mlp\.c_proj"], ids=str)
def test_ia3s_feedforward_modules_may_be_a_regular_expression(gpt2, hugging_face_gpt2, tmp_path, feedforward):
    config = peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=feedforward)
    compare_import(gpt2, hugging_face_gpt2, config, tmp_path)


def test_an_adapter_of_gpt2model_without_a_head_is_read(gpt2, hugging_face_gpt2, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(copy.deepcopy(hugging_face_gpt2.transformer), config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.normal_(std=0.2)
        expected = theirs(INPUT_IDS).last_hidden_state
    theirs.save_pretrained(tmp_path)
    methods, tensors = from_peft(*read_folder(tmp_path), gpt2.config)
    attach(gpt2, methods)
    load_tuning(gpt2, tensors)
    with torch.no_grad():
        torch.testing.assert_close(gpt2.eval()(INPUT_IDS)["last_hidden_state"], expected, atol=1e-5, rtol=1e-5)


def test_a_start_that_changed_the_base_is_refused(gpt2, hugging_face_gpt2, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights="pissa", fan_in_fan_out=True)
    peft.get_peft_model(copy.deepcopy(hugging_face_gpt2), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="init_lora_weights 'pissa' cannot be imported: such a start may have changed"):
        from_peft(*read_folder(tmp_path), gpt2.config)


@pytest.mark.parametrize("shape", [{"n_embd": 48}, {"n_layer": 5}, {"n_inner": 64}], ids=str)
def test_an_adapter_of_another_base_is_one_line(gpt2, tmp_path, shape):
    base = make_hugging_face_gpt2(**shape)
    config = peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True)
    peft.get_peft_model(base, config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has shape \[.*, this base model needs \[|the model has 3 layers"):
        from_peft(*read_folder(tmp_path), gpt2.config)
