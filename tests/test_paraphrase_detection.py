"""paraphrase_detection.py from end to end on a tiny model, against the course's hand-in format and itself."""

import json
import re
import sys

import pytest

import paraphrase_detection
from tests.inputs import check_prediction_file, run, without


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--head linear --pooling attention --lora",
        "--head linear --pooling generalized --pooling_heads 2 --pooling_penalty parameters --adapter",
        "--pooling mean --merge --lora",
        "--pooling aligned --pooling_hidden 8 --tuning prompt --precision bf16",
    ],
)
def test_pairs_from_training_to_the_files(pair_flags, tmp_path, capsys, more):
    run(paraphrase_detection, pair_flags + more.split())
    out = capsys.readouterr().out
    check_prediction_file(tmp_path / "out/dev.csv", [f"id{row}" for row in range(10)])
    check_prediction_file(tmp_path / "out/test.csv", [f"id{row}" for row in range(7)])
    assert "dev macro-F1" in out and "always the commoner answer" in out and "trees over word overlap" in out
    name = "-".join(["paraphrase", *(re.findall(r"(?:--|--tuning )(lora|adapter|prompt)\b", more) or ["full"])])
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


def test_without_scikit_learn_a_line_says_how_to_get_it(pair_flags, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)  # so that its import fails
    run(paraphrase_detection, pair_flags)
    out = capsys.readouterr().out
    assert "trees over word overlap need scikit-learn: pip install -r requirements-extra.txt\n" in out
    assert "always the commoner answer" in out and "trees over word overlap  " not in out
