"""Grades: scores with their 95 % intervals and floors, a leader board of a folder of students, Gradescope's JSON.

The interval is the bootstrap's (Efron 1979): items are drawn anew with replacement, and the score lies within it in 95
of 100 draws. What a draw of N items does to a score depends on how often each item (or each cell of the confusion
matrix) is drawn alone, so these numbers are drawn, from a multinomial, and nothing is scored twice.
"""

import os
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
from sacrebleu.metrics import CHRF

from datasets.sonnets import head_of, tail_of
from errors import UserError, check
from evaluation import (
    accuracy,
    answer_token,
    chrf,
    commonest,
    interval,
    macro_f1,
    resample_counts,
    score_sonnets,
    sonnet_floors,
    texts_resampled,
)
from handin.boards import entries_of, gradescope_record, gradescope_test, plain_name
from handin.checks import POSSIBLE, check_file

RESAMPLES, SEED = 1000, 0


def truths_of(task, rows):
    """{id: the answer} of gold rows, as hand-in files have them."""
    return {row[-1]: answer_token(row[-2]) if task == "pairs" else row[-2] for row in rows}


def grade(path, task, gold, resamples=RESAMPLES):
    """{figure: (score, low, high)} of a hand-in file, the one that ranks first. gold: rows with labels, or whole
    sonnets. Accuracy and macro-F1 are in [0, 1], chrF in [0, 100]. Raises UserError for a file that is not in order."""
    if task == "sonnets":
        return _grade_sonnets(check_file(path, task, [head_of(text) for text in gold]), gold, resamples)
    truths = truths_of(task, gold)
    answers = check_file(path, task, gold)
    return grade_answers(
        [answers[identifier] for identifier in truths], list(truths.values()), POSSIBLE[task], resamples
    )


def grade_answers(predictions, truths, possible, resamples=RESAMPLES):
    """{"accuracy", "macro-F1": (score, low, high)}. possible: the classes that there are."""
    pairs, size = Counter(zip(truths, predictions, strict=True)), len(possible)
    cells = np.array([pairs[truth, guess] for truth in possible for guess in possible])
    draws = np.random.default_rng(SEED).multinomial(len(truths), cells / len(truths), resamples)
    draws = draws.reshape(resamples, size, size)
    hits = np.diagonal(draws, axis1=1, axis2=2)
    marked = draws.sum(1) + draws.sum(2)  # 2 TP + FP + FN of each class
    f1 = np.where(marked, 2 * hits / np.maximum(marked, 1), 0).sum(1) / (marked > 0).sum(1)
    return {
        "accuracy": (accuracy(predictions, truths), *interval(hits.sum(1) / len(truths))),
        "macro-F1": (macro_f1(predictions, truths), *interval(f1)),
    }


def _grade_sonnets(sonnets, gold, resamples):
    counts, scores = resample_counts(len(gold), resamples, SEED), score_sonnets(sonnets, gold)
    texts = {"chrF whole": (sonnets, gold), "chrF continuation": ([*map(tail_of, sonnets)], [*map(tail_of, gold)])}
    return {name: (scores[name], *interval(texts_resampled(CHRF(), *texts[name], counts))) for name in texts}


def floors(task, gold, training=None):
    """What one gets without a model: {name: {figure: score}}. training: sonnets, or None."""
    if task != "sonnets":
        truths = list(truths_of(task, gold).values())
        constant = [commonest(truths)] * len(truths)
        scores = {"accuracy": accuracy(constant, truths), "macro-F1": macro_f1(constant, truths)}
        return {"always the commonest answer": scores}
    if training is None:
        return {"prompt alone": {"chrF whole": chrf([head_of(text) for text in gold], gold)}}
    table = sonnet_floors(gold, training)
    return {name: {figure: value[0] for figure, value in row.items()} for name, row in table.items()}


def in_digits(task, value):
    return f"{value:.2f}" if task == "sonnets" else f"{value:.4f}"


# --- a folder of students ---------------------------------------------------------------------------------------------


def leaderboard(folder, task, gold, file=None, deadline=None, resamples=RESAMPLES):
    """[{column: text}], a row for each sub-folder: the ranked by score, then the late, then those without a score.

    file: where in a sub-folder the hand-in is; by default it is the only file there. deadline: a datetime with its time
    zone. Equal scores, as they are shown, have the same rank. Raises UserError only where the folder cannot be read.
    """
    rows = []
    for student in entries_of(folder):
        row = {"rank": "", "student": plain_name(student.name)}
        try:
            path = _file_of(student, file)
            for name, (score, low, high) in grade(path, task, gold, resamples).items():
                shown = [in_digits(task, value) for value in (score, low, high)]
                row |= dict(zip((name, f"{name} low", f"{name} high"), shown, strict=True))
            late = deadline and path.stat().st_mtime > deadline.timestamp()
            row |= {"status": "late" if late else "ok", "reason": ""}
        except (UserError, OSError) as error:
            reason = str(UserError(error)).replace(f"{plain_name(str(student))}{os.sep}", "")
            row |= {"status": "broken", "reason": reason}
        rows.append(row)
    check(rows, f"{folder} has no sub-folder: put each student's hand-in into one")
    return _ranked(rows, task)


def _ranked(rows, task):
    main = "chrF whole" if task == "sonnets" else "accuracy"
    order = {"ok": 0, "late": 1, "broken": 2}
    rows = sorted(rows, key=lambda row: (order[row["status"]], -float(row.get(main, 0)), row["student"]))
    scores = [row[main] for row in rows if row["status"] == "ok"]
    for row, score in zip(rows, scores, strict=False):  # the others come last, and have no rank
        row["rank"] = str(scores.index(score) + 1)
    second = "chrF continuation" if task == "sonnets" else "macro-F1"
    figures = [f"{name}{end}" for name in (main, second) for end in ("", " low", " high")]
    return [{name: row.get(name, "") for name in ("rank", "student", *figures, "status", "reason")} for row in rows]


def _file_of(student, file):
    """The path of a student's hand-in. Raises UserError where it is none, or leads out of the folder."""
    check(not student.is_symlink(), "the folder is a symbolic link: hand in the files themselves")
    check(student.is_dir(), "this is no folder: put the hand-in into one")
    found = [student / file] if file else entries_of(student)
    check(len(found) == 1, f"the folder holds {len(found)} files: leave one, or say by --file which it is")
    path = found[0]
    check(not path.is_symlink(), f"{path} is a symbolic link: hand in the file itself")
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(student))  # resolve() fails on circles
    check(inside, f"{path} leads out of the student's folder: hand in the file itself")
    return path


def read_deadline(text):
    """A time as ISO 8601 has it; without a zone it is this machine's. Raises UserError."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise UserError(f"--deadline {text} is no time: write it like 2026-03-01T23:59") from error


def gradescope(task, scores=None, fault=None):
    """The record that Gradescope's autograder reads from results.json: the score is in percent."""
    if fault:
        return gradescope_record(fault, [gradescope_test("format", 0.0, 100.0, fault, status="failed")])
    percent = 1 if task == "sonnets" else 100
    tests = []
    for name, (score, low, high) in scores.items():
        text = f"{in_digits(task, score)}, 95 % interval {in_digits(task, low)} to {in_digits(task, high)}"
        tests.append(gradescope_test(name, round(percent * score, 2), 100.0, text))
    return gradescope_record(f"{tests[0]['name']}: {tests[0]['output']}", tests, tests[0]["score"])
