"""What holds for both task scripts, end to end on a tiny model: checkpoints, resumed and parallel runs, imports."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import paraphrase_detection
import sonnet_generation
from config import TUNING_METHODS
from tests.helpers import mostly_slow
from tests.inputs import ROOT, check_prediction_file, run, without, write_pairs
from training.runs import Run


@pytest.mark.parametrize("precision", mostly_slow(["fp32", "bf16", "fp16"]))
@pytest.mark.parametrize("method", mostly_slow([*TUNING_METHODS, "ptuning --ptuning_encoder lstm"]))
def test_every_method_goes_through_both_scripts_and_back(sonnet_flags, pair_flags, tmp_path, method, precision):
    """Trained, generated with, kept, and loaded again to the same predictions."""
    for script, flags, file in (
        (sonnet_generation, [*sonnet_flags, "--temperature", "0"], "out/sonnets.txt"),
        (paraphrase_detection, pair_flags, "out/dev.csv"),
    ):
        flags = [*flags, "--precision", precision]
        run(script, [*flags, "--tuning", *method.split(), "--run_dir", f"{script.TASK}"])
        first = (tmp_path / file).read_bytes()
        (tmp_path / file).unlink()
        run(script, [*without(flags, "--epochs", "--lr"), "--checkpoint", f"{script.TASK}"])
        assert (tmp_path / file).read_bytes() == first


def test_adalora_goes_on_to_the_same_result(pair_flags, tmp_path, monkeypatch):
    """Its importances and the triplets that it has dropped are part of the run."""
    flags = [*without(pair_flags, "--epochs"), "--epochs", "4", "--tuning", "adalora", "--adalora_interval", "1"]
    run(paraphrase_detection, [*flags, "--run_dir", "whole"])
    original = Run.save

    def stop(self, model, optimizer, progress, random_states):
        original(self, model, optimizer, progress, random_states)
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", stop)
        run(paraphrase_detection, [*flags, "--run_dir", "stopped"])
    run(paraphrase_detection, ["--resume", "--run_dir", "stopped"])
    whole, stopped = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "stopped"))
    assert any("importance" in name for name in whole) and whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    kept = load_file(tmp_path / "whole" / "best" / "model.safetensors")
    assert not any("importance" in name for name in kept)  # prediction needs none of it


def test_resume_needs_no_other_flag(sonnet_flags, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    run(sonnet_generation, [*sonnet_flags, "--lora", "--run_dir", "whole"])
    real_epoch = sonnet_generation.held_out_loss
    calls = []

    def stop_in_second_epoch(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Stopped
        return real_epoch(*arguments)

    monkeypatch.setattr(sonnet_generation, "held_out_loss", stop_in_second_epoch)
    with pytest.raises(Stopped):
        run(sonnet_generation, [*sonnet_flags, "--lora"])
    monkeypatch.setattr(sonnet_generation, "held_out_loss", real_epoch)
    whole = (tmp_path / "out/sonnets.txt").read_bytes()
    run(sonnet_generation, ["--resume"])
    assert (tmp_path / "out/sonnets.txt").read_bytes() == whole
    for file in ("last/model.safetensors", "metrics.jsonl"):
        ours, theirs = ((tmp_path / folder / file).read_bytes() for folder in ("runs/sonnet-lora", "whole"))
        strip = re.compile(rb'"seconds": [\d.]+')
        assert strip.sub(b"", ours) == strip.sub(b"", theirs)


def test_a_second_run_gets_a_folder_of_its_own(pair_flags, tmp_path):
    for _ in range(2):
        run(paraphrase_detection, [*pair_flags, "--epochs", "1"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["paraphrase-full", "paraphrase-full-2"]


@pytest.mark.slow
def test_two_processes_train_like_one_and_hand_in_every_row(pair_flags, tmp_path):
    """8 training rows: one process takes all of them in a step, two take 4 each, and the losses must be the same."""
    write_pairs(tmp_path / "train.csv", 8)
    script = [f"{ROOT}/paraphrase_detection.py", *pair_flags, "--epochs", "4", "--dropout", "0", "--precision", "fp32"]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *script, "--batch_size", "4"]
    runs = {"one": [sys.executable, *script, "--batch_size", "8"], "two": both}
    losses = {}
    for name, command in runs.items():
        command = [*command, "--run_dir", name]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        check_prediction_file(tmp_path / "out/dev.csv", [f"id{row}" for row in range(10)])
        check_prediction_file(tmp_path / "out/test.csv", [f"id{row}" for row in range(7)])
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [record["loss"] for record in records if "step" in record]
    assert "2 process(es)" in done.stdout
    assert len(losses["one"]) == 4 and losses["one"][-1] < losses["one"][0]
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sonnet_generation", "paraphrase_detection", "classifier"])
def test_no_task_needs_a_network(request, tmp_path, script):
    """In a namespace of its own, where there is not even a loopback device. (HF_HUB_OFFLINE is not set there.)"""
    alone = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    fixtures = {"sonnet_generation": "sonnet_flags", "paraphrase_detection": "pair_flags", "classifier": "review_flags"}
    flags = request.getfixturevalue(fixtures[script])
    command = [*alone, sys.executable, f"{ROOT}/{script}.py", *flags, "--lora", "--run_dir", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "run").rglob("best/model.safetensors")) and list((tmp_path / "out").iterdir())


def test_the_courses_imports_work():
    code = (
        "from models.gpt2 import GPT2Model; from optimizer import AdamW; from evaluation import model_eval_paraphrase;"
        "from datasets import SonnetsDataset, ParaphraseDetectionDataset, ParaphraseDetectionTestDataset,"
        " load_paraphrase_data"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
