"""sonnet_generation.py from end to end on a tiny model, against the course's hand-in format and itself."""

import json
import re
from pathlib import Path

import pytest

import sonnet_generation
from datasets import load_sonnets
from tests.helpers import mostly_slow
from tests.inputs import check_sonnet_file, run, without


@pytest.mark.parametrize(
    "method", mostly_slow(["", "--lora", "--adapter", "--lora --adapter --adapter_placement pfeiffer"])
)
def test_sonnets_from_training_to_the_file(sonnet_flags, tmp_path, capsys, method):
    run(sonnet_generation, sonnet_flags + method.split())
    out = capsys.readouterr().out
    check_sonnet_file(tmp_path / "out/sonnets.txt", load_sonnets("prompts.txt"))
    for words in ("trained parameters", "s an epoch)", "peak memory", "floor: prompt alone", "chrF continuation"):
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


def test_without_gold_a_tenth_is_kept_aside(sonnet_flags, capsys):
    run(sonnet_generation, [*without(sonnet_flags, "--gold_sonnet_path"), "--seed", "5", "--run_dir", "run"])
    assert "11 training sonnets, 1 dev sonnets" in capsys.readouterr().out
    first = json.loads(Path("run/report.json").read_text())["figures"]["dev loss"]
    flags = without(sonnet_flags, "--gold_sonnet_path", "--epochs", "--lr")
    run(sonnet_generation, [*flags, "--checkpoint", "run"])  # the same one, whatever the prediction's seed
    assert json.loads(Path("run/checkpoint-report.json").read_text())["figures"]["dev loss"] == first
