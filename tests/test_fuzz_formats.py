"""About 1,500 damaged folders of others' formats: what is not refused in one line is computed as they compute it.

The oracle, for every input: a UserError of one line within a few seconds; or, where the folder is read, the very logits
(ids, for tokenizers) that transformers or peft give for the same folder, to 1e-5; or, where these refuse it, those of
the undamaged folder. Nothing else: no other exception, no other number.
"""

import copy
import json
import random
import shutil
import tempfile
import time

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from datasets import load_tokenizer
from errors import UserError
from formats.peft import read_folder
from models.gpt2 import GPT2Model
from tests.tiny import make_hugging_face_gpt2
from tuning.attach import attach
from tuning.portable import from_peft
from tuning.state import load_tuning

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(16).view(2, 8) * 31 % 300
TEXT = "yes no <new> a  <|endoftext|>no <pad>\n\té"
SHAPE = {
    "vocab_size": 300,
    "n_positions": 32,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "eos_token_id": 299,
    "bos_token_id": 299,
}
SECONDS = 10  # a machine three times loaded is no hang

# --- damage -----------------------------------------------------------------------------------------------------------

VALUES = (
    None, True, False, 0, 1, -1, 2, 7, 8, 16, 32, 300, 1.5, 1e-5, 2**31, 2**63, -(2**70), 10**400, 1e308, float("nan"),
    float("inf"), "", "8", "c_attn", ".*", "(", "none", "gelu_new", "a\nb\x00", "é" * 50, [], [1], ["c_fc"], {},
    {"a": 1}, {"c_attn": 3}, [[0]], "x" * 5000,
)  # fmt: skip


def places(value, found=None):
    """[(the dict or list, key or index)] of all that a JSON value holds."""
    found = [] if found is None else found
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        found.append((value, key))
        places(inner, found)
    return found


def damage_json(text, draw):
    """A JSON text with one thing changed: a value, a type, a key that is gone, new, twice or renamed, deep nesting."""
    whole = json.loads(text)
    shallow = [(whole, key) for key in whole]
    deep = places(whole)
    inner, key = draw.choice(draw.choice((shallow, deep)))
    kind = draw.randrange(8)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[draw.choice(NEW_KEYS)] = draw.choice(VALUES)
    elif kind == 2 and isinstance(inner, dict):
        inner[f"{key}x"] = inner.pop(key)
    elif kind == 3:
        other, place = draw.choice(deep)
        inner[key] = copy.deepcopy(other[place])
    else:
        inner[key] = draw.choice(VALUES)
    text = json.dumps(whole)
    kind = draw.randrange(30)
    if kind == 0:
        return "[" * 100_000 + text
    if kind == 1 and text.startswith('{"'):  # a key twice: the last one holds
        return text[:-1] + f', "{draw.choice(NEW_KEYS)}": {json.dumps(draw.choice(VALUES))}' + "}"
    return draw.choice(("[{}]", "\ufeff{}", '{{"a": {}}}')).format(text) if kind == 2 else text


NEW_KEYS = (
    "n_head", "hidden_size", "num_attention_heads", "n_inner", "activation_function", "scale_attn_weights", "r", "a",
    "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "target_modules", "layers_to_transform", "use_dora",
    "init_lora_weights", "bias", "modules_to_save", "exclude_modules", "added_tokens_decoder", "pad_token", "h.0",
    "normalizer", "dropout", "add_prefix_space", "weight_map", "yes", "tie_word_embeddings", "layer_norm_epsilon",
)  # fmt: skip


def damage_bytes(content, draw):
    """Bytes flipped (more often at the start, where formats have their headers), cut off, put in or taken out."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        end = draw.choice((min(64, len(content)), min(2000, len(content)), len(content)))
        place = draw.randrange(max(end, 1))
        kind = draw.randrange(8)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            del content[place : place + draw.randint(1, 9)]
        elif kind == 2:
            content[place:place] = draw.randbytes(draw.randint(1, 9))
        elif kind == 3 and content:
            content[place : place + 4] = draw.choice((b"\x00" * 4, b"\xff" * 4, b"9999", b"\x00\x00\xc0\x7f"))
        elif content:
            content[min(place, len(content) - 1)] ^= 1 << draw.randrange(8)
    return bytes(content)


def damage(path, draw):
    """Write a damaged version of a file in its place."""
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.7:
        path.write_text(damage_json(content.decode(), draw), encoding="utf-8", errors="surrogatepass")
    else:
        path.write_bytes(damage_bytes(content, draw))


# --- the undamaged folders, and the two readers of each --------------------------------------------------------------


@torch.no_grad()
def our_logits(folder):
    gpt2 = GPT2Model.from_pretrained(str(folder)).eval()
    return gpt2.hidden_state_to_token(gpt2(IDS)["last_hidden_state"])


@torch.no_grad()
def transformers_logits(folder):
    """Of a model that is whole to transformers, too: what is missing it fills in with random numbers, and warns."""
    model, said = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not said["missing_keys"] and not said["mismatched_keys"]
    return model.eval()(IDS).logits


def our_ids(folder):
    return load_tokenizer(folder).encode(TEXT).ids


def transformers_ids(folder):
    return transformers.GPT2TokenizerFast.from_pretrained(folder)(TEXT, add_special_tokens=False).input_ids


def make_model(folder):
    make_hugging_face_gpt2(**SHAPE).save_pretrained(folder)


def make_shards(folder):
    make_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: s for s, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_bin(folder):
    make_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def make_vocabulary(folder):
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "no", "ye", "yes", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nn o\ny e\nye s\n", encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<new>": 260, "<pad>": 261}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>", "unk_token": "<|endoftext|>"}))


def make_tokenizer(folder):
    make_vocabulary(folder)
    load_tokenizer(folder).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "model_max_length": 32}))
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink()


def adapter(config):
    def make(folder):
        theirs = peft.get_peft_model(make_hugging_face_gpt2(**SHAPE), copy.deepcopy(config))
        with torch.no_grad():
            for p in theirs.parameters():
                if p.requires_grad:
                    p.normal_(std=0.2)
        theirs.save_pretrained(folder)

    return make


BASES = {}


def base():
    """(transformers' GPT-2, ours) below all adapters; each is copied before it is tuned."""
    if not BASES:
        theirs = make_hugging_face_gpt2(**SHAPE)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            BASES["models"] = theirs, GPT2Model.from_pretrained(folder).eval()
    return BASES["models"]


@torch.no_grad()
def our_tuned_logits(folder):
    gpt2 = copy.deepcopy(base()[1])
    methods, tensors = from_peft(*read_folder(folder), gpt2.config)
    attach(gpt2, methods)
    load_tuning(gpt2, tensors)
    return gpt2.hidden_state_to_token(gpt2.eval()(IDS)["last_hidden_state"])


@torch.no_grad()
def peft_logits(folder):
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base()[0]), folder).eval()
    return theirs(input_ids=IDS).logits[:, -IDS.size(1) :]


COMMON = {"task_type": "CAUSAL_LM"}
LORA = peft.LoraConfig(
    r=2,
    target_modules=["c_attn", "mlp.c_proj"],
    alpha_pattern={"h.0.attn.c_attn": 3},
    rank_pattern={"c_proj": 3},
    **COMMON,
)
ADALORA = peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["c_attn", "c_fc"], **COMMON)
MODEL, IDS_OF = (our_logits, transformers_logits), (our_ids, transformers_ids)
TUNED = (our_tuned_logits, peft_logits)
READERS = {  # what: (make the folder, our reader, theirs, the files that are damaged)
    "config.json": (make_model, *MODEL, ["config.json"]),
    "model.safetensors": (make_model, *MODEL, ["model.safetensors"]),
    "index.json": (make_shards, *MODEL, ["model.safetensors.index.json", "a.safetensors"]),
    "pytorch_model.bin": (make_bin, *MODEL, ["pytorch_model.bin"]),
    "tokenizer.json": (make_tokenizer, *IDS_OF, ["tokenizer.json", "tokenizer_config.json"]),
    "vocab.json": (make_vocabulary, *IDS_OF, ["vocab.json", "merges.txt"]),
    "added_tokens.json": (make_vocabulary, *IDS_OF, ["added_tokens.json", "special_tokens_map.json"]),
    "lora": (adapter(LORA), *TUNED, ["adapter_config.json", "adapter_config.json", "adapter_model.safetensors"]),
    "adalora": (adapter(ADALORA), *TUNED, ["adapter_config.json", "adapter_model.safetensors"]),
    "ia3": (adapter(peft.IA3Config(**COMMON)), *TUNED, ["adapter_config.json", "adapter_model.safetensors"]),
    "prompt": (
        adapter(peft.PromptTuningConfig(num_virtual_tokens=3, **COMMON)),
        *TUNED,
        ["adapter_config.json", "adapter_model.safetensors"],
    ),
    "prefix": (
        adapter(peft.PrefixTuningConfig(num_virtual_tokens=3, **COMMON)),
        *TUNED,
        ["adapter_config.json", "adapter_model.safetensors"],
    ),
}


def same(ours, theirs):
    """Whether ids are equal, or logits within 1e-5 of their scale. Beyond fp32's range they mean nothing in either."""
    if isinstance(ours, list):
        return ours == theirs
    largest = theirs.abs().max().item()
    if not largest < 1e30:
        return not ours.abs().max() < 1e29
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5 * max(1.0, largest), rtol=0)


def try_damaged(name, seeds, tmp_path):
    """Hold the reader of this name to the oracle of this file's docstring; returns how many inputs it has read."""
    make, read, oracle, files = READERS[name]
    whole, broken, count = tmp_path / "whole", tmp_path / "broken", 0
    whole.mkdir()
    make(whole)
    undamaged = read(whole)
    assert same(undamaged, oracle(whole))
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        shutil.copytree(whole, broken)
        damage(broken / draw.choice(files), draw)
        begin = time.perf_counter()
        try:
            ours = read(broken)
        except UserError as error:
            assert str(error) and "\n" not in str(error), (name, seed)
            ours = None
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
        assert time.perf_counter() - begin < SECONDS, (name, seed)
        if ours is not None and not same(ours, undamaged):
            try:
                theirs = oracle(broken)
            except BaseException as error:  # a panic of a Rust library is no Exception
                raise AssertionError(f"{name}, seed {seed}: read, and changed; they say {error!r}") from error
            assert same(ours, theirs), f"{name}, seed {seed}: read otherwise than they read it"
        count += ours is not None
        shutil.rmtree(broken)
    return count


@pytest.mark.parametrize("name", READERS)
def test_damaged_folders_are_refused_or_read_as_others_read_them(tmp_path, name):
    try_damaged(name, range(25), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_folders(tmp_path, name):
    read = try_damaged(name, range(25, 125), tmp_path)
    assert 0 < read < 100  # what damages nothing, or all, tests nothing
