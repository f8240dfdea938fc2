"""A corpus as tokens on disk: tokenizer, documents, windows against loops."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from config import END_OF_TEXT
from datasets.corpus import Corpus, PackedBatches, TokenFile, held_out_batches, prepare_corpus
from datasets.tokenizer import load_tokenizer, train_tokenizer
from errors import UserError
from tests.helpers import CONTEXT, VOCAB, prose


@pytest.fixture(scope="session")
def tokenizer(tokens_folder):
    return load_tokenizer(tokens_folder)


def parts_of(folder):
    """{"train", "held_out": {name: text}}"""
    corpus = Corpus(folder)
    return {part: {name: "".join(p) for name, p in corpus.documents(part)} for part in ("train", "held_out")}


def training_pieces(folder):
    return (piece for _, pieces in Corpus(folder, ["b.txt"]).documents("train") for piece in pieces)


def test_answers_and_end_of_text_have_gpt2s_places(tokenizer):
    assert tokenizer.get_vocab_size() == VOCAB
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB))
    assert tokenizer.encode("no").ids == [3919] and tokenizer.encode("yes").ids == [8505]
    assert tokenizer.encode(END_OF_TEXT).ids == [VOCAB - 1] == [tokenizer.token_to_id(END_OF_TEXT)]


def test_any_text_comes_back_exactly(tokenizer):
    draw = random.Random(0)
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]  # every code point but the surrogates
    texts = ["".join(map(chr, draw.choices(points, k=200))) for _ in range(50)]
    texts += ["", " ", "\r\n\t\x00 \u200d\ufeff", "naïve café 日本語 🙂🏽  don't", prose(9, 300)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_reads_the_saved_tokenizer_alike(tokenizer, tokens_folder, tmp_path):
    for files in (("tokenizer.json",), ("vocab.json", "merges.txt")):  # either form alone
        folder = tmp_path / files[0]
        folder.mkdir()
        for name in (*files, "tokenizer_config.json"):
            shutil.copy(tokens_folder / name, folder)
        theirs = transformers.GPT2Tokenizer.from_pretrained(folder)
        text = prose(3, 200) + " yes, no? 日本 " + END_OF_TEXT
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids == load_tokenizer(folder).encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
        assert theirs.eos_token == END_OF_TEXT


def test_the_same_text_gives_the_same_tokenizer(tokenizer, corpus_folder):
    again = train_tokenizer(training_pieces(corpus_folder), VOCAB)
    assert again.to_str() == tokenizer.to_str()


def test_learned_merges_are_kept_but_for_the_answers(corpus_folder, tokenizer, tmp_path):
    """Only as many of the last merges give way as "no" and "yes" need; the others are those of an ordinary BPE."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    plain.train_from_iterator(training_pieces(corpus_folder), trainer)
    theirs = json.loads(plain.to_str())["model"]["merges"]
    ours = json.loads(tokenizer.to_str())["model"]["merges"]
    added = [merge for merge in ours if merge not in theirs]
    assert len(ours) == len(theirs) and 1 <= len(added) <= 3 and "".join(added[-1]) == "yes"
    assert ours[: -len(added)] == theirs[: -len(added)]


def test_too_little_text_for_the_vocabulary():
    with pytest.raises(UserError, match="corpus is too small: it gives"):
        train_tokenizer(["a few words, no more than that"], VOCAB)


def test_the_files_hold_every_document_and_its_end(corpus_folder, tokens_folder, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.corpus._PIECE", 500)  # cut into many pieces: the tokens must not change
    for folder in (tokens_folder, tmp_path / "small_pieces"):
        if folder != tokens_folder:
            prepare_corpus(Corpus(corpus_folder, ["b.txt"]), folder, VOCAB, CONTEXT)
        read = TokenFile(folder)
        wanted = []
        for name in ("a.txt", "sub/c.txt"):
            text = (corpus_folder / name).read_text(encoding="utf-8")
            wanted += [*tokenizer.encode(text).ids, VOCAB - 1]
        assert read.train.dtype == np.uint16 and read.train.tolist() == wanted
        assert list(read.held_out) == ["b.txt"]
        held_out = (corpus_folder / "b.txt").read_text(encoding="utf-8")
        assert read.held_out["b.txt"].tolist() == [*tokenizer.encode(held_out).ids, VOCAB - 1]
        assert read.record["held_out"][0]["bytes"] == len(held_out.encode())


def test_by_default_a_hundredth_of_every_long_file_is_held_out(corpus_folder):
    parts = parts_of(corpus_folder)
    assert list(parts["train"]) == list(parts["held_out"]) == ["a.txt", "b.txt", "sub/c.txt"]
    for name, text in parts["held_out"].items():
        assert parts["train"][name] + text == (corpus_folder / name).read_text(encoding="utf-8")
        assert parts["train"][name].endswith("\n") and 0.005 < len(text) / len(parts["train"][name]) < 0.015


def test_every_pass_takes_every_window_once_and_starts_elsewhere():
    tokens = np.arange(1000, dtype=np.uint16)
    batches = PackedBatches(tokens, 16, batch_size=4, batches=5, seed=1)
    windows = len(tokens) // 16 - 1
    rows = [row.tolist() for number in (1, 2, 3, 4, 5, 6, 7) for b in batches.epoch(number) for row in b["token_ids"]]
    assert all(row == list(range(row[0], row[0] + 16)) for row in rows)
    first, second = rows[:windows], rows[windows : 2 * windows]
    for part in (first, second):
        starts = sorted(row[0] for row in part)
        assert starts == list(range(starts[0], starts[0] + 16 * windows, 16)) and starts[0] < 16
    assert [row[0] for row in first] != sorted(row[0] for row in first)
    assert min(first)[0] != min(second)[0] and first != second


def test_windows_depend_on_seed_and_place_alone():
    tokens = np.arange(1000, dtype=np.uint16)

    def rows(number, **changes):
        options = {"context": 16, "batch_size": 2, "batches": 6, "seed": 1} | changes
        return [batch["token_ids"].tolist() for batch in PackedBatches(tokens, **options).epoch(number)]

    assert rows(9) == rows(9) and rows(9) != rows(8) and rows(9) != rows(9, seed=2)
    shares = [rows(2, batches=3, rank=rank, world=2) for rank in (0, 1)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == rows(2)


def test_a_corpus_shorter_than_two_windows():
    with pytest.raises(UserError, match="add text"):
        PackedBatches(np.zeros(40, dtype=np.uint16), 32, 2, 1)


@pytest.mark.parametrize("length", [2, 3, 16, 17, 31, 32, 100])
def test_held_out_windows_predict_every_token_but_the_first_once(length):
    tokens = np.arange(length)
    predicted = []
    for batch in held_out_batches([tokens], 16, 2):
        for row, mask in zip(batch["token_ids"], batch["attention_mask"], strict=True):
            predicted += row[mask.bool()][1:].tolist()
    assert predicted == list(range(1, length))


def test_about_a_hundredth_is_held_out_of_any_kind_of_corpus(tmp_path):
    """One file of lines, one without any line end, twenty short notes: all are trained on but about a hundredth."""
    (tmp_path / "lines.txt").write_text("a line of words\n" * 4000)
    (tmp_path / "endless.txt").write_text("word " * 12_000)
    for number in range(20):
        (tmp_path / f"note{number:02}.txt").write_text(f"a note of few words, number {number}")
    parts = parts_of(tmp_path)
    train, held = (sum(map(len, parts[part].values())) for part in ("train", "held_out"))
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert train + held == sum(map(len, texts.values())) and 0.004 < held / (train + held) < 0.02
    assert all(parts["train"].get(name, "") + parts["held_out"].get(name, "") == text for name, text in texts.items())


def test_of_many_short_documents_some_are_held_out_whole(tmp_path):
    for number in range(1000):
        (tmp_path / f"poem{number:04}.txt").write_text("a poem of some words\n" * 10)
    parts = parts_of(tmp_path)
    assert 9 <= len(parts["held_out"]) <= 11 and len(parts["train"]) + len(parts["held_out"]) == 1000


def test_documents_share_batches_and_lose_no_token():
    documents = [np.arange(n) + 1000 * n for n in (2, 40, 7, 16, 17)]
    batches = list(held_out_batches(documents, 16, 4))
    rows = [row[mask.bool()] for batch in batches for row, mask in zip(*batch.values(), strict=True)]
    assert sum(len(row) - 1 for row in rows) == sum(len(tokens) - 1 for tokens in documents)
    assert len(batches) == -(-len(rows) // 4)


@pytest.mark.slow
def test_a_large_file_is_tokenised_in_bounded_memory(tmp_path):
    """60 MB as one document in a process that may have 2 GiB (it took 90 MB for every MB)."""
    (tmp_path / "corpus").mkdir()
    words = [f"word{number}" for number in range(3000)]
    draw = random.Random(0)
    with open(tmp_path / "corpus" / "large.txt", "w") as file:
        for _ in range(12_000):
            file.write(" ".join(draw.choices(words, k=600)) + "\n")
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]);"
        "from datasets.corpus import *; from datasets.tokenizer import load_tokenizer;"
        "from datasets.corpus import _write_tokens;"
        "tokenizer = load_tokenizer(sys.argv[2]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "_write_tokens(Corpus(sys.argv[3]).documents('train'), Path(sys.argv[4]), tokenizer, 'uint16');"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code, root, root / "data/gpt2-mini", tmp_path / "corpus", tmp_path / "out.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, f"{done.stdout} MiB"
