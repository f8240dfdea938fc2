"""Model folders as transformers reads them, or refused with the true reason; the hub when it is slow or not there.

The oracle is transformers on the same folder: its logits, its ids.
"""

import copy
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

import exchange
import formats.hugging_face
from cli.flags import parse_flags
from data.download import DownloadSettings
from datasets import load_tokenizer
from errors import UserError
from exchange import whole_folder
from formats import hub
from formats.hub import find_model, weight_files
from formats.hugging_face import _ALIASES, _FIELDS, _REQUIRED, read_config
from models.gpt2 import GPT2Model
from tests.tiny import make_hugging_face_gpt2

ROOT = Path(__file__).resolve().parents[1]
IDS = torch.arange(24).view(2, 12) * 17 % 8600


@torch.no_grad()
def our_logits(folder):
    gpt2 = GPT2Model.from_pretrained(str(folder)).eval()
    return gpt2.hidden_state_to_token(gpt2(IDS)["last_hidden_state"])


@torch.no_grad()
def their_logits(folder):
    return transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


def saved(model, folder, change_tensors=None, change_config=None):
    """The model as transformers saves it, with changes to its tensors and its config.json (... removes a field)."""
    model.save_pretrained(folder)
    if change_tensors:
        tensors = change_tensors({name: t.clone() for name, t in load_file(folder / "model.safetensors").items()})
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | (change_config or {})
    (folder / "config.json").write_text(json.dumps({name: v for name, v in config.items() if v is not ...}))
    return folder


def refusal(function, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", _ALIASES)
def test_a_field_by_its_other_name_is_read(hugging_face_gpt2, tmp_path, alias):
    name = _ALIASES[alias]
    value = getattr(hugging_face_gpt2.config, name)
    folder = saved(hugging_face_gpt2, tmp_path, None, {name: ..., alias: value})
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=1e-5)
    saved(hugging_face_gpt2, tmp_path, None, {alias: 2 * value})
    assert f"{name} is {value}, {alias} {2 * value}: which of them holds?" in refusal(read_config, folder)


def test_transformers_has_no_other_names():
    assert transformers.GPT2Config.attribute_map == _ALIASES


@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"])
def test_gelu_by_its_other_names_is_read(hugging_face_gpt2, tmp_path, name):
    folder = saved(hugging_face_gpt2, tmp_path, None, {"activation_function": name})
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=1e-5)


OTHER = {  # of every field without a verdict of its own: another value
    "dtype": "float16", "summary_type": "mean", "summary_use_proj": False, "summary_activation": "tanh",
    "summary_proj_to_labels": False, "summary_first_dropout": 0.7, "use_cache": False, "bos_token_id": 3,
    "pad_token_id": 5, "architectures": ["GPT2DoubleHeadsModel"], "torch_dtype": "float16", "n_ctx": 99,
    "layer_norm_eps": 0.5, "hidden_dropout_prob": 0.5, "task_specific_params": {"a": 1}, "chunk_size_feed_forward": 3,
    "output_hidden_states": True, "transformers_version": "4.1", "is_decoder": True, "id2label": {"0": "a"},
    "label2id": {"a": 0}, "problem_type": "regression", "name_or_path": "x", "_name_or_path": "x", "cross_attention": 1,
    "gradient_checkpointing": False, "n_special": 0, "predict_special_tokens": True, "temperature": 0.1, "my_own": [],
    "return_dict": False, "output_attentions": False,
}  # fmt: skip


def test_every_field_of_transformers_config_has_a_verdict(hugging_face_gpt2, tmp_path):
    """Read, required to have one value, or shown here to change no logit of transformers'."""
    known = set(json.loads(transformers.GPT2Config().to_json_string(use_diff=False)))
    assert not known - set(_FIELDS) - set(_ALIASES) - set(_REQUIRED) - set(OTHER)
    folder = saved(hugging_face_gpt2, tmp_path)
    expected = their_logits(folder)
    saved(hugging_face_gpt2, tmp_path, None, {name: value for name, value in OTHER.items() if name != "return_dict"})
    torch.testing.assert_close(their_logits(folder), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_logits(folder), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "shape", [{"n_inner": 20}, {"layer_norm_epsilon": 0.3}, {"n_head": 8}, {"n_positions": 99}], ids=str
)
def test_what_a_config_says_is_computed(tmp_path, shape):
    folder = saved(make_hugging_face_gpt2(**shape), tmp_path)
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=1e-5)


OTHERS = {
    "activation_function": "gelu", "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True, "add_cross_attention": True, "tie_word_embeddings": False, "model_type": "gptj",
    "quantization_config": {"bits": 4}, "pruned_heads": {"0": [1]}, "is_encoder_decoder": True,
}  # fmt: skip


@pytest.mark.parametrize("name", _REQUIRED)
def test_another_variant_is_refused_by_name(hugging_face_gpt2, tmp_path, name):
    folder = saved(hugging_face_gpt2, tmp_path, None, {name: OTHERS[name]})
    assert f"{name} is {OTHERS[name]!r}, this GPT-2 has" in refusal(read_config, folder)


@pytest.mark.parametrize("name", [*_FIELDS, *_ALIASES])
def test_a_number_that_cannot_be_is_one_line(hugging_face_gpt2, tmp_path, name):
    theirs = _ALIASES.get(name, name)
    for value in ("4", [4, 4], {"a": 4}, True, -1, 2**31, 10**400, float("nan"), float("inf"), "x\ny" * 99):
        if theirs == "initializer_range" and value is True:
            continue
        folder = saved(hugging_face_gpt2, tmp_path, None, {theirs: ..., name: value})
        line = refusal(GPT2Model.from_pretrained, str(folder))
        assert (name in line or theirs in line) and len(line) < 400, line


def test_a_config_that_asks_for_more_than_the_weights_takes_no_memory(hugging_face_gpt2, tmp_path):
    for name in ("n_layer", "n_embd", "vocab_size", "n_positions", "n_inner"):
        folder = saved(hugging_face_gpt2, tmp_path, None, {name: 2**30})
        begin = time.perf_counter()
        assert "config.json asks for" in refusal(GPT2Model.from_pretrained, str(folder))
        assert time.perf_counter() - begin < 2
    folder = saved(hugging_face_gpt2, tmp_path, None, {"n_layer": 2})
    assert "asks for 2 layers, the weights have 3" in refusal(GPT2Model.from_pretrained, str(folder))


def test_the_end_of_text_may_be_a_list_of_one(hugging_face_gpt2, tmp_path):
    assert read_config(saved(hugging_face_gpt2, tmp_path, None, {"eos_token_id": [77]})).eos_token_id == 77


# --- weights ----------------------------------------------------------------------------------------------------------


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        renamed(lambda name: f"module.{name}"),
        renamed(lambda name: f"_orig_mod.module.{name}"),
        renamed(lambda name: name.replace("transformer.", "transformer._orig_mod.")),
        renamed(lambda name: f"module._orig_mod.{name.removeprefix('transformer.')}"),
        renamed(lambda name: name.replace("transformer.wte.", "lm_head.")),
        renamed(lambda name: "module." + name.replace("transformer.wte.", "lm_head.")),
        lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()},
        lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
        lambda tensors: tensors | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
    ],
)
def test_other_names_of_the_same_tensors_are_read(hugging_face_gpt2, tmp_path, change):
    expected = their_logits(saved(hugging_face_gpt2, tmp_path))
    saved(hugging_face_gpt2, tmp_path, change)
    torch.testing.assert_close(our_logits(tmp_path), expected, atol=1e-5, rtol=1e-5)


WTE, FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"


def spoiled(value, name=FC, dtype=torch.float32):
    def change(tensors):
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[7] = value
        return tensors

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (spoiled(float("nan")), f"{FC} holds numbers that are not finite"),
        (spoiled(float("-inf"), "transformer.ln_f.bias"), "transformer.ln_f.bias holds numbers that are not finite"),
        (spoiled(1e300, dtype=torch.float64), "not finite"),
        (spoiled(float("nan"), WTE), f"{WTE} holds numbers that are not finite"),
        (lambda t: t | {FC: t[FC].int()}, "holds whole numbers (int32)"),
        (lambda t: t | {FC: t[FC].bool()}, "holds whole numbers (bool)"),
        (lambda t: t | {FC: t[FC].to(torch.float8_e4m3fn)}, "numbers of a format (float8_e4m3fn)"),
        (lambda t: t | {FC: t[FC].T.contiguous()}, "has shape [128, 32], config.json asks for [32, 128]"),
        (lambda t: t | {FC: torch.tensor(1.0)}, "has shape [], config.json asks for"),
        (
            lambda t: t | {"lm_head.weight": t[WTE] + 1, "module.lm_head.weight": t[WTE].clone()},
            "two tensors are lm_head",
        ),
        (lambda t: t | {"h.0.ln_1.bias": t[WTE][0].clone()}, "two tensors are h.0.ln_1.bias"),
        (lambda t: t | {"lm_head.weight": t[WTE][:-1].clone()}, "lm_head.weight has shape"),
        (lambda t: t | {"score.weight": torch.ones(2)}, "unknown tensor score.weight"),
        (lambda t: t | {"transformer.h.7.ln_1.bias": torch.ones(32)}, "unknown tensor transformer.h.7.ln_1.bias"),
        (lambda t: t | {"a\nb": torch.ones(2)}, "unknown tensor a b"),
        (lambda t: {"a": torch.ones(2)}, "unknown tensor a;"),
        (lambda t: {}, "asks for 3 layers, the weights have 0"),
    ],
)
def test_wrong_tensors_are_refused_by_name(hugging_face_gpt2, tmp_path, change, words):
    assert words in refusal(GPT2Model.from_pretrained, str(saved(hugging_face_gpt2, tmp_path, change)))


class Anything:
    pass


@pytest.mark.parametrize(
    "thing, words",
    [
        ({"model_state_dict": {"a": torch.ones(2)}, "epoch": 3}, "save what it holds as 'model_state_dict' alone"),
        ({"optimizer": {"state": {0: {}}}, "model": {"a": torch.ones(2)}}, "save what it holds as 'model' alone"),
        ({"epoch": 3}, "as a training checkpoint does: give the file with the tensors alone"),
        ([torch.ones(2)], "holds 'a list' beside or in place of a model's tensors"),
        (torch.ones(2), "holds 'a Tensor'"),
        (None, "holds 'a NoneType'"),
        ({3: torch.ones(2)}, "holds 3 beside"),
        ({"a": torch.ones(2, 2).to_sparse()}, "holds 'a' beside"),
        ({"a": torch.ones(2, device="meta")}, "holds 'a' beside"),
        (Anything(), "it holds Python objects, which are never opened"),
        ({}, "asks for 3 layers, the weights have 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_file_that_is_no_model_says_what_it_is(hugging_face_gpt2, tmp_path, thing, words):
    hugging_face_gpt2.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(thing, tmp_path / "pytorch_model.bin")
    assert words in refusal(GPT2Model.from_pretrained, str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<html>", "a web page"),
        (b"", "cannot be read"),
    ],
)
def test_what_came_in_place_of_weights_is_named(hugging_face_gpt2, tmp_path, name, content, words):
    hugging_face_gpt2.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    assert words in refusal(GPT2Model.from_pretrained, str(tmp_path))


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": None}},
     {"weight_map": {"a": "../model.safetensors"}}, {"weight_map": {"a": ""}}, {"weight_map": {"a": "b\0"}},
     {"weight_map": {"a": "absent"}}, {"weight_map": {"a": "/etc/passwd"}}],
    ids=str,
)  # fmt: skip
def test_a_wrong_index_is_one_line(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index.json" in refusal(weight_files, tmp_path)


def test_a_tensor_in_two_shards_is_refused(hugging_face_gpt2, tmp_path):
    folder = saved(hugging_face_gpt2, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({FC: tensors[FC] + 1}, folder / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {FC: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "two tensors are h.1.mlp.c_fc.weight" in refusal(GPT2Model.from_pretrained, str(folder))


# --- tokenizers -------------------------------------------------------------------------------------------------------

TEXT = "yes no <pad> <new>x a <new> b  <|endoftext|> no <sep>, <cls><new>"
NEW = {"content": "<new>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
FOLDERS = {
    "plain": {},
    "added": {"added_tokens": {"<new>": 8600, "<pad>": 8601}},
    "added, in the vocabulary": {"added_tokens": {"<|endoftext|>": 8599, "no": 3919}},
    "map": {"special_tokens_map": {"pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"}},
    "map, with spaces": {
        "special_tokens_map": {"pad_token": {**NEW, "content": "<pad>", "lstrip": True, "rstrip": True}}
    },
    "map and added": {
        "added_tokens": {"<new>": 8600, "<pad>": 8601},
        "special_tokens_map": {"eos_token": "<new>", "pad_token": "<pad>", "additional_special_tokens": ["<sep>"]},
    },
    "config": {"tokenizer_config": {"pad_token": "<pad>", "additional_special_tokens": ["<new>", "<sep>"]}},
    "config, named": {"tokenizer_config": {"foo_token": "<cls>", "extra_special_tokens": {"bar_token": "<sep>"}}},
    "config, listed": {"tokenizer_config": {"added_tokens_decoder": {"8600": NEW}}},
    "config, listed, one word": {"tokenizer_config": {"added_tokens_decoder": {"8600": NEW | {"single_word": True}}}},
    "config, listed, spaces": {"tokenizer_config": {"added_tokens_decoder": {"8600": NEW | {"lstrip": True}}}},
    "config goes before added": {
        "tokenizer_config": {"added_tokens_decoder": {"8600": NEW}},
        "added_tokens": {"<new>": 8601, "<pad>": 8600},
    },
}


@pytest.mark.parametrize("whole", [False, True], ids=["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("name", FOLDERS)
def test_added_tokens_are_read_as_transformers_does(tokenizer_folder, tmp_path, name, whole):
    if whole:
        load_tokenizer(tokenizer_folder).save(str(tmp_path / "tokenizer.json"))
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((tokenizer_folder / file).read_bytes())
    for file, content in FOLDERS[name].items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.encode(TEXT).ids == theirs(TEXT).input_ids and ours.get_vocab() == theirs.get_vocab()


def template(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 8599)]
    )


CUT = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
CHANGES = {  # of tokenizer.json: (path, value, words of the refusal, or "" where it is read as if it were not there)
    "lower case": (("normalizer",), {"type": "Lowercase"}, "changes the text before it encodes it"),
    "another form": (("normalizer",), {"type": "NFC"}, "changes the text before it encodes it"),
    "a space before": (("pre_tokenizer", "add_prefix_space"), True, "cuts the text otherwise"),
    "without its expression": (("pre_tokenizer", "use_regex"), False, "cuts the text otherwise"),
    "by spaces": (("pre_tokenizer",), {"type": "Whitespace"}, "cuts the text otherwise"),
    "uncut": (("pre_tokenizer",), None, "cuts the text otherwise"),
    "at random": (("model", "dropout"), 0.9, "dropout is 0.9"),
    "with a suffix": (("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix is"),
    "with a prefix": (("model", "continuing_subword_prefix"), "##", "continuing_subword_prefix is"),
    "another kind": (("model", "type"), "WordPiece", "cuts the text otherwise"),
    "no vocabulary": (("model", "vocab"), [], "holds no BPE"),
    "no merges": (("model", "merges"), {"a": 1}, "holds no BPE"),
    "another id": (("model", "vocab", "yes"), 99999, "its ids are not 0 to 8599, each once"),
    "an id twice": (("model", "vocab", "yes"), 5, "its ids are not 0 to"),
    "an id as text": (("model", "vocab", "yes"), "8505", "cannot be read"),
    "a negative id": (("model", "vocab", "yes"), -1, "cannot be read"),
    "a merge of nothing": (("model", "merges"), [["qq", "zz"]], "cannot be read"),
    "an added id": (("added_tokens",), [NEW | {"id": 9000}], "the added token '<new>' shall have id 9000, it has 8600"),
    "no decoder": (("decoder",), None, ""),
    "truncation": (("truncation",), CUT, ""),
    "no list of added tokens": (("added_tokens",), [], ""),
    "an unknown token": (("model", "unk_token"), "<|endoftext|>", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_tokenizer_json_says_is_read_or_refused(tokenizer_folder, tmp_path, name):
    plain = load_tokenizer(tokenizer_folder)
    whole, (path, value, words) = json.loads(plain.to_str()), CHANGES[name]
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    if words:
        assert words in refusal(load_tokenizer, tmp_path)
    else:
        loaded = load_tokenizer(tmp_path)
        theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
        assert loaded.encode(TEXT).ids == plain.encode(TEXT).ids == theirs(TEXT).input_ids
        assert loaded.decode(loaded.encode("yes, élan").ids) == "yes, élan"


def test_a_post_processor_is_left_out(tokenizer_folder, tmp_path):
    changed = Tokenizer.from_str(load_tokenizer(tokenizer_folder).to_str())
    template(changed)
    changed.save(str(tmp_path / "tokenizer.json"))
    assert changed.encode("no").ids == [8599, 3919] and load_tokenizer(tmp_path).encode("no").ids == [3919]


@pytest.mark.parametrize("options", [{"add_prefix_space": True}, {"split_special_tokens": True}], ids=str)
def test_options_that_change_the_text_are_refused(tokenizer_folder, tmp_path, options):
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((tokenizer_folder / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    assert f"{next(iter(options))} changes the text" in refusal(load_tokenizer, tmp_path)


def test_a_byte_without_a_token_is_refused(tokenizer_folder, tmp_path):
    vocabulary = json.loads((tokenizer_folder / "vocab.json").read_text())
    vocabulary["<lost>"] = vocabulary.pop("Q")
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_bytes((tokenizer_folder / "merges.txt").read_bytes())
    assert "no token for 1 of the 256 bytes: text would be lost" in refusal(load_tokenizer, tmp_path)


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, any/model, whose files are those of `folder`. It waits `delay` seconds before an answer."""

    folder, delay, sha = None, 0.0, "a" * 40

    def do_GET(self):
        time.sleep(self.delay)
        if self.path.startswith("/api/models/any/model"):
            files = sorted(self.folder.iterdir())
            record = {"id": "any/model", "sha": self.sha, "siblings": [{"rfilename": path.name} for path in files]}
            if "/tree/" in self.path:
                record = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "b" * 40} for f in files]
            return self.answer(200, json.dumps(record).encode())
        file = self.folder / self.path.rpartition("/")[2]
        if "/resolve/" in self.path and file.is_file():
            return self.answer(200, file.read_bytes())
        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status, content, headers=None):
        self.send_response(status)
        etag = {"ETag": f'"{len(content)}-{hash(content) & 0xFFFFFF}"', "X-Repo-Commit": self.sha}
        for name, value in (etag | {"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(model_folder):
    """serve(delay): the address of a hub with the tiny model."""
    servers = []

    def start(delay=0.0):
        handler = type("ThisHub", (Hub,), {"folder": model_folder, "delay": delay})
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(endpoint, cache, model="any/model", **environment):
    """(folder or the error's line, seconds) of find_model in a process of its own."""
    code = (
        "import sys, time\nfrom errors import UserError\nfrom formats.hub import find_model\n"
        "start = time.perf_counter()\n"
        "try:\n    print(find_model(sys.argv[1]))\nexcept UserError as error:\n    print(error)\n"
        "print(time.perf_counter() - start)"
    )
    variables = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE" and "proxy" not in k.lower()}
    variables |= {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, model], env=variables | environment, capture_output=True, text=True, cwd=cache
    )
    assert done.returncode == 0, done.stderr
    said, seconds = done.stdout.strip().splitlines()[-2:]
    return said, float(seconds)


def test_a_hub_that_answers_late_is_waited_for(serve, tmp_path, model_folder):
    folder, seconds = ask(serve(0.7), tmp_path)
    assert {path.name for path in Path(folder).iterdir()} >= {"config.json", "model.safetensors", "vocab.json"}
    assert seconds > 0.7
    (tmp_path / "empty").mkdir()
    said, _ = ask(serve(2.5), tmp_path / "empty", HF_HUB_ETAG_TIMEOUT="1")
    assert "cannot reach the Hugging Face hub for any/model" in said
    assert hub._HUB_TIMEOUT >= 10


def test_a_cached_model_without_a_tokenizer_is_completed(serve, tmp_path):
    endpoint = serve()
    folder = Path(ask(endpoint, tmp_path)[0])
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    assert Path(ask("http://127.0.0.1:9", tmp_path)[0]) == folder and not (folder / "vocab.json").exists()
    assert Path(ask(endpoint, tmp_path)[0]) == folder and (folder / "vocab.json").exists()


def test_without_a_network_the_answer_is_quick(tmp_path):
    for endpoint in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        said, seconds = ask(endpoint, tmp_path)
        assert "cannot reach the Hugging Face hub for any/model" in said and seconds < 4


def test_an_answer_that_is_none_of_the_hubs_is_one_line(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "answer", lambda self, status, content: Hub.send_response(self, 200) or self.end_headers())
    assert "cannot reach the Hugging Face hub for any/model" in ask(serve(), tmp_path)[0]


def test_a_model_that_the_hub_lacks_is_said_so(serve, tmp_path):
    assert "the hub has no model any/other" in ask(serve(), tmp_path, "any/other")[0]


def test_a_folder_counts_only_with_a_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_from_hub", lambda repository: f"hub: {repository}")
    for name in ("gpt2", "gpt2-medium", "any/model"):
        (tmp_path / name).mkdir(parents=True)
    assert find_model("gpt2") == "hub: openai-community/gpt2" and find_model("any/model") == "hub: any/model"
    for name in ("gpt2", "any/model"):
        (tmp_path / name / "config.json").write_text("{}")
    assert find_model("gpt2") == "hub: openai-community/gpt2" and find_model("any/model") == Path("any/model")
    for name in ("a b/c", "a/b/c", "", "..", "x\0y", "a" * 300, "a//b", "-/x"):
        refusal(find_model, name)


# --- what exchange.py writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left"), KeyboardInterrupt()]
)
def test_a_folder_is_written_whole_or_not_at_all(tmp_path, error):
    target = tmp_path / "new"
    for _ in range(2):  # absent, and there but empty
        raised = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
        with pytest.raises(raised), whole_folder(target) as folder:
            (folder / "half").write_text("x")
            raise error
        assert not target.exists() or not list(target.iterdir())
        assert not list(tmp_path.glob(".*"))
        target.mkdir(exist_ok=True)
    with whole_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not list(target.iterdir())
    assert (target / "sub" / "file").read_text() == "x" and [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("action", ["merge", "import"])
def test_a_full_disk_leaves_no_half_made_folder(tmp_path, model_folder, hugging_face_gpt2, monkeypatch, action):
    theirs = peft.get_peft_model(copy.deepcopy(hugging_face_gpt2), peft.LoraConfig(r=2, target_modules=["c_attn"]))
    theirs.save_pretrained(tmp_path / "peft")
    arguments = ["import", str(tmp_path / "peft"), "--model_path", str(model_folder), "--run_dir"]
    exchange.main(exchange.parse([*arguments, str(tmp_path / "run")]))

    def full(*arguments, **options):
        Path(arguments[1]).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(formats.hugging_face, "save_file", full)
    monkeypatch.setattr("training.storage.save_file", full)
    if action == "merge":
        arguments = ["merge", str(tmp_path / "run"), "--out"]
    line = refusal(exchange.main, exchange.parse([*arguments, str(tmp_path / "new")]))
    assert "No space left" in line and sorted(path.name for path in tmp_path.iterdir()) == ["peft", "run"]


@pytest.mark.parametrize("url", ["", "data", "htp://x", "https://a b", "https://a\nb"])
def test_what_is_no_address_is_refused_at_once(url):
    assert "is no address" in refusal(parse_flags, DownloadSettings, ["--url", url])


def test_a_revision_of_the_base_is_not_passed_over(tmp_path, model_folder, hugging_face_gpt2):
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], revision="v2")
    peft.get_peft_model(copy.deepcopy(hugging_face_gpt2), config).save_pretrained(tmp_path / "peft")
    arguments = ["import", str(tmp_path / "peft"), "--run_dir", str(tmp_path / "run")]
    assert "was trained on revision 'v2' of its base" in refusal(exchange.main, exchange.parse(arguments))
    exchange.main(exchange.parse([*arguments, "--model_path", str(model_folder)]))
