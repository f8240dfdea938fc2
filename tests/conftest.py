"""Fixtures: tiny random GPT-2s made by transformers, a synthetic tokenizer, and the real course data where present."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the suite may reach out

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from tokenizers import pre_tokenizers

from models.gpt2 import GPT2Model

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def real_data():
    """The folder with the course's real files; tests that want it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the course's real data is not beside this checkout (../shared/data)")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A byte-level BPE of 8,600 tokens whose tokens "no" and "yes" have GPT-2's ids 3919 and 8505."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {3919: "no", 8505: "yes", 8506: "ye", 8599: "<|endoftext|>"}
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for index in range(len(tokens), 8600):
        vocabulary[words.get(index, f"<unused{index}>")] = index
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nn o\ny e\nye s\n", encoding="utf-8")
    return folder


def make_hugging_face_gpt2(**changes):
    """A tiny GPT2LMHeadModel with weights large enough that an error in any of them shows."""
    shape = {"vocab_size": 8600, "n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4, "eos_token_id": 8599}
    config = transformers.GPT2Config(**shape | {"initializer_range": 0.2, "bos_token_id": 8599} | changes)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1: an error would not show
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def hugging_face_gpt2():
    return make_hugging_face_gpt2()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, hugging_face_gpt2, tokenizer_folder):
    """The same model saved by transformers, with the synthetic tokenizer beside it."""
    folder = tmp_path_factory.mktemp("model")
    hugging_face_gpt2.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    return folder


@pytest.fixture
def gpt2(model_folder):
    """Our GPT-2 with the same weights, in eval mode; every test gets its own."""
    return GPT2Model.from_pretrained(str(model_folder)).eval()


def forget_accelerate_state():
    """accelerate keeps process-wide state, and refuses a second precision."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    yield
    forget_accelerate_state()


def pytest_configure(config):
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
