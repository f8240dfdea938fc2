"""compare.py: the experiment's file, what is trained and what is not, the table."""

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import compare
from cli.flags import settings_to_dict
from cli.tables import to_csv, to_html, to_markdown
from errors import UserError
from evaluation import paired_bootstrap
from tests.inputs import ROOT, write_pairs
from training.runs import Run

EXPERIMENTS = sorted((ROOT / "experiments").glob("compare-*.toml"))
SOUND = """task = "pairs"
seeds = [1, 2]
[flags]
epochs = 1
lr = 1e-3
[variants.last]
[variants.mean]
pooling = "mean"
"""


@pytest.fixture
def experiment(tmp_path):
    def write(text=SOUND):
        path = tmp_path / "trial.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds", "sedes", "unknown key sedes"),
        ('"pairs"', '"poems"', "task must be one of"),
        ("[1, 2]", "[]", "seeds must be"),
        ("[1, 2]", "[1, 1]", "seeds must be"),
        ("[1, 2]", "[true]", "seeds must be"),
        ("[flags]", 'columns = ["beauty"]\n[flags]', "columns must be"),
        ("[variants.last]\n[variants.mean]", "[flags2]", "unknown key flags2"),
        ('[variants.last]\n[variants.mean]\npooling = "mean"', "", "no variants"),
        ("[variants.mean]", "[variants.last]", "is no TOML"),
        ("[variants.mean]", "[variants.LAST]", "two variants are called"),
        ("[variants.mean]", '[variants."../x"]', "is no folder name"),
        ("epochs = 1", "epoch = 1", "last: .*--epoch"),
        ("epochs = 1", "epochs = 0", "last: .*epochs"),
        ("epochs = 1", 'epochs = "many"', "last: .*epochs"),
        ('"mean"', '"median"', "mean: .*pooling"),
        ("lr = 1e-3", "seed = 3", "sets seed itself"),
        ("lr = 1e-3", 'para_dev_out = "x"', "sets para_dev_out itself"),
        ("[flags]", "flags = 1\n[more]", "unknown key more"),
    ],
)
def test_what_an_experiment_can_say_wrong(experiment, old, new, message):
    path = experiment(SOUND.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        compare.plan(compare.read_experiment(path), path, Path("runs"))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_mini_flags_win_and_name_only_variants(experiment):
    path = experiment(SOUND + "[mini]\nseeds = [7]\nlr = 2e-3\n[mini.mean]\nlr = 3e-3\n")
    runs = compare.plan(compare.read_experiment(path, mini=True), path, Path("runs"))
    assert [(run.variant, run.seed, run.settings.training.lr) for run in runs] == [("last", 7, 2e-3), ("mean", 7, 3e-3)]
    assert all(run.settings.model.model_path == "data/gpt2-mini" for run in runs)
    with pytest.raises(UserError, match=r"mini\.max"):
        compare.read_experiment(experiment(SOUND + "[mini.max]\nlr = 1.0\n"), mini=True)
    with pytest.raises(UserError, match="no table"):
        compare.read_experiment(experiment(), mini=True)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("mini", [False, True])
def test_every_experiment_gives_flags_that_its_script_takes(path, mini):
    described = compare.read_experiment(path, mini)
    assert len(compare.plan(described, path, Path("runs"))) == len(described.variants) * len(described.seeds)
    assert f"python compare.py experiments/{path.name}" in path.read_text(encoding="utf-8")


def test_the_bootstrap_is_a_loop_over_resampled_items():
    import torch

    draw = random.Random(0)
    scores, base = ([draw.random() for _ in range(9)] for _ in range(2))
    state, means = torch.Generator().manual_seed(3), []
    for _ in range(400):
        items = torch.randint(9, (9,), generator=state).tolist()
        means.append(sum(scores[i] for i in items) / 9 - sum(base[i] for i in items) / 9)
    means.sort()

    def percentile(share):  # linear between the neighbours
        place = share * (len(means) - 1)
        low = int(place)
        return means[low] + (place - low) * (means[low + 1] - means[low])

    expected = (sum(scores) / 9 - sum(base) / 9, percentile(0.025), percentile(0.975))
    assert paired_bootstrap(scores, base, resamples=400, seed=3) == pytest.approx(expected, abs=1e-12)
    assert paired_bootstrap(base, base, resamples=10) == (0, 0, 0)


# --- made-up runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(experiment, tmp_path):
    """(experiment, its runs), with a dev file of four pairs."""
    write_pairs(tmp_path / "dev.csv", 4)
    path = experiment(SOUND.replace("[flags]", f'[flags]\npara_dev = "{tmp_path}/dev.csv"'))
    described = compare.read_experiment(path)
    return described, compare.plan(described, path, tmp_path / "out")


def record(run, dev="1a", **changes):
    """Write the settings of a run as its script would. dev: the SHA-256 of its dev pairs."""
    settings = settings_to_dict(run.settings)
    settings["training"] |= {"precision": "fp32"} | changes
    run.folder.mkdir(parents=True)
    said = {"format": 2, "task": "paraphrase_detection", "base": {}, "total_steps": 1}
    said["inputs"] = {"processes": 1, "dev pairs": {"file": "dev.csv", "rows": 4, "sha256": dev}}
    Run(run.folder)._write_record(said | {"settings": settings})


def finish(run, wrong, seconds):
    """Write its answers, the first ones wrong, and its report."""
    labels = ["3919", "8505"] * 2
    rows = [f"id{i}, {labels[i + 1 & 1] if i < wrong else labels[i]} " for i in range(4)]
    (run.folder / "dev.csv").write_text("id \t Predicted_Is_Paraphrase \n" + "\n".join(rows) + "\n", encoding="utf-8")
    facts = {"epochs": 1, "initial train loss": 2.0, "final train loss": 1.0, "seconds": seconds, "best score": 0.5}
    facts |= {"seconds an epoch": seconds, "peak memory": 2**30, "trained parameters": 5000}
    (run.folder / "report.json").write_text(json.dumps({"run": facts}), encoding="utf-8")


def test_the_table(planned):
    described, runs = planned
    for run in runs:
        record(run)
        finish(run, wrong=2 if run.variant == "last" else run.seed - 1, seconds=10.0 + run.seed)
    rows = compare.table_rows(described, runs)
    assert list(rows) == ["last", "mean", "floor: always the commoner answer"]
    assert rows["last"]["dev accuracy"] == "0.5000" and rows["mean"]["dev accuracy"] == "0.8750 +- 0.1768"
    assert rows["last"]["difference"] == "-" and rows["mean"]["difference"].startswith("+0.3750 [")
    assert rows["mean"]["seconds"] == "11.50 +- 0.71" and rows["mean"]["trained parameters"] == "5,000"
    assert rows["floor: always the commoner answer"]["dev accuracy"] == "0.5000"


def test_a_run_with_other_settings_is_refused_by_name(planned):
    described, runs = planned
    record(runs[0])
    compare.check_recorded(runs[0], described.task)
    assert runs[0].state == "goes on" and runs[1].state == "to train"
    record(runs[1], lr=5.0)
    with pytest.raises(UserError, match=r"mean-1 was trained with lr = 5.0, the experiment asks for 0.001"):
        compare.check_recorded(runs[1], described.task)


def test_runs_on_other_dev_data_are_not_compared(planned):
    described, runs = planned
    for run in runs[:2]:
        record(run)
    compare.check_same_dev(runs[:2], described.task)
    record(runs[2], dev="2b")
    with pytest.raises(UserError, match=rf"{runs[2].folder} was measured on other dev data than {runs[0].folder}"):
        compare.check_same_dev(runs[:3], described.task)


def test_tables_of_other_forms_keep_every_mark():
    rows = {"a|<b>": {"x & y": '"1", 2'}}
    page = to_html(rows, "<script>", "5 > 4")
    assert "<script>" not in page and "a|&lt;b&gt;" in page and "x &amp; y" in page and "5 &gt; 4" in page
    assert "color-scheme: light dark" in page and "http" not in page
    assert list(csv.reader(io.StringIO(to_csv(rows)))) == [["name", "x & y"], ["a|<b>", '"1", 2']]
    assert "| a\\|<b> |" in to_markdown(rows)


def test_help_fits_80_columns():
    done = subprocess.run([sys.executable, "compare.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_a_killed_experiment_goes_on_to_the_same_table(experiment, tmp_path):
    columns = 'columns = ["score", "difference", "initial train loss", "final train loss", "epochs"]'
    text = SOUND.replace("[flags]", f"{columns}\n[flags]\ntrain_rows = 16") + "[mini]\nepochs = 2\n"
    path = experiment(text)

    def command(out):
        return [sys.executable, "compare.py", str(path), "--mini", "--out", str(tmp_path / out)]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.run(command("whole"), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    child = subprocess.Popen(command("cut"), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "cut/mean-1/settings.json").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 143 and re.fullmatch(r"stopped; go on with .*\n", said)
    again = subprocess.run(command("cut"), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "last-1 done before" in again.stdout, again.stderr
    assert (tmp_path / "cut/table.csv").read_text() == (tmp_path / "whole/table.csv").read_text()
