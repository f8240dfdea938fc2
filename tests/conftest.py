"""Fixtures: tiny random GPT-2s made by transformers, a synthetic tokenizer, and the real course data where present."""

import contextlib
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the suite may reach out
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes that tests start inherit it

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

import sonnet_generation
import training.assembly
from datasets import load_tokenizer
from datasets.corpus import Corpus, prepare_corpus
from decoding.template import Lexicon, load_tagger
from models.gpt2 import GPT2Model
from tests.helpers import CONTEXT, LINES, MINI, MINI_END, MINI_VOCABULARY, VOCAB, WORDS, prose
from tests.inputs import run, sonnet_inputs, write_pairs, write_sentiment
from tests.tiny import forget_accelerate_state, make_hugging_face_gpt2

torch.set_num_threads(1)  # threads of several processes wait for one another on a loaded machine
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption(
        "--auto", choices=("fp32", "bf16", "fp16"), help="what --precision auto takes, whatever the processor has"
    )


@pytest.fixture(autouse=True)
def _forced_precision(request, monkeypatch):
    if wanted := request.config.getoption("--auto"):
        monkeypatch.setattr(training.assembly, "auto_precision", lambda device: wanted)


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


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    yield
    forget_accelerate_state()


def pytest_configure(config):
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def mini_tokenizer():
    return load_tokenizer(MINI)


@pytest.fixture(scope="module")
def random_model():
    """A random model with the mini model's vocabulary."""
    return make_hugging_face_gpt2(vocab_size=MINI_VOCABULARY, eos_token_id=MINI_END, bos_token_id=MINI_END)


@pytest.fixture(scope="module")
def writer_model(random_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    random_model.save_pretrained(folder)
    return GPT2Model.from_pretrained(str(folder)).eval()


@pytest.fixture(scope="module")
def lexicon():
    pytest.importorskip("textblob")
    return Lexicon(["\n".join(LINES)], *load_tagger())


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    """One token a byte, but for "no", "ye" and "yes": lengths can be counted by hand."""
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def fresh(model_folder):
    return lambda: GPT2Model.from_pretrained(str(model_folder)).eval()


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "sub").mkdir()
    for index, name in enumerate(("a.txt", "b.txt", "sub/c.txt")):
        (folder / name).write_text(prose(index, 3000 if index == 1 else 9000), encoding="utf-8")
    (folder / "notes.md").write_text("not part of it")
    return folder


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory, corpus_folder):
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare_corpus(Corpus(corpus_folder, ["b.txt"]), folder, VOCAB, CONTEXT)
    return folder


@pytest.fixture
def sonnet_flags(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return sonnet_inputs(tmp_path, model_folder)


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory, model_folder):
    """The folder of a run of the sonnets with LoRA, as `sonnet_flags` has it made; to be copied, not to be changed."""
    folder = tmp_path_factory.mktemp("lora")
    with contextlib.chdir(folder):
        run(sonnet_generation, [*sonnet_inputs(folder, model_folder), "--lora", "--run_dir", "run"])
    forget_accelerate_state()
    return folder / "run"


@pytest.fixture
def pair_flags(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "train.csv", 32)
    write_pairs(tmp_path / "dev.csv", 10)
    write_pairs(tmp_path / "test.csv", 7, labelled=False)
    return (
        f"--model_path {model_folder} --para_train train.csv --para_dev dev.csv --para_test test.csv --epochs 2 "
        "--lr 1e-3 --para_dev_out out/dev.csv --para_test_out out/test.csv"
    ).split()


@pytest.fixture
def review_flags(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sentiment(tmp_path)
    return f"--model_path {model_folder} --epochs 2 --lr 1e-3 --predictions out".split()


@pytest.fixture(scope="module")
def tiny_wordnet(tmp_path_factory):
    """WordNet's file format (wndb(5WN)) with two synsets: car, auto, motor_vehicle; one, eye."""
    folder = tmp_path_factory.mktemp("wordnet")
    for kind in ("noun", "verb", "adj", "adv"):
        (folder / f"{kind}.exc").write_text("")
        (folder / f"data.{kind}").write_text("")
        (folder / f"index.{kind}").write_text("")
    data, index = "", ""
    for words in (["car", "auto", "motor_vehicle"], ["one", "eye"]):
        offset = f"{len(data):08d}"
        data += f"{offset} 03 n {len(words):02x} " + " ".join(f"{word} 0" for word in words) + " 000 | a gloss  \n"
        index += "".join(f"{word} n 1 0 1 0 {offset}  \n" for word in words)
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text("\n".join(sorted(index.splitlines())) + "\n")
    return folder


@pytest.fixture(scope="module")
def marian_folders(tmp_path_factory):
    """Two tiny random Marian models, saved as the real ones are."""
    sentencepiece, transformers = pytest.importorskip("sentencepiece"), pytest.importorskip("transformers")
    import torch

    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"marian{seed}")
        text = folder / "text.txt"
        text.write_text("\n".join(f"is it {a} or {b} ? how do i see the {b}" for a in WORDS for b in WORDS))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / "source"), vocab_size=28, minloglevel=2
        )
        (folder / "source.model").rename(folder / "source.spm")
        (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
        vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "tokenizer_config.json").write_text('{"source_lang": "eng", "target_lang": "fra"}')
        torch.manual_seed(seed)
        pad = vocabulary["<pad>"]
        config = transformers.MarianConfig(
            vocab_size=len(vocabulary), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.8,
            pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, forced_eos_token_id=0,
        )  # fmt: skip
        model = transformers.MarianMTModel(config)
        model.generation_config.max_length = 20
        model.save_pretrained(folder)
        folders.append(folder)
    return folders


@pytest.fixture
def short_translations(monkeypatch):
    monkeypatch.setattr("datasets.back_translation.LONGEST", 12)
