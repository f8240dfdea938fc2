"""Pre-training from the shell: figures against transformers, exact resume, bad input."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import pretrain
from cli.flags import parse_flags
from config import ANSWERS, PretrainSettings
from datasets.corpus import Corpus, PackedBatches, TokenFile, held_out_batches
from datasets.paraphrase import PROMPT, load_paraphrase_data
from errors import UserError
from models.gpt2 import GPT2Model
from tests.helpers import CONTEXT, VOCAB, mostly_slow
from tests.inputs import write_pairs
from tests.tiny import forget_accelerate_state

ROOT = Path(__file__).resolve().parents[1]


SHAPE = f"--vocab_size {VOCAB} --context {CONTEXT} --layers 2 --hidden_size 16 --heads 2"


STEPS = "--steps 12 --eval_every 3 --batch_size 2 --lr 1e-2 --precision fp32"


def run(corpus_folder, run_dir, more="", base=f"{SHAPE} {STEPS}"):
    forget_accelerate_state()
    flags = f"--corpus {corpus_folder} --held_out b.txt {base} {more}" + (f" --run_dir {run_dir}" if run_dir else "")
    pretrain.main(*parse_flags(PretrainSettings, flags.split()))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, corpus_folder):
    folder = tmp_path_factory.mktemp("run")
    run(corpus_folder, folder)
    return folder


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_saved_model_opens_in_transformers_and_gives_our_logits(finished):
    folder = finished / "model"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "vocab.json"),
    ]
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ours = GPT2Model.from_pretrained(str(folder)).eval()
    ids = torch.randint(0, VOCAB, (3, CONTEXT))
    with torch.no_grad():
        logits = ours.hidden_state_to_token(ours(ids)["last_hidden_state"])
        assert torch.allclose(logits, theirs(ids).logits, atol=1e-5)
    assert theirs.config.resid_pdrop == 0.1  # for fine-tuning; pre-training itself had none
    assert theirs.generation_config.eos_token_id == VOCAB - 1
    assert transformers.AutoTokenizer.from_pretrained(folder)("yes")["input_ids"] == [8505]


def test_the_held_out_figures_are_those_of_transformers_and_of_a_count(finished, tokens_folder):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(finished / "model").eval()
    tokens = TokenFile(tokens_folder)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in held_out_batches([tokens.held_out["b.txt"]], CONTEXT, 1):
            ids = batch["token_ids"]
            total += theirs(ids, labels=ids).loss.item() * (ids.size(1) - 1)
            count += ids.size(1) - 1
    report = json.loads((finished / "report.json").read_text())["held out"]["b.txt"]
    assert report["tokens"] == count == len(tokens.held_out["b.txt"]) - 1
    assert report["nats a token"] == pytest.approx(total / count, abs=1e-5)
    size = tokens.record["held_out"][0]["bytes"]
    assert report["bits a byte"] == pytest.approx(total / np.log(2) / size, rel=1e-5)

    seen = tokens.train.tolist()
    costs = [
        -np.log((seen.count(token) + 1) / (len(seen) + VOCAB)) for token in tokens.held_out["b.txt"][1:201].tolist()
    ]
    first = TokenFile(tokens_folder)
    first.held_out = {"b.txt": tokens.held_out["b.txt"][:201]}
    measured, terms = pretrain.Measure(first, CONTEXT, None).unigram_sums()["b.txt"]
    assert terms == 200 and measured == pytest.approx(sum(costs))


def test_training_beats_the_untrained_model(finished):
    figures = json.loads((finished / "report.json").read_text())["held out"]["all"]
    assert figures["perplexity"] < 0.8 * figures["untrained"]
    assert figures["untrained"] == pytest.approx(VOCAB, rel=0.1)


def test_half_precision_is_rounded_once_and_takes_half_the_space(finished, corpus_folder, tmp_path):
    run(corpus_folder, None, f"--checkpoint {finished} --out {tmp_path} --save_dtype float16", base="")
    full, half = tensors(finished / "model"), tensors(tmp_path)
    assert all(torch.equal(half[name], full[name].half()) for name in full)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert (
        theirs.dtype == torch.float32
        and GPT2Model.from_pretrained(str(tmp_path)).word_embedding.weight.dtype == torch.float32
    )


class Stop(Exception):
    pass


def stop_within_epoch(patch, stopped):
    """Raise Stop before the second batch of this epoch."""
    original = PackedBatches.epoch

    def epoch(self, number, start=0):
        for index, batch in enumerate(original(self, number, start)):
            if (number, index) == (stopped, 1):
                raise Stop
            yield batch

    patch.setattr(PackedBatches, "epoch", epoch)


@pytest.mark.parametrize("where", mostly_slow(["in the middle of an epoch", "before the corpus was ready"]))
def test_a_stopped_run_goes_on_to_the_same_result(finished, corpus_folder, tmp_path, monkeypatch, where):
    def stop(*arguments, **options):
        raise Stop

    with monkeypatch.context() as patch:
        if where == "before the corpus was ready":
            patch.setattr("datasets.corpus.save_tokenizer", stop)
        else:
            stop_within_epoch(patch, 3)
        with pytest.raises(Stop):
            run(corpus_folder, tmp_path)
    assert not (tmp_path / "model").exists()
    resumed = where == "in the middle of an epoch"
    run(corpus_folder, tmp_path, "--resume" if resumed else "")
    one, two = tensors(finished / "model"), tensors(tmp_path / "model")
    assert all(torch.equal(one[name], two[name]) for name in one)

    def losses(folder):
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [(r["epoch"], r.get("step"), r.get("loss"), r.get("held-out loss")) for r in records]

    assert losses(tmp_path) == losses(finished) and len(losses(finished)) == 16


@pytest.fixture
def pairs_file(tmp_path):
    write_pairs(tmp_path / "pairs.csv", 6)
    return tmp_path / "pairs.csv"


def test_pairs_are_learned_in_the_tasks_own_prompt(corpus_folder, pairs_file, tmp_path):
    run(corpus_folder, tmp_path / "run", f"--pairs {pairs_file} --guidance 1 --answer_weight 3 --steps 6")
    tokens = TokenFile(tmp_path / "run/corpus")
    *rows, end = tokens.tokenizer.decode(tokens.train[-tokens.record["train"][-1]["tokens"] :]).split("\n")
    pairs = load_paraphrase_data(pairs_file)
    answers = [ANSWERS["yes" if row[2] else "no"] for row in pairs]
    expected = [PROMPT.format(first=row[0], second=row[1]) + ("yes" if row[2] else "no") for row in pairs]
    assert rows == expected and not end
    train = tokens.train.tolist()
    space, line_end = (tokens.tokenizer.encode(text).ids for text in (" ", "\n"))
    after = [train[place + 1] for place in range(len(train) - 2) if train[place : place + 3 : 2] == [*space, *line_end]]
    assert after[-6:] == answers  # one token, where the task reads it
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.slow
def test_a_guided_run_goes_on_to_the_same_result(corpus_folder, pairs_file, tmp_path, monkeypatch):
    flags = f"--pairs {pairs_file} --guidance 1 --answer_weight 3 --steps 6"
    run(corpus_folder, tmp_path / "whole", flags)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_within_epoch(patch, 2)
        run(corpus_folder, tmp_path / "stopped", flags)
    run(corpus_folder, tmp_path / "stopped", f"{flags} --resume")
    one, two = (tensors(tmp_path / name / "model") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_wants_its_own_settings(finished, corpus_folder):
    with pytest.raises(UserError, match="trained with steps = 12"):
        run(corpus_folder, finished, "--resume --steps 24 --eval_every 3", base="")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 10 --eval_every 3", "no multiple of --eval_every"),
        ("--vocab_size 8506", "--vocab_size must be at least 8507"),
        ("--hidden_size 100 --heads 3", "no multiple of --heads"),
        ("--context 1", "--context must be at least 2"),
        ("--beta2 1", "--beta2"),
        ("--steps 0", "--steps must be at least 1"),
        ("--guidance 1 --layers 1", "--guidance teaches two heads in each of two layers"),
        ("--guidance 1 --heads 1", "--guidance teaches two heads in each of two layers"),
        ("--guidance 1 --compile", "--guidance does not work with --compile"),
        ("--answer_weight 2", "--answer_weight has no effect without --pairs"),
    ],
)
def test_impossible_flags(flags, message):
    with pytest.raises(UserError, match=message):
        parse_flags(PretrainSettings, flags.split())


@pytest.mark.parametrize(
    ("make", "held_out", "message"),
    [
        (None, "", "is no folder"),
        ({}, "", "holds no .txt file"),
        ({"a.txt": b"", "b.txt": b"x"}, "", "a.txt is empty"),
        ({"a.txt": b"\xff\xfe"}, "", "not UTF-8"),
        ({"a.txt": b"a few words"}, "", "too small"),
        ({"a.txt": b"text"}, "b.txt", "there is no b.txt"),
        ({"a.txt": b"text"}, "a.txt", "nothing is left to train on"),
    ],
)
def test_bad_corpora_are_one_clear_line_and_leave_nothing(tmp_path, make, held_out, message):
    folder = tmp_path / "texts"
    if make is not None:
        folder.mkdir()
        for name, content in make.items():
            (folder / name).write_bytes(content)
    flags = ["--corpus", str(folder), "--run_dir", str(tmp_path / "run"), "--held_out", held_out]
    forget_accelerate_state()
    with pytest.raises(UserError, match=message):
        pretrain.main(*parse_flags(PretrainSettings, flags))
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


def test_an_unreadable_file_is_named(corpus_folder, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.txt cannot be read"):
        list(Corpus(corpus_folder).documents("train"))


@pytest.mark.parametrize("bytes_allowed", mostly_slow([150_000, 20_000, 400_000]))
def test_a_disk_that_fills_up_is_told_in_one_line(corpus_folder, tmp_path, bytes_allowed):
    """A limit on file sizes stands for the full disk: it stops the tokenizer's files, the tokens or the weights."""
    flags = f"--corpus {corpus_folder} {SHAPE} {STEPS} --run_dir {tmp_path / 'run'}"
    done = subprocess.run(
        [sys.executable, "pretrain.py", *flags.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: cannot")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model").exists() and not list(tmp_path.rglob("*unfinished*"))


def test_a_model_that_cannot_be_saved_leaves_the_older_one(finished, corpus_folder, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("older")

    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pretrain.save_tokenizer", refuse)
    with pytest.raises(UserError, match="the run is kept"):
        run(corpus_folder, None, f"--checkpoint {finished} --out {tmp_path}", base="")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "older"


@pytest.mark.slow
def test_two_processes_train_as_one(corpus_folder, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    runs = {  # accelerate's launcher starts several CPU processes through MPI only: torch's does it here
        "one": ([sys.executable, *launch], 4),
        "two": ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"], 2),
    }
    losses = {}
    for name, (start, batch_size) in runs.items():
        flags = f"{SHAPE} --steps 6 --eval_every 3 --lr 1e-2 --precision fp32 --batch_size {batch_size}"
        command = [
            *start,
            "pretrain.py",
            *flags.split(),
            "--corpus",
            str(corpus_folder),
            "--run_dir",
            str(tmp_path / name),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [record["loss"] for record in records if "step" in record]
        assert (tmp_path / name / "model" / "model.safetensors").exists()
    assert "2 process(es)" in done.stdout
    assert len(losses["one"]) == 6 and losses["one"][-1] < losses["one"][0]
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-4)
