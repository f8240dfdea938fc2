"""What a report says of a run, and how long a run says that it will take."""

import json
import re
import subprocess

import pytest
import torch

import sonnet_generation
import training.pace
from cli.flags import parse_flags
from config import LoRASettings, SonnetSettings
from models.gpt2 import GPT2Model
from tests.inputs import ROOT, run, without
from training.figures import code_version, in_bytes
from training.pace import Pace, in_words
from training.runs import Run
from tuning.attach import attach
from tuning.state import count_parameters


def test_a_run_says_all_that_a_report_needs(sonnet_flags, tmp_path, capsys):
    run(sonnet_generation, [*sonnet_flags, "--lora", "--run_dir", "run", "--precision", "fp32"])
    out, report = capsys.readouterr().out, json.loads((tmp_path / "run/report.json").read_text())
    facts, epochs = report["run"], Run(tmp_path / "run").epochs()
    assert (facts["learning rate"], facts["rows a step"], facts["seed"], facts["precision"]) == (1e-3, 8, 11711, "fp32")
    assert facts["torch"] == torch.__version__ and re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
    assert [facts["initial train loss"], facts["final train loss"]] == [epoch["train_loss"] for epoch in epochs]
    assert facts["epochs"] == 2 and facts["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert abs(facts["bytes of the run"] - size) < 8192  # the report itself came later
    assert facts["peak memory"] > 2**27 and facts["best epoch"] in (1, 2)
    for line in ("learning rate", "machine", "code", "train loss", "training time", "trained parameters"):
        assert re.search(rf"^{line}  +\S", out, re.MULTILINE), line
    run(sonnet_generation, [*without(sonnet_flags, "--epochs", "--lr"), "--checkpoint", "run", "--seed", "5"])
    again = json.loads((tmp_path / "run/checkpoint-report.json").read_text())
    of_training = ("learning rate", "rows a step", "processes", "seed")
    assert [again["run"][name] for name in of_training] == [facts[name] for name in of_training]
    assert "seed 11711\n" in (table := capsys.readouterr().out) and "predictions drawn with seed 5" in table
    assert again["run"]["final train loss"] == facts["final train loss"]
    assert json.loads((tmp_path / "run/report.json").read_text()) == report


def test_metrics_that_are_damaged_are_passed_over(tmp_path):
    good = {"epoch": 1, "train_loss": 2.0, "seconds": 3.0}
    (tmp_path / "metrics.jsonl").write_text(f'{json.dumps(good)}\n{{"epoch": 2, "tra\n[1]\n')
    assert Run(tmp_path).epochs() == [good] and Run(tmp_path / "none").epochs() == []


def test_the_code_is_named_by_its_commit(monkeypatch, tmp_path):
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    assert subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip() in code_version()
    monkeypatch.setattr("training.figures.ROOT", tmp_path)
    assert code_version() == "unknown"


def test_weights_in_four_bits_count_as_weights(model_folder):
    counts = []
    for method in ("lora", "qlora"):
        gpt2 = GPT2Model.from_pretrained(str(model_folder))
        attach(gpt2, {method: LoRASettings()})
        counts.append(count_parameters(gpt2))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "1 s"), (45, "45 s"), (89, "89 s"), (100, "2 min"), (3599, "1 h 0 min"), (13200, "3 h 40 min")],
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words
    assert in_bytes(1.5 * 2**20) == "1.5 MiB" and in_bytes(2048) == "2 KiB"


def test_the_estimate_comes_once_and_then_a_line_a_minute(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(training.pace.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    pace = Pace(total=1000, done=100, epochs="10 epochs")
    for step in range(101, 301):
        clock[0] += 2.0
        pace.tell(step, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "about 30 min for 10 epochs (step 110 of 1000)"
    assert lines[1] == "step 140 of 1000, loss 0.5000: about 29 min left"
    assert len(lines) == 1 + (400 - 20) // 60


def test_training_rows_for_a_try(sonnet_flags, capsys):
    settings, _ = parse_flags(SonnetSettings, ["--train_rows", "5"])
    assert settings.training.train_rows == 5
    run(sonnet_generation, [*sonnet_flags, "--train_rows", "5", "--run_dir", "run", "--gradient_accumulation", "2"])
    assert "5 of 12 training rows are used (--train_rows)" in (out := capsys.readouterr().out)
    assert "16 rows a step" in out
