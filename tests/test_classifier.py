"""classifier.py from end to end on a tiny model: the hand-in format, both modes, every method, stops in either part."""

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score

import classifier
import evaluation
from cli.flags import parse_flags
from cli.script import Stopped
from config import CLASSES, TUNING_METHODS, ClassifierSettings
from datasets import SentimentDataset, load_tokenizer
from datasets.tsv import format_answers
from errors import UserError
from models.gpt2 import GPT2Model
from models.sentiment_gpt import SentimentGPT
from tests.helpers import mostly_slow
from tests.inputs import ROOT, check_class_file, run, without, write_reviews
from training.assembly import make_accelerator
from training.runs import Run

FILES = [(name, split) for name in CLASSES for split in ("dev", "test")]


def outputs(folder, mode):
    return {path.name: path.read_bytes() for path in (folder / "out").glob(f"{mode}*")}


def test_the_format_is_the_courses_to_the_byte():
    text = format_answers("Predicted_Sentiment", ["a", "b 2"], {"b 2": 0, "a": 4}, range(5))
    assert text == "id \t Predicted_Sentiment \na, 4 \nb 2, 0 \n"
    for ids, answers in ((["a"], {"a": 5}), (["a"], {}), (["a", "a"], {"a": 1}), (["a"], {"a": 1, "b": 1})):
        with pytest.raises(RuntimeError):
            format_answers("Predicted_Sentiment", ids, answers, range(5))


@pytest.mark.parametrize(
    "more, mode, name",
    [
        ("", "last-linear-layer", "head"),
        ("--fine-tune-mode full-model --pooling mean", "full-model", "full"),
        ("--lora --merge", "full-model", "lora"),
        ("--pooling generalized --pooling_heads 2 --pooling_penalty embeddings", "last-linear-layer", "head"),
    ],
)
def test_reviews_from_training_to_the_files(review_flags, tmp_path, capsys, more, mode, name):
    run(classifier, review_flags + more.split())
    out = capsys.readouterr().out
    for data, split in FILES:
        path = tmp_path / f"out/{mode}-{data}-{split}-out.csv"
        check_class_file(path, [f"id{row}" for row in range(10 if split == "dev" else 7)], CLASSES[data])
    assert len(outputs(tmp_path, mode)) == 4 and len(list((tmp_path / "out").iterdir())) == 4
    for data in CLASSES:
        figures = json.loads((tmp_path / f"runs/sentiment-{name}/{data}/report.json").read_text())["figures"]
        assert all(f"{title} " in out and value in out for title, value in figures.items())
        assert {"dev accuracy", "dev macro-F1", "bag of words", "always the commonest class"} <= figures.keys()
    table = out.split("Sentiment, dev\n")[1]
    assert re.findall(r"^(\w+), ", table, re.MULTILINE) == ["SST"] * 3 + ["CFIMDB"] * 3


def test_the_figures_are_those_of_the_files(review_flags, tmp_path):
    """Oracle: scikit-learn on what was written."""
    run(classifier, [*review_flags, "--only", "sst"])
    lines = (tmp_path / "out/last-linear-layer-sst-dev-out.csv").read_text().splitlines()[1:]
    chosen = [int(line.split(", ")[1]) for line in lines]
    truths = [row % 5 for row in range(10)]
    figures = json.loads((tmp_path / "runs/sentiment-head/sst/report.json").read_text())["figures"]
    assert figures["dev accuracy"] == f"{sum(map(int.__eq__, chosen, truths)) / 10:.4f}"
    assert figures["dev macro-F1"] == f"{f1_score(truths, chosen, average='macro', zero_division=0):.4f}"
    assert figures["always the commonest class"] == "0.2000 dev accuracy, 0.0667 dev macro-F1"
    counts = Counter(chosen)
    assert (
        f"{' / '.join(str(counts[n]) for n in range(5))} of class" in figures["out/last-linear-layer-sst-dev-out.csv"]
    )
    assert not list((tmp_path / "out").glob("*cfimdb*"))


def test_only_the_last_linear_layer_is_kept_and_loads_again(review_flags, tmp_path):
    run(classifier, [*review_flags, "--run_dir", "run"])
    first = outputs(tmp_path, "last-linear-layer")
    for name, classes in CLASSES.items():
        kept = load_file(tmp_path / f"run/{name}/best/model.safetensors")
        assert {key: list(t.shape) for key, t in kept.items()} == {
            "classifier.weight": [classes, 32],
            "classifier.bias": [classes],
        }
        record = json.loads((tmp_path / f"run/{name}/settings.json").read_text())
        assert record["part"] == name and record["settings"]["training"]["lr"] == 1e-3
        assert record["settings"]["head"]["fine_tune_mode"] == "last-linear-layer"
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    run(classifier, [*without(review_flags, "--epochs", "--lr"), "--checkpoint", "run"])
    assert outputs(tmp_path, "last-linear-layer") == first
    run(classifier, [*without(review_flags, "--epochs", "--lr"), "--checkpoint", "run", "--only", "cfimdb"])


@pytest.mark.parametrize("precision", mostly_slow(["fp32", "bf16", "fp16"]))
@pytest.mark.parametrize("method", [*TUNING_METHODS, "ptuning --ptuning_encoder lstm", None])
def test_every_method_goes_through_and_back(review_flags, tmp_path, method, precision):
    """Trained, kept, and loaded again to the same files."""
    flags = [*without(review_flags, "--epochs"), "--precision", precision]
    how = ["--tuning", *method.split()] if method else ["--fine-tune-mode", "full-model"]
    run(classifier, [*flags, *how, "--epochs", "1", "--run_dir", "run", "--only", "sst"])
    first = outputs(tmp_path, "full-model")
    assert len(first) == 2
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    run(classifier, [*without(flags, "--lr"), "--checkpoint", "run"])
    assert outputs(tmp_path, "full-model") == first


# --- the frozen GPT-2 -------------------------------------------------------------------------------------------------


def test_kept_vectors_change_no_step(review_flags, tmp_path, monkeypatch):
    """A run that computes a review's vector in every step: the same losses up to rounding (padding differs)."""
    losses = {}
    for name in ("kept", "computed"):
        if name == "computed":
            monkeypatch.setattr(SentimentGPT, "has_fixed_vectors", False)
        run(classifier, [*review_flags, "--precision", "fp32", "--only", "sst", "--run_dir", name])
        records = map(json.loads, (tmp_path / name / "sst/metrics.jsonl").read_text().splitlines())
        losses[name] = [record["loss"] for record in records if "loss" in record]
    assert len(losses["kept"]) == 8
    assert losses["kept"] == pytest.approx(losses["computed"], abs=1e-5)


def test_vectors_are_those_of_each_review_alone(gpt2, model_folder):
    tokenizer = load_tokenizer(model_folder)
    dataset = SentimentDataset([("yes no", 1, "a"), ("eye", 0, "b"), ("", 0, "c")], tokenizer)
    model = SentimentGPT(gpt2.requires_grad_(False), 2).train()
    settings, _ = parse_flags(ClassifierSettings, ["--precision", "fp32"])
    classifier.keep_vectors(model, dataset, 2, make_accelerator(settings.training))
    alone = [gpt2(ids.long().unsqueeze(0))["last_token"][0] for ids in dataset.token_ids]
    torch.testing.assert_close(dataset.vectors, torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode, same", [("last-linear-layer", True), ("full-model", False)])
def test_gpt2_is_trained_in_one_mode_alone(review_flags, model_folder, monkeypatch, mode, same):
    seen = []
    original = classifier.load_trained

    def spy(session, model):
        seen.append(model)
        return original(session, model)

    monkeypatch.setattr(classifier, "load_trained", spy)
    run(classifier, [*review_flags, "--precision", "fp32", "--fine-tune-mode", mode])
    assert len(seen) == 2
    base = dict(GPT2Model.from_pretrained(str(model_folder)).named_parameters())
    for model in seen:
        changed = [name for name, p in model.gpt.named_parameters() if not torch.equal(p, base[name])]
        assert not changed if same else len(changed) > 0.9 * len(base) - 3  # key biases never move


# --- going on ---------------------------------------------------------------------------------------------------------

KEPT = ("last/model.safetensors", "last/optimizer.safetensors", "last/state.json", "best/model.safetensors")


STOPS = [("sst", 3, ""), ("sst", 4, "--lora"), ("cfimdb", 1, ""), ("cfimdb", 6, "--lora")]
MORE_STOPS = [("sst", 3, "--lora"), ("sst", 4, ""), ("cfimdb", 1, "--lora"), ("cfimdb", 6, "")]


@pytest.mark.parametrize(
    "part, step, more", [STOPS[0], *(pytest.param(*s, marks=pytest.mark.slow) for s in STOPS[1:] + MORE_STOPS)]
)
def test_a_stopped_run_goes_on_to_the_same_result(review_flags, tmp_path, monkeypatch, part, step, more):
    """Stopped within an epoch or between two, in the first part or in the second; --resume alone does the rest."""
    flags = [*review_flags, *more.split(), "--pooling", "attention"]  # which has parameters of its own
    run(classifier, [*flags, "--run_dir", "whole"])
    whole = outputs(tmp_path, "")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    asked = {"part": None, "step": 0}
    original = Run.log

    def log(self, record):
        original(self, record)
        asked.update(part=self.part, step=record.get("step", asked["step"]))

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "log", log)
        patch.setattr("training.loop.stop_asked", lambda: 15 if asked == {"part": part, "step": step} else None)
        run(classifier, flags)
    name = "sentiment-lora" if more else "sentiment-head"
    assert (tmp_path / f"runs/{name}/cfimdb").exists() == (part == "cfimdb")
    run(classifier, ["--resume"])
    assert outputs(tmp_path, "") == whole and len(whole) == 4
    for data in CLASSES:
        for file in KEPT:
            ours, theirs = (tmp_path / home / data / file for home in (f"runs/{name}", "whole"))
            assert ours.read_bytes() == theirs.read_bytes(), (data, file)


@pytest.mark.slow
def test_sigterm_in_the_second_part_tells_the_way_on(review_flags, tmp_path):
    """The real script: the step is finished, both parts end as those of an unbroken run."""
    flags = [*without(review_flags, "--epochs"), "--epochs", "40", "--precision", "fp32", "--lora"]
    command = [sys.executable, ROOT / "classifier.py"]
    options = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, *flags, "--run_dir", "run"], **options, **pipes)
    metrics = tmp_path / "run/cfimdb/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"step"') >= 7):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.endswith("stopped; go on with: python classifier.py --resume --run_dir run\n")
    assert metrics.read_text().count('"step"') < 160 and not list((tmp_path / "out").glob("*cfimdb*"))
    for more in (["--resume", "--run_dir", "run"], [*flags, "--run_dir", "whole"]):
        assert subprocess.run([*command, *more], **options, capture_output=True).returncode == 0
    for data in CLASSES:
        for file in KEPT:
            ours, theirs = (tmp_path / home / data / file for home in ("run", "whole"))
            assert ours.read_bytes() == theirs.read_bytes(), (data, file)


def test_the_second_run_gets_a_folder_of_its_own(review_flags, tmp_path):
    for _ in range(2):
        run(classifier, [*review_flags, "--epochs", "1"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["sentiment-head", "sentiment-head-2"]
    for home in (tmp_path / "runs").iterdir():
        assert sorted(path.name for path in home.iterdir()) == ["cfimdb", "sst"]


def test_a_part_can_be_added_later(review_flags, tmp_path):
    """The parts know nothing of one another: one by one they are what they are together."""
    run(classifier, [*review_flags, "--run_dir", "both"])
    together = outputs(tmp_path, "last-linear-layer")
    run(classifier, [*review_flags, "--run_dir", "one", "--only", "cfimdb"])
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["cfimdb"]
    run(classifier, ["--resume", "--run_dir", "one", "--only", "sst"])
    assert outputs(tmp_path, "last-linear-layer") == together
    for data in CLASSES:
        ours, theirs = (tmp_path / home / data / "best/model.safetensors" for home in ("both", "one"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_divergence_names_the_part_that_goes_on(review_flags, tmp_path, monkeypatch):
    original = SentimentGPT.forward

    def forward(self, *arguments, labels=None, **more):
        result = original(self, *arguments, labels=labels, **more)
        return (result[0] * float("nan"), result[1]) if labels is not None and labels.max() < 2 else result

    with monkeypatch.context() as patch:
        patch.setattr(SentimentGPT, "forward", forward)
        with pytest.raises(UserError, match=r"--resume --run_dir run --only cfimdb goes on .* lower --lr"):
            run(classifier, [*review_flags, "--run_dir", "run"])
    run(classifier, ["--resume", "--run_dir", "run", "--only", "cfimdb", "--lr", "1e-4"])
    assert len(outputs(tmp_path, "last-linear-layer")) == 4


# --- wrong input ------------------------------------------------------------------------------------------------------

REFUSED = [
    (
        "--fine-tune-mode last-linear-layer --lora",
        "--fine-tune-mode last-linear-layer leaves GPT-2 as it is, --tuning lora changes it: leave one out",
    ),
    (
        "--dropout 0.2",
        "--dropout has no effect where GPT-2 is frozen: give --fine-tune-mode full-model, or leave the flag out",
    ),
    ("--hidden_dropout_prob 1", "--hidden_dropout_prob must be in [0, 1), got 1.0"),
    ("--lr 0", "--lr must be positive, got 0.0"),
    ("--lora_rank 4", "--lora_rank has no effect without --tuning lora|qlora: add it, or leave the flag out"),
    ("--head linear", "unrecognized arguments: --head linear (--help lists the flags)"),
]


@pytest.mark.parametrize("flags, message", REFUSED)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(UserError) as error:
        parse_flags(ClassifierSettings, flags.split())
    assert str(error.value) == message


def test_the_modes_and_their_rates(review_flags, tmp_path):
    for flags, mode, rate in (
        ("", "last-linear-layer", 1e-3),
        ("--fine-tune-mode full-model", "full-model", 1e-5),
        ("--fine_tune_mode full-model", "full-model", 1e-5),
        ("--lora", "full-model", 2e-4),
        ("--fine-tune-mode full-model --adapter", "full-model", 1e-4),
        ("--lora --lr 3e-3", "full-model", 3e-3),
    ):
        settings, given = parse_flags(ClassifierSettings, [*without(review_flags, "--lr"), *flags.split()])
        session = classifier.open_session("classifier", settings, given, "sentiment", part="sst")
        assert (session.settings.head.fine_tune_mode, session.settings.training.lr) == (mode, rate)
    for mode in ("all", "full"):
        with pytest.raises(UserError, match=rf"must be one of last-linear-layer, full-model, got '{mode}'"):
            parse_flags(ClassifierSettings, ["--fine-tune-mode", mode])


WRONG = [  # further flags, {file: text or None}, decisive words
    ("", {"data/ids-cfimdb-train.csv": None}, "data/ids-cfimdb-train.csv does not exist"),
    ("", {"data/ids-sst-dev.csv": "\tid\tsentence\tsentiment\n0\ta\tb\t7\n"}, "sst-dev.csv, line 2: sentiment is '7'"),
    ("", {"data/ids-cfimdb-test-student.csv": "id\tsentence\na,b\tc\n"}, "the id 'a,b' has a comma"),
    ("", {"data/ids-cfimdb-dev.csv": "id,sentence,sentiment\na,b,1\n"}, "it must be tab-separated"),
    ("--predictions data/ids-sst-dev.csv", {}, "ids-sst-dev.csv is not a folder that you may write to"),
    ("--run_dir run", {"run/cfimdb/settings.json": "{}"}, "run/cfimdb holds a run already"),
    ("--resume --run_dir run", {}, "run is no run folder of classifier.py: it has no sst/settings.json"),
    ("--resume", {}, "there is no run to resume under runs/"),
    ("--checkpoint run", {"run/settings.json": "{}"}, "run is no run folder of classifier.py"),
    ("--checkpoint run", {"run/sst/settings.json": '{"task": "pretrain"}'}, "run/sst is a run of pretrain"),
    ("--merge", {}, "there is nothing to merge"),
    ("--model_path nowhere", {}, "--model_path: nowhere is no folder"),
]


@pytest.mark.parametrize("more, files, words", WRONG)
def test_bad_input_is_one_line_and_leaves_nothing(review_flags, tmp_path, capsys, more, files, words):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_text(content)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    given = without(review_flags, "--epochs", "--lr") if "--checkpoint" in more else review_flags
    with pytest.raises(SystemExit) as stop:
        classifier.run_script(lambda: run(classifier, [*given, *more.split()]))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_without_scikit_learn_a_line_says_how_to_get_it(review_flags, tmp_path, capsys, monkeypatch):
    original = builtins.__import__

    def no_sklearn(name, *arguments, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(UserError):
        evaluation.bag_of_words([("a", 1)], ["b"])
    run(classifier, [*review_flags, "--only", "cfimdb"])
    out = capsys.readouterr().out
    assert "the bag of words needs scikit-learn: pip install -r requirements-extra.txt\n" in out
    assert "always the commonest class" in out and "bag of words  " not in out


def test_other_data_and_other_processes_are_refused(review_flags, tmp_path):
    run(classifier, [*review_flags, "--run_dir", "run"])
    write_reviews(tmp_path / "data/ids-cfimdb-train.csv", 2, 31)
    with pytest.raises(UserError, match=r"ids-cfimdb-train.csv is not what run/cfimdb was trained with \(CFIMDB train"):
        run(classifier, ["--resume", "--run_dir", "run"])


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["last-linear-layer", "full-model"])
def test_two_processes_train_like_one_and_answer_every_row(review_flags, tmp_path, mode):
    """8 rows: one process takes all of them in a step, two take 4 each, and the losses must be the same."""
    for name, classes in CLASSES.items():
        write_reviews(tmp_path / f"data/ids-{name}-train.csv", classes, 8)
    flags = f"--epochs 4 --precision fp32 --hidden_dropout_prob 0 --fine-tune-mode {mode}"
    flags += " --dropout 0" if mode == "full-model" else ""
    script = [f"{ROOT}/classifier.py", *without(review_flags, "--epochs"), *flags.split()]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *script, "--batch_size", "4"]
    losses = {}
    for name, command in {"one": [sys.executable, *script, "--batch_size", "8"], "two": both}.items():
        done = subprocess.run(
            [*command, "--run_dir", name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        for data, split in FILES:
            path = tmp_path / f"out/{mode}-{data}-{split}-out.csv"
            check_class_file(path, [f"id{row}" for row in range(10 if split == "dev" else 7)], CLASSES[data])
            path.unlink()
        lines = [(tmp_path / name / data / "metrics.jsonl").read_text().splitlines() for data in CLASSES]
        losses[name] = [json.loads(line)["loss"] for part in lines for line in part if '"step"' in line]
    assert "2 process(es)" in done.stdout and len(losses["one"]) == 8
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)
