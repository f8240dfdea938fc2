"""What graders of predictions and of code write alike: a board as CSV, Gradescope's results, names of students."""

import csv
import io
from pathlib import Path

from errors import UserError


def entries_of(folder):
    """What a folder holds, sorted, hidden entries left out. Raises UserError."""
    try:
        return sorted(entry for entry in Path(folder).iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): check the path and its permissions") from error


def plain_name(text):
    """A name that a terminal can show: no control codes, no halves of characters."""
    return "".join(mark if mark.isprintable() else "\ufffd" for mark in text)


def format_csv(rows):
    """Rows, as dicts, as CSV. What a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        writer.writerow([f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell for cell in row])
    return text.getvalue()


def gradescope_test(name, score, most, output, **more):
    """An entry of Gradescope's list of tests. more: status, "passed" or "failed", where there is one."""
    return {"name": name, "score": score, "max_score": most, **more, "output": output}


def gradescope_record(output, tests, score=None):
    """The record that Gradescope's autograder reads from results.json. score: None is the sum over the tests."""
    score = sum(test["score"] for test in tests) if score is None else score
    return {"score": score, "output": output, "tests": tests}
