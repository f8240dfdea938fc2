"""`make quickstart` as far as a test can go: both commands for one epoch, and the page at the end."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_quickstart_runs_and_sums_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # it finds the project by itself
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "data" / "quickstart.py")
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    out, runs = tmp_path / "out", tmp_path / "runs"
    quickstart.main(str(out), str(runs), more="--epochs 1")
    files = ["generated_sonnets.txt", "generated_sonnets_dev.txt", "para-dev-output.csv", "para-test-output.csv"]
    assert sorted(path.name for path in out.iterdir()) == [*files, "report.html", "summary.txt"]
    page = (out / "summary.txt").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    for words in (
        *("parameters trained", "sonnets: dev loss", "chrF of lines 4-14, model", "floor: random training tail"),
        *("pairs: dev accuracy", "pairs: dev macro-F1", "0.5000 dev accuracy", "trees over common words"),
        "written by the author",
    ):
        assert words in page
    assert "You left the car seat set for longer legs.   " in page  # a dev sonnet, beside itself
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Sonnets of sonnets" in report and "Answers of pairs" in report
    assert sorted(path.name for path in (runs / "quickstart-1").iterdir()) == ["pairs", "sonnets"]
