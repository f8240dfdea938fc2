"""Both task scripts from end to end on a tiny model: what a student runs, and the files that are handed in."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import paraphrase_detection
import sonnet_generation
from config import TUNING_METHODS
from datasets import load_sonnets
from tests.inputs import ROOT, check_prediction_file, check_sonnet_file, run, without, write_pairs
from training.runs import Run


@pytest.mark.parametrize("method", ["", "--lora", "--adapter", "--lora --adapter --adapter_placement pfeiffer"])
def test_sonnets_from_training_to_the_file(sonnet_flags, tmp_path, capsys, method):
    run(sonnet_generation, sonnet_flags + method.split())
    out = capsys.readouterr().out
    check_sonnet_file(tmp_path / "out/sonnets.txt", load_sonnets("prompts.txt"))
    for words in ("trained parameters", "seconds an epoch", "peak memory", "floor: prompt alone", "chrF continuation"):
        assert words in out
    folder = tmp_path / "runs" / ("sonnet-" + ("-".join(re.findall(r"--(lora|adapter)\b", method)) or "full"))
    assert (folder / "last/optimizer.safetensors").exists()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if "dev loss" in r] == [1, 2]
    if method:
        assert (folder / "best/model.safetensors").stat().st_size < 200_000  # the whole model has 1.3 MB


def test_a_checkpoint_gives_the_same_sonnets_merged_or_not(sonnet_flags, tmp_path):
    sonnet_flags = [*sonnet_flags, "--precision", "fp32"]  # in bf16 the same up to rounding only
    run(sonnet_generation, [*sonnet_flags, "--lora", "--temperature", "0"])
    first = (tmp_path / "out/sonnets.txt").read_bytes()
    for more in ([], ["--merge"], ["--eval_batch_size", "1"]):
        again = [
            *without(sonnet_flags, "--epochs", "--lr"),
            "--checkpoint",
            "runs/sonnet-lora",
            "--temperature",
            "0",
            *more,
        ]
        (tmp_path / "out/sonnets.txt").unlink()
        run(sonnet_generation, again + more)
        assert (tmp_path / "out/sonnets.txt").read_bytes() == first


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [*TUNING_METHODS, "ptuning --ptuning_encoder lstm"])
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


def test_without_gold_a_tenth_is_kept_aside(sonnet_flags, capsys):
    run(sonnet_generation, without(sonnet_flags, "--gold_sonnet_path"))
    assert "11 training sonnets, 1 dev sonnets" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--head linear --pooling attention --lora",
        "--head linear --pooling generalized --pooling_heads 2 --pooling_penalty parameters --adapter",
        "--pooling mean --merge --lora",
    ],
)
def test_pairs_from_training_to_the_files(pair_flags, tmp_path, capsys, more):
    run(paraphrase_detection, pair_flags + more.split())
    out = capsys.readouterr().out
    check_prediction_file(tmp_path / "out/dev.csv", [f"id{row}" for row in range(10)])
    check_prediction_file(tmp_path / "out/test.csv", [f"id{row}" for row in range(7)])
    assert "dev macro-F1" in out and "always the commoner answer" in out
    name = "-".join(["paraphrase", *(re.findall(r"--(lora|adapter)\b", more) or ["full"])])
    figures = json.loads((tmp_path / "runs" / name / "report.json").read_text())["figures"]
    assert all(f"{title} " in out and value in out for title, value in figures.items())


def test_swapped_questions_double_the_training_rows_and_no_others(pair_flags, monkeypatch):
    seen = []
    original = paraphrase_detection.ParaphraseDetectionDataset

    def spy(rows, *arguments):
        seen.append(rows)
        return original(rows, *arguments)

    monkeypatch.setattr(paraphrase_detection, "ParaphraseDetectionDataset", spy)
    run(paraphrase_detection, [*pair_flags, "--swap_questions"])
    dev, training = seen
    assert (len(dev), len(training)) == (10, 64)
    for (first, second, label, identifier), swapped in zip(training[:32], training[32:], strict=True):
        assert swapped == (second, first, label, identifier)
    assert any(row[0] != row[1] for row in training)


def test_a_pair_checkpoint_brings_its_own_head_and_methods(pair_flags, tmp_path):
    run(
        paraphrase_detection,
        [*pair_flags, *["--head", "linear", "--pooling", "attention", "--lora", "--lora_rank", "2"]],
    )
    first = (tmp_path / "out/test.csv").read_bytes(), (tmp_path / "out/dev.csv").read_bytes()
    (tmp_path / "out/test.csv").unlink()
    run(paraphrase_detection, [*without(pair_flags, "--epochs", "--lr"), "--checkpoint", "runs/paraphrase-lora"])
    assert ((tmp_path / "out/test.csv").read_bytes(), (tmp_path / "out/dev.csv").read_bytes()) == first


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
def test_the_datasets_folder_hides_nobody_elses_imports():
    code = "import transformers, accelerate, peft, datasets; assert datasets.load_sonnets; peft.LoraConfig()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_courses_imports_work():
    code = (
        "from models.gpt2 import GPT2Model; from optimizer import AdamW; from evaluation import model_eval_paraphrase;"
        "from datasets import SonnetsDataset, ParaphraseDetectionDataset, ParaphraseDetectionTestDataset,"
        " load_paraphrase_data"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
