"""peft's folders as peft reads them, or refused by name: fields, patterns, targets, shapes, numbers.

The oracle is peft itself: its own logits on the same folder, and its own functions for matching names.
"""

import copy
import dataclasses
import json
import shutil

import peft
import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from errors import UserError
from formats import peft_config
from formats.peft import read_folder
from formats.peft_config import check_fields, is_targeted, pattern_value, scales_input
from tests.tiny import make_hugging_face_gpt2
from tuning.attach import attach
from tuning.portable import from_peft
from tuning.state import load_tuning

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of what the tests are about
IDS = torch.arange(40).view(2, 20) * 31 % 8600
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NAMES = [f"{prefix}h.{layer}.{linear}" for prefix in ("transformer.", "") for layer in (0, 1, 11) for linear in LINEARS]
EVERY = ["c_attn", "c_proj", "c_fc"]


def lora(**options):
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7, "target_modules": EVERY} | options)


def adalora(**options):
    return peft.AdaLoraConfig(
        **{"task_type": "CAUSAL_LM", "init_r": 4, "target_r": 2, "total_step": 9, "target_modules": EVERY} | options
    )


def ia3(**options):
    return peft.IA3Config(**{"task_type": "CAUSAL_LM"} | options)


def prompt(kind=peft.PromptTuningConfig, **options):
    return kind(**{"task_type": "CAUSAL_LM", "num_virtual_tokens": 5} | options)


KINDS = {
    "LORA": lora(),
    "ADALORA": adalora(),
    "IA3": ia3(),
    "PROMPT_TUNING": prompt(),
    "P_TUNING": prompt(peft.PromptEncoderConfig, encoder_hidden_size=6),
    "PREFIX_TUNING": prompt(peft.PrefixTuningConfig),
}


@torch.no_grad()
def save_adapter(base, config, folder, fresh=False):
    """A folder that peft saved, with random tensors unless fresh; returns peft's logits."""
    torch.manual_seed(2)
    theirs = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).eval()
    for p in theirs.parameters():
        if p.requires_grad and not fresh:
            p.normal_(std=0.2)
    theirs.save_pretrained(folder)
    return peft_logits(base, folder)


@torch.no_grad()
def peft_logits(base, folder):
    """What peft computes with a saved folder on the original base."""
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    return theirs(input_ids=IDS)[0][:, -IDS.size(1) :]


@torch.no_grad()
def our_logits(gpt2, folder):
    gpt2 = copy.deepcopy(gpt2)
    methods, tensors = from_peft(*read_folder(folder), gpt2.config)
    attach(gpt2, methods)
    load_tuning(gpt2, tensors)
    return gpt2.hidden_state_to_token(gpt2.eval()(IDS)["last_hidden_state"])


@pytest.fixture(scope="module")
def made(hugging_face_gpt2, tmp_path_factory):
    """{peft_type: a folder of it}, each made once."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        save_adapter(hugging_face_gpt2, KINDS[kind], folder)
    return folders


@pytest.fixture
def folder_of(made, tmp_path):
    """A copy of such a folder, to be changed."""
    return lambda kind: shutil.copytree(made[kind], tmp_path / kind)


def rewrite(folder, change_record=None, change_tensors=None):
    """Change what a folder says. change_record: fields, or None to remove one."""
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    record = json.loads(path.read_text()) | (change_record or {})
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))
    if change_tensors:
        save_file(change_tensors(load_file(weights)), weights)


def refusal(gpt2, folder):
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as error:
        from_peft(*read_folder(folder), gpt2.config)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- matching names ---------------------------------------------------------------------------------------------------

PATTERNS = (
    "c_attn", "attn.c_attn", "h.0.attn.c_attn", "transformer.h.0.attn.c_attn", r"h\.[01]\.attn\.c_attn", ".*", "attn",
    "c_fc|c_attn", r"h.1\d?.mlp.c_fc", "_attn", r".*\.mlp\.c_proj", "(?:c_proj)", "", "h.0", r"\w+", "c_proj$", "^c_fc",
    r"transformer\.h\.(0|11)\..*", "mlp.c_proj", "C_ATTN", r"h\.0\..*c_proj",
)  # fmt: skip


@pytest.mark.parametrize("first", PATTERNS)
def test_patterns_are_matched_as_peft_does(first):
    for second in PATTERNS:
        pattern = {first: 5, second: 6}
        for name in NAMES:
            assert pattern_value(pattern, name, 1) == pattern.get(get_pattern_key(pattern, name), 1), (pattern, name)


CHOICES = [{"target_modules": one} for one in (*PATTERNS[:-1], ["c_attn"], ["mlp.c_proj", "_fc"], [], NAMES[:3])]
CHOICES += [
    {"target_modules": EVERY, "layers_to_transform": layers, "layers_pattern": pattern}
    for layers in (None, 0, 1, [0, 11], [], [5])
    for pattern in (None, "h", ["h"], ["blocks", "h"], "", [], "blocks", r"\w")
]
CHOICES += [{"target_modules": EVERY, "exclude_modules": out} for out in (None, [], ["mlp.c_proj"], r".*c_proj", "h")]
CHOICES += [{"target_modules": r".*c_attn", "layers_to_transform": None, "exclude_modules": [NAMES[0]]}]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_targets_are_chosen_as_peft_does(choice):
    config = peft.LoraConfig()
    for name, value in choice.items():
        setattr(config, name, value)
    for name in NAMES:
        theirs = check_target_module_exists(config, name)
        assert is_targeted({"peft_type": "LORA"} | choice, name) == (bool(theirs) and "Excluded" not in repr(theirs))


@pytest.mark.parametrize("modules", [*PATTERNS, ["c_proj"], ["mlp.c_proj"], ["p.c_proj", "c_fc"], []], ids=str)
def test_feed_forward_modules_are_matched_as_peft_does(modules):
    config = ia3(target_modules=EVERY, feedforward_modules=EVERY)
    config.feedforward_modules = modules
    for name in NAMES:
        theirs = peft.IA3Model._check_target_module_feedforward(config, name)
        assert scales_input({"feedforward_modules": modules}, name) == theirs


# --- the same logits --------------------------------------------------------------------------------------------------

READ = {
    "alpha of one layer": lora(alpha_pattern={"h.0.attn.c_attn": 30}),
    "alpha by expression": lora(alpha_pattern={r"h\.[01]\.mlp\.c_fc": 1, r".*c_proj": 0.5}),
    "alpha and rank by layer": lora(alpha_pattern={"h.1.attn.c_attn": 5}, rank_pattern={"h.[02].attn.c_attn": 6}),
    "rank-stabilised": lora(use_rslora=True, rank_pattern={"h.2.mlp.c_proj": 1}, alpha_pattern={"c_fc": 2}),
    "first pattern holds": lora(alpha_pattern={"c_attn": 2, "h.0.attn.c_attn": 50}),
    "no scaling": lora(lora_alpha=0),
    "no scaling in one layer": lora(alpha_pattern={"h.0.attn.c_attn": 0}),
    "negative scaling": lora(lora_alpha=-4, alpha_pattern={"h.1.mlp.c_fc": 3}),
    "one layer": lora(layers_to_transform=1),
    "some layers": lora(layers_to_transform=[0, 2], layers_pattern="h", target_modules=["c_attn", "mlp.c_proj"]),
    "excluded": lora(exclude_modules=["mlp.c_proj"]),
    "excluded by expression": lora(exclude_modules=r".*h\.1\..*"),
    "targets by expression": lora(target_modules=r".*\.h\.[12]\.(attn\.c_attn|mlp\.c_fc)"),
    "all-linear": lora(target_modules="all-linear"),
    "default targets": lora(target_modules=None),
    "full names": lora(target_modules=["transformer.h.0.attn.c_attn", "transformer.h.2.mlp.c_fc"]),
    "gaussian start": lora(init_lora_weights="gaussian"),
    "orthogonal start": lora(init_lora_weights="orthogonal", r=4),
    "no start": lora(init_lora_weights=False),
    "adalora, alpha 0": adalora(lora_alpha=0),
    "adalora, alpha below 0": adalora(lora_alpha=-3),
    "adalora, some layers": adalora(target_modules=["c_fc"]),
    "ia3": ia3(),
    "ia3, feed-forward by expression": ia3(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=r".*mlp\.c_proj"
    ),
    "ia3, targets by expression": ia3(target_modules=r".*(c_attn|mlp\.c_proj)", feedforward_modules=["mlp.c_proj"]),
    "ia3, one module": ia3(target_modules=["transformer.h.1.attn.c_attn"], feedforward_modules=[]),
    "ia3, all-linear": ia3(target_modules="all-linear", feedforward_modules=r".*mlp\.c_proj"),
    "ia3, excluded": ia3(exclude_modules=r".*h\.0\..*"),
    "prompt": KINDS["PROMPT_TUNING"],
    "p-tuning": KINDS["P_TUNING"],
    "prefix": KINDS["PREFIX_TUNING"],
    "prefix from zero": prompt(peft.PrefixTuningConfig, init_weights="zero"),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_gives_pefts_logits(gpt2, hugging_face_gpt2, tmp_path, name):
    expected = save_adapter(hugging_face_gpt2, READ[name], tmp_path)
    torch.testing.assert_close(our_logits(gpt2, tmp_path), expected, atol=1e-5, rtol=1e-5)


FRESH = {
    "lora": lora(),
    "lora on c_attn": lora(target_modules=["c_attn"]),
    "adalora": adalora(),
    "adalora on c_attn": adalora(target_modules=["c_attn"]),
    "ia3": ia3(),
}


@pytest.mark.parametrize("name", FRESH)
def test_an_adapter_before_its_first_step_is_read(gpt2, hugging_face_gpt2, tmp_path, name):
    expected = save_adapter(hugging_face_gpt2, FRESH[name], tmp_path, fresh=True)
    torch.testing.assert_close(our_logits(gpt2, tmp_path), expected, atol=1e-5, rtol=1e-5)


def test_an_adalora_with_ranks_taken_away_is_read(gpt2, hugging_face_gpt2, tmp_path):
    save_adapter(hugging_face_gpt2, adalora(), tmp_path)
    keep = {"transformer.h.0.attn.c_attn": [True, False, True, False], "transformer.h.2.mlp.c_fc": [False] * 4}

    def resize(tensors):
        for name, mask in keep.items():
            for kind in "ABE":
                key = f"base_model.model.{name}.lora_{kind}"
                tensors[key] = (tensors[key][:, mask] if kind == "B" else tensors[key][mask]).contiguous()
        return tensors

    rewrite(tmp_path, {"rank_pattern": {f"{name}.lora_E": mask for name, mask in keep.items()}}, resize)
    torch.testing.assert_close(our_logits(gpt2, tmp_path), peft_logits(hugging_face_gpt2, tmp_path), atol=1e-5, rtol=0)
    rewrite(tmp_path, {"rank_pattern": None})
    assert "has rank 2, adapter_config.json says 4" in refusal(gpt2, tmp_path)


@pytest.mark.parametrize("config", [lora(task_type=None), ia3(task_type=None)], ids=["lora", "ia3"])
def test_names_of_gpt2model_are_read(gpt2, hugging_face_gpt2, tmp_path, config):
    states = save_adapter(hugging_face_gpt2.transformer, config, tmp_path)
    expected = states @ hugging_face_gpt2.lm_head.weight.T
    torch.testing.assert_close(our_logits(gpt2, tmp_path), expected.detach(), atol=1e-5, rtol=1e-5)


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_installed_peft_has_a_verdict(kind):
    """Listed as harmless or handled, with a reason; or harmless at peft's default alone, and refused by name else."""
    config, allowed = KINDS[kind], peft_config.ALWAYS | peft_config.HARMLESS[kind]
    assert all(allowed.values())
    for field in dataclasses.fields(config):
        if field.name not in allowed:
            for value in ("something", 3, {"a": 1}, ["a"]):
                with pytest.raises(UserError, match=f"^{field.name} .* cannot be imported: .+"):
                    check_fields({"peft_type": kind, field.name: value})
    for field in config.__dataclass_fields__:
        assert field in allowed or field in peft_config.PLAIN or not getattr(config, field), field


REFUSED = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa with steps": {"init_lora_weights": "pissa_niter_16"},
    "olora": {"init_lora_weights": "olora"},
    "eva": {"init_lora_weights": "eva"},
    "loftq": {"init_lora_weights": "loftq"},
    "corda": {"init_lora_weights": "corda"},
    "mica": {"init_lora_weights": "mica"},
    "dora": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "biases of B": {"lora_bias": True},
    "saved modules": {"modules_to_save": ["lm_head"]},
    "replicated layers": {"layer_replication": [[0, 2], [1, 3]]},
    "parameters": {"target_parameters": ["mlp.weight"]},
    "tokens": {"trainable_token_indices": [5]},
    "megatron": {"megatron_config": {"a": 1}},
    "qalora": {"use_qalora": True},
    "arrow": {"arrow_config": {"top_k": 3}},
    "invoked": {"alora_invocation_tokens": [3]},
    "tomorrow": {"a_field_of_tomorrow": 0.5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_says_something_is_refused_by_name(gpt2, folder_of, name):
    folder = folder_of("LORA")
    rewrite(folder, REFUSED[name])
    assert refusal(gpt2, folder).startswith(f"{next(iter(REFUSED[name]))} ")


WRONG = [
    {"lora_alpha": "7"}, {"lora_alpha": [7]}, {"lora_alpha": True}, {"lora_alpha": float("nan")}, {"lora_alpha": 1e300},
    {"r": "3"}, {"r": 4}, {"r": -3}, {"r": 2**70}, {"alpha_pattern": []}, {"alpha_pattern": {"c_attn": "7"}},
    {"alpha_pattern": {"c_attn": None}}, {"alpha_pattern": {"(": 3}}, {"alpha_pattern": {"a{99999999999}": 3}},
    {"rank_pattern": {"c_attn": 5}}, {"rank_pattern": {"c_attn": [True]}}, {"target_modules": 5},
    {"target_modules": [5]},
    {"target_modules": "("}, {"target_modules": ["c_attn"]}, {"target_modules": "nothing"},
    {"layers_to_transform": "1"},
    {"layers_to_transform": [0]}, {"layers_pattern": 3}, {"exclude_modules": ["c_fc"]}, {"lora_dropout": 1.5},
    {"lora_dropout": "a"}, {"use_rslora": "yes"}, {"peft_type": ["LORA"]}, {"peft_type": "LOHA"}, {"peft_type": None},
    {"peft_type": ...}, {"task_type": 3}, {"base_model_name_or_path": 3}, {"lora_alpha": ...},
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_field_that_cannot_be_is_one_line(gpt2, folder_of, change):
    folder = folder_of("LORA")
    rewrite(folder, change)
    refusal(gpt2, folder)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize(
    "change",
    [{"task_type": None}, {"task_type": "SEQ_2_SEQ_LM"}, {"num_virtual_tokens": 4}, {"num_layers": 2},
     {"token_dim": 16}, {"num_attention_heads": 2}, {"num_transformer_submodules": 2}],
    ids=str,
)  # fmt: skip
def test_virtual_tokens_that_do_not_fit_are_refused(gpt2, folder_of, kind, change):
    folder = folder_of(kind)
    rewrite(folder, change)
    assert str(next(iter(change.values()))) in refusal(gpt2, folder)


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [{"n_embd": 48}, {"n_layer": 5}, {"n_layer": 2}], ids=str)
def test_an_adapter_of_another_base_is_one_line_with_both_sizes(gpt2, tmp_path, kind, shape):
    save_adapter(make_hugging_face_gpt2(**shape), KINDS[kind], tmp_path)
    line = refusal(gpt2, tmp_path)
    sizes = [("48", "32"), ("144", "96"), ("288", "192")] if "n_embd" in shape else [(str(shape["n_layer"]), "3")]
    tunes_more = "adapter_config.json tunes transformer.h.2." in line
    assert any(theirs in line and ours in line for theirs, ours in sizes) or "layer 4" in line or tunes_more


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["nan", "inf", "whole", "shape", "flat", "lost", "extra"])
def test_damaged_tensors_are_refused(gpt2, folder_of, kind, damage):
    folder = folder_of(kind)

    def change(tensors):
        key = sorted(tensors)[-1]
        if damage in ("nan", "inf"):
            tensors[key].view(-1)[3] = float(damage)
        if damage == "whole":
            tensors[key] = tensors[key].long()
        if damage == "shape":
            tensors[key] = torch.cat([tensors[key], tensors[key]], 1).contiguous()
        if damage == "flat":
            tensors[key] = torch.tensor(1.0)
        if damage == "lost":
            del tensors[key]
        if damage == "extra":
            tensors["base_model.model.score.weight"] = torch.ones(2, 2)
        return tensors

    rewrite(folder, None, change)
    words = {"nan": "not finite", "inf": "not finite", "whole": "int64", "extra": "score.weight has no place here"}
    assert words.get(damage, "") in refusal(gpt2, folder)


def test_what_peft_would_leave_out_is_refused(gpt2, hugging_face_gpt2, tmp_path):
    save_adapter(hugging_face_gpt2, lora(target_modules=["c_attn"]), tmp_path)
    rewrite(tmp_path, {"target_modules": ["c_fc"]})
    assert "target_modules and its like do not name it" in refusal(gpt2, tmp_path)
    rewrite(tmp_path, {"target_modules": ["c_attn", "c_fc"]})
    assert "tunes transformer.h.0.mlp.c_fc, but there is no tensor of it" in refusal(gpt2, tmp_path)
    rewrite(tmp_path, {"target_modules": ["c_attn"]}, lambda tensors: {
        key.replace("transformer.", "") if ".h.1." in key else key: tensor for key, tensor in tensors.items()
    })  # fmt: skip
    assert "some tensors' names begin with transformer." in refusal(gpt2, tmp_path)
    rewrite(tmp_path, None, lambda tensors: tensors | {
        key.replace("model.h", "model.transformer.h"): tensor.clone() for key, tensor in tensors.items()
    })  # fmt: skip
    assert "is there twice" in refusal(gpt2, tmp_path)
