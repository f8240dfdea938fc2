"""Check hand-in files, grade them, pack what is handed in.

python submission.py check predictions/para-test-output.csv \\
        --input data/quora-test-student.csv
    the format, every id once, legal answers; sonnets: prompts kept
python submission.py grade predictions/para-dev-output.csv \\
        --gold data/quora-dev.csv
    scores with 95 % intervals, beside what needs no model
python submission.py grade STUDENTS --gold data/quora-dev.csv \\
        --out leaderboard.csv --deadline 2026-03-01T23:59
    a folder with a sub-folder for each student: a leader board
python submission.py zip
    code and predictions as one file, ready to be handed in
"""

import argparse

from cli.flags import FlagParser, refuse_unused
from cli.script import run_script, say, start


def parse(arguments=None):
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("check", "grade", "zip"))
    parser.add_argument(
        "hand_in", nargs="?", metavar="FILE", help="check, grade: a hand-in file; grade: or a folder of students"
    )
    parser.add_argument("--input", help="check: the file that was answered (with labels or without)")
    parser.add_argument("--gold", help="grade: the file with labels, or the whole sonnets")
    parser.add_argument("--task", choices=("sonnets", "pairs", "sst", "cfimdb"), help="if the file does not tell it")
    parser.add_argument("--training", help="grade: training sonnets, for the floor of a random training tail")
    parser.add_argument("--file", help="grade: the hand-in's name in a student's folder, if several")
    parser.add_argument("--deadline", help="grade: later files get no rank, 2026-03-01T23:59 (local time, or +00:00)")
    parser.add_argument("--gradescope", help="grade: write Gradescope's results.json here; always ends with code 0")
    parser.add_argument("--out", help="grade: the leader board as CSV; zip: another name for the file")
    parser.add_argument("--with_tests", action="store_true", help="zip: the tests, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

from pathlib import Path

from cli.tables import format_table
from config import CLASSES, ClassifierSettings, ParaphraseData, SonnetData
from datasets.sonnets import head_of
from errors import UserError, check
from files import check_writable, read_text, write_json, write_text
from handin.boards import format_csv
from handin.bundle import NAME, write_zip
from handin.checks import check_file, load_input, read_answers, read_sonnets, task_of, warn_of_lengths
from handin.grading import floors, grade, gradescope, in_digits, leaderboard, read_deadline


def main(options):
    for needed in {"check": ("hand_in", "input"), "grade": ("hand_in", "gold"), "zip": ()}[options.action]:
        flag = "a file" if needed == "hand_in" else f"--{needed} FILE"
        check(getattr(options, needed), f"{options.action} wants {flag} (--help shows examples)")
    of_students = options.action == "grade" and Path(options.hand_in).is_dir()
    refuse_idle(options, of_students)
    for path in filter(None, (options.out, options.gradescope)):
        check_writable(path)
    if options.action == "zip":
        pack(options)
    elif options.action == "check":
        check_one(options.hand_in, options.input, options.task)
    elif of_students:
        grade_students(options)
    else:
        grade_one(options)


def refuse_idle(options, of_students):
    """Raise UserError for a flag that means nothing to what is asked for."""
    doing = "a folder of students" if of_students else options.action
    used = {
        "a folder of students": {"hand_in", "gold", "task", "file", "deadline", "out"},
        "grade": {"hand_in", "gold", "task", "training", "gradescope"},
        "check": {"hand_in", "input", "task"},
        "zip": {"out", "with_tests"},
    }[doing]
    check(options.action != "zip" or not options.hand_in, "zip takes no file: it packs what is in this folder")
    refuse_unused(options, used | {"action"}, "one hand-in file" if doing == "grade" else doing)


def check_one(path, source, task=None):
    """Say what a hand-in file holds. Raises UserError where it is not in order."""
    task = task or task_of(path, source)
    rows = load_input(source, task)
    held = check_file(path, task, [head_of(text) for text in rows] if task == "sonnets" else rows)
    if task == "sonnets":
        warn_of_lengths(path, held)
    say(f"{path}: {len(held)} {'sonnets' if task == 'sonnets' else 'answers'}, in order")


def grade_one(options):
    task = options.task
    try:
        task = task or task_of(options.hand_in, options.gold)
        gold = load_input(options.gold, task, "dev")
        scores = grade(options.hand_in, task, gold)
    except UserError as error:
        if not options.gradescope:
            raise
        say(f"error: {error}")
        return write_json(options.gradescope, gradescope(task, fault=str(error)))
    if options.gradescope:
        write_json(options.gradescope, gradescope(task, scores))
    table = {
        name: {"score": in_digits(task, score), "95 % interval": f"{in_digits(task, low)} to {in_digits(task, high)}"}
        for name, (score, low, high) in scores.items()
    }
    training = load_input(options.training, task) if options.training else None
    for floor, row in floors(task, gold, training).items():
        table |= {f"floor: {floor}, {name}": {"score": in_digits(task, row[name])} for name in scores if name in row}
    say("\n" + format_table(table, str(options.hand_in)), end="")


def grade_students(options):
    task = options.task or gold_task(options.gold)
    deadline = read_deadline(options.deadline) if options.deadline else None
    gold = load_input(options.gold, task, "dev")
    rows = leaderboard(options.hand_in, task, gold, options.file, deadline)
    if options.out:
        text = format_csv(rows)
        # Excel takes a file without the mark for one of the machine's own code page: Korean names become noise
        write_text(options.out, text if text.isascii() else "\ufeff" + text)
    columns = [name for name in rows[0] if not name.endswith((" low", " high"))]
    say("\n" + format_table({str(n): {c: row[c] for c in columns} for n, row in enumerate(rows, 1)}), end="")


def gold_task(path):
    """The task that a gold file is of."""
    header = read_text(path).lstrip().split("\n", 1)[0].split()
    if "is_duplicate" in header:
        return "pairs"
    if "sentiment" in header:
        return "cfimdb" if "cfimdb" in Path(path).name.lower() else "sst"
    return "sonnets"


def pack(options):
    for path, source in expected():
        if not Path(path).exists():
            say(f"warning: {path} is missing: nothing is handed in for it")
        elif Path(source).exists():
            check_one(path, source)
        else:
            say(f"{path}: {source} is not here, only its form is checked")
            task = task_of(path)
            read_sonnets(path) if task == "sonnets" else read_answers(path, task)
    names = write_zip(".", options.out or NAME, options.with_tests)
    say(f"{options.out or NAME}: {len(names)} files")


def expected():
    """[(hand-in file, the input that it answers)] at their default places."""
    sonnets, pairs, reviews = SonnetData(), ParaphraseData(), ClassifierSettings()
    found = [
        (sonnets.sonnet_out, sonnets.held_out_sonnet_path),
        (sonnets.sonnet_dev_out, sonnets.gold_sonnet_path),
        (pairs.para_dev_out, pairs.para_dev),
        (pairs.para_test_out, pairs.para_test),
    ]
    for reviews.head.fine_tune_mode in ("last-linear-layer", "full-model"):
        for name in CLASSES:
            for split in ("dev", "test"):
                found.append((reviews.output(name, split), getattr(reviews.data, f"{name}_{split}")))
    return found


if __name__ == "__main__":
    run_script(main, *[OPTIONS])
