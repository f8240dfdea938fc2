"""Students' trees graded: points for every test of every exercise, messages, a board, Gradescope's results.json."""

import os
from dataclasses import dataclass
from pathlib import Path

from course.checks import cases_of
from course.exercises import load_exercises
from course.expectations import expectations
from course.judging import verdict
from course.running import launched, run_tests
from errors import UserError, check
from files import write_text
from handin.boards import entries_of, format_csv, gradescope_record, gradescope_test, plain_name
from handin.checks import read_hand_in

MOST_BYTES = 2**20  # of a student's file


@dataclass(frozen=True)
class Result:
    """One test of a student. message: None where it passed."""

    exercise: str
    test: str
    most: int
    message: str | None

    @property
    def points(self):
        return self.most if self.message is None else 0


def grade_trees(trees, exercises, seed, limits, say):
    """{student: [Result]}, in the order of the table. trees: {student: folder}, only read. say: told of each result."""
    students = {}
    with launched() as launcher:
        for name, tree in trees.items():
            graded = [grade_exercise(tree, exercise, seed, limits, launcher) for exercise in exercises]
            students[name] = [result for results in graded for result in results]
            total = table_of(students[name])["all"]
            say(f"{name}: {total['points']} of {total['of']} points")
    return students


def grade_exercise(tree, exercise, seed, limits, launcher):
    """[Result] of one exercise. launcher: as from `course.running.launched`."""
    try:
        files = {file: _read(Path(tree), file) for file in exercise.files}
    except UserError as error:
        return [Result(exercise.name, test, most, str(error)) for test, most in exercise.tests.items()]
    wanted, answers = expectations(exercise.name, seed), run_tests(exercise, files, seed, limits, launcher)
    results = []
    for test, most in exercise.tests.items():
        case, (right, mistakes) = cases_of(exercise.name)[test], wanted[test]
        message = verdict(answers.get(test), right, mistakes, case.tolerance, case.asks)
        results.append(Result(exercise.name, test, most, message and str(UserError(message))))  # one printable line
    return results


def _read(tree, file):
    """The text of a student's file. Raises UserError; its message has no path of the teacher's."""
    path, real = tree / file, os.path.realpath(tree / file)
    check(os.path.lexists(path), f"{file} is missing")
    inside = Path(real).is_relative_to(os.path.realpath(tree))
    check(inside and not path.is_symlink(), f"{file} is a link: hand in the file itself")
    try:
        return read_hand_in(path, MOST_BYTES)
    except UserError as error:
        raise UserError(str(error).replace(f"{tree}{os.sep}", "")) from error


def trees_in(folder):
    """{student's name: tree} of a folder: the folder itself where it is a tree, else its sub-folders. UserError."""
    check(Path(folder).is_dir(), f"{folder} is no folder: give a student's tree, or a folder of them")
    if _tree_of(Path(folder)):
        return {plain_name(Path(folder).resolve().name): _tree_of(Path(folder))}
    students = [entry for entry in entries_of(folder) if entry.is_dir() and not entry.is_symlink()]
    check(students, f"{folder} holds neither the project nor a sub-folder: put each student's tree into one")
    return {plain_name(student.name): _tree_of(student) or student for student in students}


def _tree_of(folder):
    """The project in a folder: itself, or the one folder in it, as archives have it. None where there is none."""
    files = [file for exercise in load_exercises().values() for file in exercise.files]
    inner = [entry for entry in entries_of(folder) if entry.is_dir() and not entry.is_symlink()]
    for candidate in [folder, *(inner if len(inner) == 1 else [])]:
        if any((candidate / file).exists() for file in files):
            return candidate
    return None


# --- what comes out ---------------------------------------------------------------------------------------------------


def points_of(results, exercise):
    """(points, most) of one exercise."""
    own = [result for result in results if result.exercise == exercise]
    return sum(result.points for result in own), sum(result.most for result in own)


def table_of(results):
    """{exercise: {"points", "of"}} and the sum, for the table printer."""
    names = dict.fromkeys(result.exercise for result in results)
    counts = {name: points_of(results, name) for name in names}
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    return {name: {"points": str(points), "of": str(most)} for name, (points, most) in counts.items()}


def feedback(student, results):
    """What one student is told: a text, a line for each test."""
    lines = []
    for name, row in table_of(results).items():
        lines += ["", f"{name}: {row['points']} of {row['of']} points"]
        for result in (result for result in results if result.exercise == name):
            lines.append(f"    {'ok  ' if result.message is None else 'FAIL'}  {result.test}")
            lines += [f"          {result.message}"] if result.message else []
    return f"{student}\n" + "\n".join(lines) + "\n"


def write_feedback(folder, students):
    """A file NAME.txt for each student. students: {name: [Result]}. Raises UserError."""
    for student, results in students.items():
        write_text(Path(folder) / f"{student}.txt", feedback(student, results))


def board(students):
    """The board as CSV: a row for each student, a column for each exercise."""
    rows = []
    for student, results in students.items():
        table = table_of(results)
        rows.append({"student": student} | {name: row["points"] for name, row in table.items()})
    return format_csv(rows)


def gradescope(results):
    """The record for Gradescope's results.json: a test there for each test here."""
    tests = [
        gradescope_test(
            f"{result.exercise}: {result.test}",
            float(result.points),
            float(result.most),
            result.message or "passed",
            status="passed" if result.message is None else "failed",
        )
        for result in results
    ]
    total = table_of(results)["all"]
    return gradescope_record(f"{total['points']} of {total['of']} points", tests)
