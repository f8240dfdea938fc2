"""submission.py: hand-in files checked, graded, packed; a student's file may be anything."""

import csv
import json
import os
import subprocess
import sys
import time
import zipfile
from datetime import datetime

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

import submission
from datasets import load_paraphrase_data, load_sonnets
from datasets.sonnets import format_sonnets, head_of
from datasets.tsv import format_answers
from errors import UserError
from evaluation import accuracy, macro_f1, score_sonnets
from handin.boards import format_csv
from handin.bundle import NAME, write_zip
from handin.checks import MOST_BYTES, check_answers, check_sonnets, read_answers, say_faults, task_of
from handin.grading import RESAMPLES, floors, grade, grade_answers, leaderboard
from tests.inputs import ROOT, sonnet, write_pairs, write_reviews, write_sonnets

HEADER = "id \t Predicted_Is_Paraphrase \n"
IDS = [f"id{row}" for row in range(10)]


def pairs_text(answers=None, ids=IDS):
    return format_answers("Predicted_Is_Paraphrase", ids, answers or dict.fromkeys(ids, 8505), (3919, 8505))


def call(*arguments):
    return submission.main(submission.parse(list(map(str, arguments))))


@pytest.fixture
def pairs(tmp_path):
    """A gold file of ten pairs, every second one a paraphrase."""
    write_pairs(tmp_path / "gold.csv", 10)
    return tmp_path / "gold.csv"


# --- check ------------------------------------------------------------------------------------------------------------

GOOD = {
    "as written": lambda text: text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "BOM": lambda text: text.encode("utf-8-sig"),
    "trailing blank lines": lambda text: (text + "\n \n\n").encode(),
    "no last line end": lambda text: text.rstrip().encode(),
    "plain header": lambda text: text.replace(HEADER, "id,Predicted_Is_Paraphrase\n").encode(),
    "other case": lambda text: text.replace("id3", "ID3").encode(),
    "other order": lambda text: (HEADER + "".join(text.splitlines(keepends=True)[:0:-1])).encode(),
}
BAD = {
    "is empty": b"",
    "is UTF-16": pairs_text().encode("utf-16"),
    "NUL bytes": pairs_text().replace("id3", "id\0").encode(),
    "is not UTF-8": pairs_text().replace("id3", "id\xe9").encode("latin-1"),
    "the header is": pairs_text().replace("Paraphrase", "Paraphrases").encode(),
    r"line 3: the id 'id0' is there a second time": pairs_text().replace("id1,", "id0,").encode(),
    "no answer for 1 ids, the first 'id9'": pairs_text().replace("id9, 8505 \n", "").encode(),
    "answers for what the input has not, 1 ids": (pairs_text() + "id10, 8505 \n").encode(),
    r"line 4: the answer is '1', it must be 3919 or 8505": pairs_text().replace("id2, 8505", "id2, 1").encode(),
    r"line 4: the answer is '8505\.0'": pairs_text().replace("id2, 8505", "id2, 8505.0").encode(),
    r"line 4: the answer is ''": pairs_text().replace("id2, 8505", "id2, ").encode(),
    r"is not an id, a comma and an answer": pairs_text().replace("id2, 8505", "id2\t8505").encode(),
    "a header and no answer": HEADER.encode(),
    "more than": b"x" * (MOST_BYTES + 1),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_in_order(tmp_path, pairs, name, capsys):
    path = tmp_path / "out.csv"
    path.write_bytes(GOOD[name](pairs_text()))
    call("check", path, "--input", pairs)
    assert capsys.readouterr().out.endswith("out.csv: 10 answers, in order\n")


@pytest.mark.parametrize("message", BAD)
def test_what_is_not(tmp_path, message):
    path = tmp_path / "out.csv"
    path.write_bytes(BAD[message])
    with pytest.raises(UserError, match=message) as caught:
        check_answers(path, "pairs", IDS)
    assert "\n" not in str(caught.value)


def test_ids_with_spaces(tmp_path):
    ids = ["a b", "c", "d  e"]
    (tmp_path / "out.csv").write_text(pairs_text(ids=ids), encoding="utf-8")
    assert list(check_answers(tmp_path / "out.csv", "pairs", ids)) == ids


@pytest.mark.parametrize(("name", "classes"), [("sst", 5), ("cfimdb", 2)])
def test_reviews(tmp_path, name, classes):
    source, path = tmp_path / f"ids-{name}-test.csv", tmp_path / "out.csv"
    write_reviews(source, classes, 6, labelled=False)
    ids = [f"id{row}" for row in range(6)]
    path.write_text(format_answers("Predicted_Sentiment", ids, dict.fromkeys(ids, 1), range(5)), encoding="utf-8")
    assert task_of(path, source) == name
    call("check", path, "--input", source)
    path.write_text(path.read_text().replace("id2, 1", f"id2, {classes}"))
    with pytest.raises(UserError, match=rf"line 4: the answer is '{classes}'"):
        call("check", path, "--input", source)


@pytest.fixture
def poems(tmp_path):
    """(file of whole sonnets, file of prompts, hand-in)"""
    write_sonnets(tmp_path / "gold.txt", range(1, 6))
    write_sonnets(tmp_path / "prompts.txt", range(1, 6), lines=3)
    path = tmp_path / "out.txt"
    path.write_text(format_sonnets([sonnet(number) for number in range(1, 6)]), encoding="utf-8")
    return tmp_path / "gold.txt", tmp_path / "prompts.txt", path


def test_sonnets(poems, capsys):
    gold, prompts, path = poems
    for source in (gold, prompts):
        call("check", path, "--input", source)
        assert capsys.readouterr().out == f"{path}: 5 sonnets, in order\n"
    path.write_text(format_sonnets([sonnet(1, 12), *map(sonnet, range(2, 6))]), encoding="utf-8")
    call("check", path, "--input", prompts)
    assert "1 of 5 sonnets have not 14 lines, the first is 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("\n1\n", "\n1\nanother first line\n"), "sonnet 1 does not begin with its prompt"),
        (lambda text: text[: text.index("\n4\n")], "holds 4 sonnets for 5 prompts"),
        (lambda text: text.replace("--Generated Sonnets--", "Sonnets"), "it must be '--Generated Sonnets--'"),
        (lambda text: text.replace(sonnet(2), sonnet(2, 7) + "\n7\n" + sonnet(2, 7)), "cuts a sonnet|holds 6 sonnets"),
    ],
)
def test_sonnets_that_are_not_in_order(poems, change, message):
    gold, _, path = poems
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        check_sonnets(path, [head_of(text) for text in load_sonnets(gold)])


@pytest.mark.parametrize("block", ["\n1\nx\n", "sonnet" + "-" * 5000, "-" * 5000 + "1", '"a", "b"\n'])
def test_a_hostile_sonnet_file_is_refused_at_once(tmp_path, block):
    path = tmp_path / "out.txt"
    path.write_text("--Generated Sonnets-- \n\n" + block * (2**20 // len(block) - 20), encoding="utf-8")
    start = time.perf_counter()
    with pytest.raises(UserError):
        check_sonnets(path, ["a prompt"])
    assert time.perf_counter() - start < 5


def test_a_circle_of_links_in_a_students_folder(tmp_path, pairs):
    folder = tmp_path / "students" / "ann"
    folder.mkdir(parents=True)
    (folder / "predictions").symlink_to("predictions")
    rows = leaderboard(tmp_path / "students", "pairs", load_paraphrase_data(pairs, "dev"), "predictions/out.csv")
    assert rows[0]["status"] == "broken"


def test_a_script_says_what_is_wrong_and_goes_on(tmp_path, capsys):
    say_faults(check_answers, tmp_path / "none.csv", "pairs", IDS)
    assert capsys.readouterr().out == f"warning: {tmp_path}/none.csv does not exist: check the path\n"


# --- grade ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_evaluation_and_scikit_learn(classes):
    draw = np.random.default_rng(0)
    truths = draw.integers(classes, size=400).tolist()
    guesses = [t if draw.random() < 0.7 else int(draw.integers(classes)) for t in truths]
    scores = grade_answers(guesses, truths, range(classes))
    assert scores["accuracy"][0] == accuracy(guesses, truths) == pytest.approx(accuracy_score(truths, guesses))
    assert scores["macro-F1"][0] == macro_f1(guesses, truths)
    assert scores["macro-F1"][0] == pytest.approx(f1_score(truths, guesses, average="macro"))
    # the same bootstrap, item by item
    f1 = []
    for _ in range(400):
        rows = draw.integers(400, size=400)
        f1.append(macro_f1([guesses[row] for row in rows], [truths[row] for row in rows]))
    assert scores["macro-F1"][1:] == pytest.approx(np.quantile(f1, (0.025, 0.975)), abs=0.015)


def test_the_interval_of_a_known_case():
    """An accuracy of p over N items has a deviation of sqrt(p (1 - p) / N), and 95 % lie within 1.96 of it."""
    truths, guesses = [0, 1] * 1000, [0, 1] * 800 + [1, 0] * 200
    score, low, high = grade_answers(guesses, truths, (0, 1), 20_000)["accuracy"]
    half = 1.96 * (0.8 * 0.2 / 2000) ** 0.5
    assert score == 0.8 and (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=1e-3)
    assert grade_answers(truths, truths, (0, 1))["macro-F1"] == (1, 1, 1)


def test_sonnets_are_graded_as_evaluation_does(poems):
    gold, _, path = poems
    texts = load_sonnets(gold)
    written = [head_of(text) + "\n" + "\n".join(sonnet(n, 11).splitlines()) for n, text in enumerate(texts)]
    path.write_text(format_sonnets(written), encoding="utf-8")
    scores, expected = grade(path, "sonnets", texts), score_sonnets(written, texts)
    for name, (score, low, high) in scores.items():
        assert score == expected[name] and low < score < high
    draw, resampled = np.random.default_rng(1), []
    for _ in range(100):
        rows = draw.integers(5, size=5)
        resampled.append(score_sonnets([written[row] for row in rows], [texts[row] for row in rows])["chrF whole"])
    assert scores["chrF whole"][1:] == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=4)
    assert set(floors("sonnets", texts)) == {"prompt alone"}
    assert set(floors("sonnets", texts, texts)) == {"prompt alone", "random training tail"}


def test_grade_prints_scores_beside_floors_and_writes_for_gradescope(tmp_path, pairs, capsys):
    path, results = tmp_path / "out.csv", tmp_path / "results.json"
    path.write_text(pairs_text(), encoding="utf-8")
    call("grade", path, "--gold", pairs, "--gradescope", results)
    out = capsys.readouterr().out
    assert "accuracy" in out and "0.5000  0.2000 to 0.8000" in out and "floor: always the commonest answer" in out
    record = json.loads(results.read_text())
    assert record["score"] == 50.0 and [test["name"] for test in record["tests"]] == ["accuracy", "macro-F1"]
    assert all({"name", "score", "max_score", "output"} <= set(test) for test in record["tests"])
    path.write_text("nonsense")
    call("grade", path, "--gold", pairs, "--gradescope", results)
    record = json.loads(results.read_text())
    assert record["score"] == 0 and "no task's header" in record["tests"][0]["output"]


# --- a folder of students ---------------------------------------------------------------------------------------------


def as_directory(folder):
    (folder / "out.csv").mkdir()


def link_outside(folder):
    (folder / "out.csv").symlink_to(folder.parent.parent / "gold.csv")


def link_within(folder):
    (folder / "real.csv").write_text(pairs_text())
    (folder / "out.csv").symlink_to("real.csv")


def as_pipe(folder):
    os.mkfifo(folder / "out.csv")


def as_zip(folder):
    with zipfile.ZipFile(folder / "out.csv", "w") as bundle:
        bundle.writestr("out.csv", pairs_text())


def link_to_device(folder):
    (folder / "out.csv").symlink_to("/dev/zero")


def circle(folder):
    (folder / "out.csv").symlink_to("out.csv")


def dangling(folder):
    (folder / "out.csv").symlink_to("nowhere")


def huge(folder):
    with open(folder / "out.csv", "wb") as file:
        file.truncate(10 * 2**30)  # sparse: takes no room


MADE = (
    as_directory,
    link_outside,
    link_within,
    as_pipe,
    as_zip,
    link_to_device,
    dangling,
    circle,
    huge,
    lambda folder: None,
)
BYTES = (
    *(content for message, content in BAD.items() if message != "more than"),
    b"\x1b[2J" + pairs_text().encode(),
    pairs_text().encode("utf-32"),
    b"PK\x03\x04" + bytes(range(256)),
    b"\x1f\x8b" + bytes(40),
    pairs_text().encode().replace(b"\n", b" "),
    pairs_text().encode().replace(b"8505", b"yes"),
    b"-" * 100_000,
    b"--Generated Sonnets-- \n\n\n0\nno sonnet of this task\n",
    (HEADER * 3).encode(),
)


def test_two_hundred_students(tmp_path, pairs, capsys):
    """Whatever they hand in, each is on the leader board, and nothing waits or fails."""
    students = tmp_path / "students"
    broken = [*MADE, *BYTES]
    assert len(broken) >= 30
    names = ["=cmd()", "+1", "@sum", "-2", "\x1b[31mred", "two\nlines", "\udcff", "Zoe, Ann", 'quo"te', "\u202eltr"]
    expected = {}
    for number in range(200):
        folder = students / (f"{names[number]}" if number < len(names) else f"student{number}")
        folder.mkdir(parents=True)
        kind = number % 50
        if kind < len(broken):
            expected[folder.name] = "broken"
            if callable(broken[kind]):
                broken[kind](folder)
            else:
                (folder / "out.csv").write_bytes(broken[kind])
            continue
        right = number % 7
        answers = {name: (8505 if (row % 2) == (row < right + 3) else 3919) for row, name in enumerate(IDS)}
        (folder / "out.csv").write_text(pairs_text(answers))
        expected[folder.name] = "late" if kind == 49 else "ok"
        os.utime(folder / "out.csv", (2e9, 2e9) if kind == 49 else (1e9, 1e9))
    (students / "a file").write_text("no folder")
    (students / "a link").symlink_to("student40")
    expected |= {"a file": "broken", "a link": "broken"}
    call(
        *("grade", students, "--gold", pairs, "--file", "out.csv"),
        *("--out", tmp_path / "board.csv", "--deadline", "2026-03-01T23:59+00:00"),
    )
    assert "\x1b" not in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "board.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 202
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "late", "broken")}
    assert counts == {status: list(expected.values()).count(status) for status in counts}
    assert all(bool(row["reason"]) == (row["status"] == "broken") for row in rows)
    assert all(bool(row["rank"]) == (row["status"] == "ok") for row in rows)
    ranked = [(int(row["rank"]), row["accuracy"]) for row in rows if row["rank"]]
    assert all(rank == 1 + sum(float(other) > float(score) for _, other in ranked) for rank, score in ranked)
    assert len(dict(ranked)) < len(ranked)  # there are ties
    cells = [cell for row in rows for cell in row.values()]
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells)
    assert "'=cmd()" in cells


def test_a_board_with_korean_names_opens_in_excel(tmp_path, pairs):
    """Which takes UTF-8 for the machine's own code page unless a byte order mark says so."""
    for name, mark in (("ann", b""), ("김민준", b"\xef\xbb\xbf")):
        (tmp_path / "students" / name).mkdir(parents=True)
        (tmp_path / "students" / name / "out.csv").write_text(pairs_text())
        call("grade", tmp_path / "students", "--gold", pairs, "--out", tmp_path / "board.csv")
        board = (tmp_path / "board.csv").read_bytes()
        assert board.startswith(mark + b"rank,student,") and name.encode() in board


def test_which_file_of_a_student(tmp_path, pairs):
    gold = load_paraphrase_data(pairs, "dev")
    for name in ("one", "two"):
        (tmp_path / "students" / name / "predictions").mkdir(parents=True)
        (tmp_path / "students" / name / "predictions" / "out.csv").write_text(pairs_text())
    rows = leaderboard(tmp_path / "students", "pairs", gold, "predictions/out.csv")
    assert [row["rank"] for row in rows] == ["1", "1"] and rows[0]["accuracy"] == "0.5000"
    rows = leaderboard(tmp_path / "students", "pairs", gold)
    assert [row["status"] for row in rows] == ["broken"] * 2
    rows = leaderboard(tmp_path / "students", "pairs", gold, "../../gold.csv")
    assert all("leads out of the student's folder" in row["reason"] for row in rows)
    late = leaderboard(
        tmp_path / "students", "pairs", gold, "predictions/out.csv", datetime.fromisoformat("2001-01-01T00:00+00:00")
    )
    assert [row["status"] for row in late] == ["late"] * 2 and format_csv(late).count("\n") == 3


# --- zip --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_zip_runs_where_it_is_unpacked(tmp_path):
    names = write_zip(ROOT, tmp_path / NAME)
    assert write_zip(ROOT, tmp_path / "again.zip") == names and "reporting/page.html" in names
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "again.zip").read_bytes()
    assert not [name for name in names if "__pycache__" in name or name.startswith((".", "runs", "tests/"))]
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / NAME) as bundle:
        for name in names:
            (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / name).write_bytes(bundle.read(name))
    modules = [name[:-3].replace("/", ".").removesuffix(".__init__") for name in names if name.endswith(".py")]
    assert {"submission", "datasets.tsv", "decoding.writer", "handin.checks", "cli.flags"} <= set(modules)
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (["-c", code], ["sonnet_generation.py", "--help"], ["paraphrase_detection.py", "--help"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=unpacked, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-1000:]


def test_a_new_package_and_predictions_are_packed_and_nothing_else(tmp_path, monkeypatch):
    root = tmp_path / "project"
    good = ["new/deep/part.py", "new/__init__.py", "main.py", "predictions/out.csv", "requirements.txt"]
    bad = ["new/__pycache__/part.pyc", ".venv/x.py", "env/x.py", "env/pyvenv.cfg", "runs/r/x.py", "predictions/q/o.csv"]
    for name in (*good, *bad, "tests/test_x.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    assert write_zip(root, tmp_path / "a.zip") == sorted(good)
    assert "tests/test_x.py" in write_zip(root, tmp_path / "b.zip", with_tests=True)


def test_zip_checks_the_predictions_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").write_text("")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/para-dev-output.csv").write_text(pairs_text())
    call("zip", "--out", "mine.zip")
    out = capsys.readouterr().out
    assert "warning: predictions/para-test-output.csv is missing" in out and "only its form is checked" in out
    assert "predictions/full-model-cfimdb-test-out.csv is missing" in out and "mine.zip: 2 files" in out
    (tmp_path / "predictions/para-dev-output.csv").write_text("nonsense")
    with pytest.raises(UserError, match="no task's header"):
        call("zip", "--out", "other.zip")
    assert not (tmp_path / "other.zip").exists()


def test_help_teaches_within_80_columns():
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "submission.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 80 and "STUDENTS" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "check wants a file"),
        (["check", "x.csv"], "check wants --input FILE"),
        (["grade", "x.csv"], "grade wants --gold FILE"),
        (["grade", ".", "--gold", "none.csv"], "none.csv does not exist"),
        (["grade", ".", "--gold", "gold.csv", "--deadline", "soon"], "--deadline soon is no time"),
        (
            ["grade", ".", "--gold", "gold.csv", "--gradescope", "r.json"],
            "--gradescope has no effect with a folder of students",
        ),
        (
            ["grade", "gold.csv", "--gold", "gold.csv", "--out", "board.csv"],
            "--out has no effect with one hand-in file",
        ),
        (["grade", ".", "--gold", "gold.csv", "--training", "s.txt"], "--training has no effect with a folder"),
        (["check", "gold.csv", "--input", "gold.csv", "--gold", "g"], "--gold has no effect with check"),
        (["zip", "gold.csv"], "zip takes no file"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "gold.csv", 4)
    with pytest.raises(UserError, match=message):
        call(*arguments)


def test_answers_are_read_to_numbers(tmp_path):
    (tmp_path / "out.csv").write_text(pairs_text())
    assert read_answers(tmp_path / "out.csv", "pairs") == dict.fromkeys(IDS, 8505) and RESAMPLES == 1000
