"""Runs that were renamed, moved with their project, used from another folder: all of it still finds what it reads."""

import json
import os
import re
import shutil

import pytest

import classifier
import compare
import exchange
import paraphrase_detection
import report
import sonnet_generation
from cli.flags import parse_flags
from comparison.experiment import plan, read_experiment
from config import ParaphraseSettings, TranslationSettings
from tests.helpers import mostly_slow
from tests.inputs import run, write_pairs, write_sentiment, write_sonnets
from tests.tiny import forget_accelerate_state
from training.inputs import find_again, places_beside
from training.runs import Run


@pytest.fixture
def project(model_folder, tmp_path, monkeypatch):
    """A folder with a model, data and place for runs; it is where we are. Training stops after one of two epochs."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(model_folder, folder / "model")
    write_pairs(folder / "train.csv", 16)
    write_pairs(folder / "dev.csv", 6)
    write_pairs(folder / "test.csv", 5, labelled=False)
    write_sonnets(folder / "sonnets.txt", range(1, 7))
    write_sonnets(folder / "prompts.txt", range(20, 22), lines=3)
    write_sonnets(folder / "gold.txt", range(30, 32))
    monkeypatch.chdir(folder)
    return folder


def pair_flags(root=""):
    return (
        f"--model_path {root}model --para_train {root}train.csv --para_dev {root}dev.csv --para_test {root}test.csv "
        f"--lora --lr 1e-3 --para_dev_out out/dev.csv --para_test_out out/test.csv"
    ).split()


def pairs_to_predict(folder, out):
    return (
        f"--para_dev {folder}/dev.csv --para_test {folder}/test.csv --para_dev_out {out}/dev.csv "
        f"--para_test_out {out}/test.csv"
    ).split()


MOVES = ("the run is renamed", "the project is moved", "another folder")


@pytest.mark.parametrize("absolute", [False, True], ids=["relative paths", "absolute paths"])
@pytest.mark.parametrize("move", mostly_slow(MOVES))
def test_a_run_is_predicted_with_and_gone_on_with(project, tmp_path, monkeypatch, move, absolute):
    flags = pair_flags(f"{project}/" if absolute else "")
    run(paraphrase_detection, [*flags, "--epochs", "1", "--run_dir", "runs/r"])
    wanted = (project / "out/dev.csv").read_bytes()
    run(paraphrase_detection, [*flags, "--epochs", "3", "--run_dir", "runs/whole"])
    home = project
    if move == "the run is renamed":
        os.rename("runs/r", "kept")
        place = "kept"
    elif move == "the project is moved":
        home = tmp_path / "elsewhere"
        os.rename(project, home)
        place = f"{home}/runs/r"
    else:
        place = f"{project}/runs/r"
    if move != "the run is renamed":
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
    run(paraphrase_detection, ["--checkpoint", place, *pairs_to_predict(home, tmp_path / "new")])
    assert (tmp_path / "new/dev.csv").read_bytes() == wanted
    run(paraphrase_detection, ["--resume", "--run_dir", place, "--epochs", "3"])
    assert len(Run(home / "kept" if place == "kept" else home / "runs/r").epochs()) == 3


@pytest.mark.slow
def test_a_moved_run_is_shown_merged_exported_and_reported(project, tmp_path, monkeypatch, capsys):
    flags = (
        "--model_path model --sonnet_path sonnets.txt --held_out_sonnet_path prompts.txt --gold_sonnet_path gold.txt"
    )
    more = "--lora --epochs 1 --max_new_tokens 8 --score_seeds 1 --run_dir runs/r --sonnet_out o/a --sonnet_dev_out o/b"
    run(sonnet_generation, [*flags.split(), *more.split()])
    os.rename(project, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "elsewhere/runs/r")
    capsys.readouterr()
    for action in ("show", "switch", "merge", "export"):
        out = ["--out", f"out-{action}"] if action in ("merge", "export") else []
        exchange.main(exchange.parse([action, place, *out]))
    assert (tmp_path / "out-merge/model.safetensors").exists() and (tmp_path / "out-export/README.md").exists()
    assert re.search(rf"base model +{tmp_path}/elsewhere/model\n", capsys.readouterr().out)
    report.main(report.parse([place, "--out", "page.html"]))
    assert "looking into the model" in capsys.readouterr().out and (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_moved_run_with_parts_is_gone_on_with(project, tmp_path, monkeypatch):
    write_sentiment(project, training=10, dev=5, test=3)
    run(classifier, ["--model_path", "model", "--epochs", "1", "--run_dir", "runs/r", "--predictions", "out"])
    wanted = {path.name: path.read_bytes() for path in (project / "out").iterdir()}
    os.rename(project, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run(classifier, ["--resume", "--run_dir", "elsewhere/runs/r"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == wanted


def test_moved_runs_are_compared(project, tmp_path, capsys):
    """The outputs that they recorded are where they were trained; the table is made from those beside them."""
    flags = 'model_path = "model"\npara_train = "train.csv"\npara_dev = "dev.csv"\npara_test = "test.csv"\nepochs = 1\n'
    (project / "two.toml").write_text(
        f'task = "pairs"\nseeds = [1]\n[flags]\n{flags}lr = 1e-3\n[variants.lora]\nlora = true\n[variants.full]\n'
    )
    experiment = read_experiment(project / "two.toml")
    for planned in plan(experiment, project / "two.toml", project / "old"):
        forget_accelerate_state()
        paraphrase_detection.main(*parse_flags(ParaphraseSettings, planned.arguments))
    os.rename(project / "old", project / "new")
    capsys.readouterr()
    compare.main(compare.parse(["two.toml", "--out", "new"]))
    out = capsys.readouterr().out
    assert out.count("done before") == 2 and (project / "new/table.md").exists() and not (project / "old").exists()


def test_two_files_of_one_flag_are_found_too(tmp_path):
    """SOURCE,TARGET of translation.py."""
    settings, _ = parse_flags(TranslationSettings, ["--train_pairs", f"{tmp_path}/was/a.en,{tmp_path}/was/a.de"])
    places = places_beside(tmp_path / "was/runs/r", settings)
    assert places["train_pairs"] == "../../a.en,../../a.de"
    (tmp_path / "is").mkdir()
    for name in ("a.en", "a.de"):
        (tmp_path / "is" / name).write_text("x\n")
    record = {"settings": {"data": {"train_pairs": f"{tmp_path}/was/a.en,{tmp_path}/was/a.de"}}, "places": places}
    found = find_again(tmp_path / "is/runs/r", json.loads(json.dumps(record)))["settings"]["data"]["train_pairs"]
    assert found == f"{tmp_path}/is/a.en,{tmp_path}/is/a.de"


def test_what_is_still_where_it_was_is_taken_from_there(tmp_path):
    """Also where the same lies beside the moved run: a copy of a run reads what the run read."""
    for name in ("was", "is"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text(name)
    record = {"settings": {"data": {"para_train": f"{tmp_path}/was/a.csv"}}, "places": {"para_train": "../a.csv"}}
    found = find_again(tmp_path / "is/run", record)
    assert found["settings"]["data"]["para_train"] == f"{tmp_path}/was/a.csv"
