"""The course: what is cut out, what a handout holds, what the command line says."""

import json
import subprocess
import sys

import pytest

from course.__main__ import main, parse
from course.cutting import complete, take_out
from course.grading import Result, board, feedback, gradescope, trees_in
from course.handout import contents, write_handout
from errors import UserError
from tests.course_trees import EXERCISES, ROOT, write_tree


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "handout"
    write_handout(folder)
    return folder


# --- cutting ----------------------------------------------------------------------------------------------------------

SOURCE = '''"""A file."""

import math


class A:
    size = 3  # kept

    def first(self, x):
        """What it does."""
        # a comment of the solution
        y = math.sqrt(x)
        return y

    # between

    @property
    def second(self):
        # no docstring
        return 2


def _helper():
    return 1


def after():
    return _helper()
'''


def test_bodies_are_taken_out_and_everything_else_stays():
    cut = take_out(SOURCE, {"A.first": "first: do it", "A.second": "second"}, ["_helper"])
    assert (
        cut
        == '''"""A file."""

import math


class A:
    size = 3  # kept

    def first(self, x):
        """What it does."""
        raise NotImplementedError("first: do it")

    # between

    @property
    def second(self):
        raise NotImplementedError("second")


def after():
    return _helper()
'''
    )
    with pytest.raises(ValueError, match=r"no A\.third"):
        take_out(SOURCE, {"A.third": "x"})


def test_a_students_file_is_completed_and_keeps_its_helpers():
    student = '"""Mine."""\nfrom math import pi\nclass A:\n  size = 4\n  def first(self, x): return mine(x)\n'
    student += "def mine(x):\n  return pi\n"
    text = complete(student, SOURCE, ["A.second", "after", "_helper"])
    assert "first(self, x): return mine(x)" in text and text.index("import math") < text.index("from math import pi")
    compile(text, "student", "exec")
    for wanted in ("    return 2", "def _helper", "def after"):
        assert wanted in text
    with pytest.raises(ValueError, match="class A is gone"):
        complete("x = 1\n", SOURCE, ["A.second"])


def test_a_replaced_definition_takes_the_students_indentation():
    student = "class A:\n\tdef second(self):\n\t\treturn 5\n\n\tdef third(self):\n\t\treturn 6\n"
    text = complete(student, SOURCE, ["A.second"])
    assert "\n\t@property\n\tdef second(self):\n" in text and "return 5" not in text and "return 6" in text
    compile(text, "student", "exec")


# --- the handout ------------------------------------------------------------------------------------------------------


def test_the_handout_has_no_solution_and_nothing_of_the_teachers(handout):
    names = {path.relative_to(handout).as_posix() for path in handout.rglob("*") if path.is_file()}
    assert {"README.md", "pyproject.toml", "course/check.py", "course/numbers.json", "tests/test_exercises.py"} <= names
    assert {name for name in names if name.startswith("tests/")} == {"tests/test_exercises.py"}
    teachers = ("benchmarks/", ".git/", "course/mistakes", "course/grading", "course/student", "docs/teaching.md")
    assert not [name for name in names if name.startswith(teachers)]
    for exercise in EXERCISES.values():
        for file in exercise.files:
            text = (handout / file).read_text(encoding="utf-8")
            assert text.count(f'NotImplementedError("{exercise.name}: ') + text.count(f'    "{exercise.name}: ') == len(
                exercise.named(("write",), file)
            )
        for file, name in exercise.remove:
            assert name not in (handout / file).read_text(encoding="utf-8")
    telling = ('approximate="tanh"', "_foreach_lerp_", "top_p < 1", "is_causal", "* self.scaling) @", "argmax(dim=1)")
    for path in handout.rglob("*.py"):
        assert not [text for text in telling if text in path.read_text(encoding="utf-8")], path


@pytest.mark.slow
def test_the_handout_passes_the_linter_and_its_checks_fail_with_the_hint(handout):
    for command in (["check", "."], ["format", "--check", "."]):
        subprocess.run([sys.executable, "-m", "ruff", *command], cwd=handout, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "course", "check", "mask"], cwd=handout, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout.count("FAIL") == 4 and "not written yet (mask: causal" in done.stdout
    assert done.stdout.endswith("0 of 8 points\n") and not done.stderr


@pytest.mark.parametrize(
    ("out", "message"),
    [("full", "is not empty"), ("file", "is no folder"), (str(ROOT / "handout"), "is inside the project")],
)
def test_a_handout_is_refused_where_something_is(out, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=message):
        write_handout(out)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine" and not (ROOT / "handout").exists()


def test_a_copy_of_a_solution_elsewhere_is_refused(tmp_path, monkeypatch):
    stray = (ROOT / "modules/pooling.py").read_text(encoding="utf-8").replace("last_token", "final")
    for file in EXERCISES["pooling"].files:
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text((ROOT / file).read_text(encoding="utf-8"))
    (tmp_path / "old_pooling.py").write_text(stray)
    monkeypatch.setattr("course.handout.ROOT", tmp_path)
    monkeypatch.setattr("course.handout._names", lambda: ["old_pooling.py", "modules/pooling.py"])
    monkeypatch.setattr("course.handout.load_exercises", lambda: {"pooling": EXERCISES["pooling"]})
    with pytest.raises(UserError, match=r"^old_pooling.py: \w+ is a copy of the solution modules/pooling.py:"):
        contents()


# --- the command line -------------------------------------------------------------------------------------------------

RESULTS = [Result("mask", "cached", 2, None), Result("mask", "left_padding", 3, "not so. Asked: y")]


def test_results_for_gradescope_board_and_feedback():
    record = gradescope(RESULTS)
    assert record["score"] == 2 and record["output"] == "2 of 5 points" and json.dumps(record)
    assert [(t["name"], t["score"], t["max_score"], t["status"]) for t in record["tests"]] == [
        ("mask: cached", 2.0, 2.0, "passed"),
        ("mask: left_padding", 0.0, 3.0, "failed"),
    ]
    assert board({"=ann": RESULTS, "bob": RESULTS[:1]}) == "student,mask,all\n'=ann,2,2\nbob,2,2\n"
    assert "FAIL  left_padding\n          not so. Asked: y" in feedback("ann", RESULTS)


def test_a_folder_of_students_is_told_from_a_tree(tmp_path):
    write_tree(tmp_path / "ann")
    write_tree(tmp_path / "bob" / "gpt2-handout")
    (tmp_path / "cleo").mkdir()
    (tmp_path / "notes.txt").write_text("no student")
    assert trees_in(tmp_path) == {
        "ann": tmp_path / "ann", "bob": tmp_path / "bob" / "gpt2-handout", "cleo": tmp_path / "cleo",
    }  # fmt: skip
    assert trees_in(tmp_path / "ann") == {"ann": tmp_path / "ann"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("grade", "grade wants one folder"),
        ("grade a b", "grade wants one folder"),
        ("grade missing", "missing is no folder"),
        ("grade empty", "holds neither the project nor a sub-folder"),
        ("grade empty --exercises loro", "there is no exercise loro: choose from embed, attention"),
        ("grade empty --seconds 0", "must be positive"),
        ("grade empty --seconds nan", "must be positive"),
        ("grade empty --out empty", "is a folder"),
        ("check loro", "there is no exercise loro"),
        ("check lora", "course/numbers.json does not exist: check works in a handout"),
        ("handout", "handout wants one folder"),
        ("handout x --seed 3", "--seed is for grade"),
        ("grad", "invalid choice: 'grad'"),
    ],
)
def test_wrong_calls_are_one_line(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        main(parse(line.split()))
    assert message in str(error.value)


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from course.__main__ import parse\ntry: parse(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "handout OUT" in done.stdout
