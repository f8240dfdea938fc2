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

from cli.flags import settings_to_dict
from cli.tables import to_csv, to_html, to_markdown
from comparison.experiment import TRAINED, plan, read_experiment
from comparison.running import check_recorded, check_same_dev, make_all, same_precision
from comparison.table import table_rows
from comparison.tasks import TASKS
from errors import UserError
from evaluation import bleu, chrf, interval, resample_counts, texts_resampled
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
        plan(read_experiment(path), path, Path("runs"))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_mini_flags_win_and_name_only_variants(experiment):
    path = experiment(SOUND + "[mini]\nseeds = [7]\nlr = 2e-3\n[mini.mean]\nlr = 3e-3\n")
    runs = plan(read_experiment(path, mini=True), path, Path("runs"))
    assert [(run.variant, run.seed, run.settings.training.lr) for run in runs] == [("last", 7, 2e-3), ("mean", 7, 3e-3)]
    assert all(run.settings.model.model_path == "data/gpt2-mini" for run in runs)
    with pytest.raises(UserError, match=r"mini\.max"):
        read_experiment(experiment(SOUND + "[mini.max]\nlr = 1.0\n"), mini=True)
    with pytest.raises(UserError, match="no table"):
        read_experiment(experiment(), mini=True)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("mini", [False, True])
def test_every_experiment_gives_flags_that_its_script_takes(path, mini):
    described = read_experiment(path, mini)
    runs = plan(described, path, Path("runs"))
    assert {run.variant for run in runs if run.variant != TRAINED} == set(described.variants)
    assert described.trained is not None or len(runs) == len(described.variants) * len(described.seeds)
    assert f"python compare.py experiments/{path.name}" in path.read_text(encoding="utf-8")


def test_a_table_for_the_sample_wins_over_that_of_the_small_model(experiment):
    text = SOUND + "[mini]\nlr = 2e-3\nseeds = [7]\n[sample]\nlr = 4e-3\nepochs = 2\n[sample.mean]\nepochs = 3\n"
    path = experiment(text)
    sample, course = (plan(read_experiment(path, True, data), path, Path("runs")) for data in (None, "elsewhere"))
    assert [(run.settings.training.lr, run.settings.training.epochs) for run in sample] == [(4e-3, 2), (4e-3, 3)]
    assert [(run.settings.training.lr, run.settings.training.epochs) for run in course] == [(2e-3, 1)] * 2
    assert sample[0].settings.data.para_train == "data/sample/para-train.csv"
    assert course[0].settings.data.para_train == str(Path("elsewhere", "quora-train.csv"))


def test_variants_that_only_predict_take_the_data_of_the_run_that_was_trained(experiment):
    text = """task = "sonnets"
seeds = [4, 5]
[trained]
epochs = 1
sonnet_path = "mine.txt"
[variants.drawn]
[variants.greedy]
decode = "greedy"
"""
    path = experiment(text)
    runs = plan(read_experiment(path), path, Path("out"))
    assert [run.folder.name for run in runs] == [TRAINED, "drawn-4", "greedy-4", "drawn-5"]
    assert [run.checkpoint for run in runs] == [None] + [Path("out", TRAINED)] * 3
    assert {run.settings.data.sonnet_path for run in runs} == {"mine.txt"}
    assert [run.state for run in runs] == ["to train"] + ["to predict"] * 3
    path = experiment(text.replace('decode = "greedy"', "epochs = 3"))
    with pytest.raises(UserError, match="greedy: --epochs has no effect with --checkpoint"):
        plan(read_experiment(path), path, Path("out"))


def test_every_task_has_an_experiment_and_known_columns():
    tasks = {re.search(r'^task = "(.*)"', path.read_text(encoding="utf-8"), re.M)[1] for path in EXPERIMENTS}
    assert tasks == set(TASKS)


def test_resampled_scores_are_those_of_the_texts_drawn():
    from sacrebleu.metrics import BLEU, CHRF

    draw = random.Random(0)
    words = ["the", "old", "moon", "rose", "over", "a", "sleeping", "town"]
    texts, references = ([" ".join(draw.choices(words, k=9)) for _ in range(6)] for _ in range(2))
    counts = resample_counts(6, 20)
    for metric, score in ((CHRF(), chrf), (BLEU(tokenize="13a"), lambda *some: bleu(*some)[0])):
        expected = []
        for row in counts:
            chosen = [place for place, times in enumerate(row) for _ in range(times)]
            expected.append(score([texts[i] for i in chosen], [references[i] for i in chosen]))
        assert texts_resampled(metric, texts, references, counts) == pytest.approx(expected, abs=1e-9)


def test_resamples_and_their_interval_are_those_of_a_loop():
    import numpy as np

    counts = resample_counts(9, 4000)
    assert counts.shape == (4000, 9) and (counts.sum(1) == 9).all()
    draw, scores = np.random.default_rng(1), np.random.default_rng(2).random(9)
    loop = [np.mean([scores[draw.integers(9)] for _ in range(9)]) for _ in range(4000)]
    assert interval(counts @ scores / 9) == pytest.approx(interval(loop), abs=0.02)
    low, high = interval(list(range(1001)))
    assert (low, high) == (25, 975)


# --- made-up runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(experiment, tmp_path):
    """(experiment, its runs), with a dev file of four pairs."""
    write_pairs(tmp_path / "dev.csv", 4)
    path = experiment(SOUND.replace("[flags]", f'[flags]\npara_dev = "{tmp_path}/dev.csv"'))
    described = read_experiment(path)
    return described, plan(described, path, tmp_path / "out")


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
    rows = table_rows(described, runs)
    assert list(rows) == ["last", "mean", "floor: always the commonest answer"]
    assert rows["last"]["dev accuracy"] == "0.5000" and rows["mean"]["dev accuracy"] == "0.8750 +- 0.1768"
    assert rows["last"]["difference"] == "-" and rows["mean"]["difference"].startswith("+0.3750 [")
    assert rows["mean"]["seconds"] == "11.5 +- 0.7" and rows["mean"]["trained parameters"] == "5,000"
    assert rows["floor: always the commonest answer"]["dev accuracy"] == "0.5000"


def test_a_run_with_other_settings_is_refused_by_name(planned):
    _, runs = planned
    record(runs[0])
    check_recorded(runs[0])
    assert runs[0].state == "goes on" and runs[1].state == "to train"
    record(runs[1], lr=5.0)
    with pytest.raises(UserError, match=r"mean-1 was trained with lr = 5.0, the experiment asks for 0.001"):
        check_recorded(runs[1])


def test_runs_on_other_dev_data_are_not_compared(planned):
    _, runs = planned
    for run in runs[:2]:
        record(run)
    check_same_dev(runs[:2])
    record(runs[2], dev="2b")
    with pytest.raises(UserError, match=rf"{runs[2].folder} was measured on other dev data than {runs[0].folder}"):
        check_same_dev(runs[:3])


def test_one_precision_for_all_runs(planned):
    _, runs = planned
    same_precision(runs)
    assert "--precision=fp32" not in runs[1].arguments
    record(runs[0])
    same_precision(runs)
    assert "--precision=fp32" in runs[1].arguments and "--precision=fp32" not in runs[0].arguments
    for run in runs:
        run.settings.training.precision = "auto"
    record(runs[1], precision="bf16")
    with pytest.raises(UserError, match=f"{runs[0].folder} in fp32 and {runs[1].folder} in bf16: these do not compare"):
        same_precision(runs)


FAILS_FIRST = """import sys, time
from pathlib import Path
if "--bananas" in sys.argv:
    Path("failed").touch()
    sys.exit("error: unknown flag --bananas")
while not Path("failed").exists():
    time.sleep(0.01)
time.sleep(2)  # ends well after the other
"""


def test_a_failed_script_is_told_in_its_own_line_after_those_under_way(planned, tmp_path, monkeypatch):
    _, runs = planned
    (tmp_path / f"{runs[0].task.script}.py").write_text(FAILS_FIRST)
    monkeypatch.chdir(tmp_path)
    for run in runs:
        run.arguments = ["--bananas"] if run is runs[0] else []
    with pytest.raises(UserError, match=r"last-1 failed: .*--bananas.*last-1.log; the same command goes on"):
        make_all(runs, at_a_time=2)
    started = sorted(path.name for path in runs[0].folder.parent.glob("*.log"))
    assert started == ["last-1.log", "mean-1.log"]


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
def test_decoders_of_one_run(experiment, tmp_path):
    path = experiment("""task = "sonnets"
seeds = [1, 2]
columns = ["chrF whole", "difference", "14 lines", "seconds a sonnet", "dev loss"]
[trained]
[variants.drawn]
[variants.greedy]
decode = "greedy"
form = "sonnet"
[mini]
epochs = 1
train_rows = 8
""")
    command = [sys.executable, "compare.py", str(path), "--mini", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for words, seen in ([], "1 of 4"), (["--parallel", "2"], "done before"):
        done = subprocess.run([*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and seen in done.stdout, done.stderr
    rows = list(csv.reader(io.StringIO((tmp_path / "out/table.csv").read_text())))
    table = {name: dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[1:]}
    assert list(table)[:2] == ["drawn", "greedy"] and "floor: random training tail" in table
    assert "+-" not in table["greedy"]["chrF whole"] and "+-" in table["drawn"]["chrF whole"]
    assert table["greedy"]["14 lines"] == "1.00" and table["drawn"]["dev loss"] == table["greedy"]["dev loss"]
    path.write_text(path.read_text().replace('form = "sonnet"', "beams = 1"), encoding="utf-8")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


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
