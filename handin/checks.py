"""Hand-in files: read with distrust, and held against the input that they answer.

A student's file may be anything: a pipe, a folder, gigabytes, another encoding. It is opened without
waiting, and no more of it is read than a hand-in can have.
"""

import os
import re
import stat
from pathlib import Path

from cli.script import say
from config import ANSWERS, CLASSES
from datasets.paraphrase import load_paraphrase_data
from datasets.sentiment import load_sentiment_data
from datasets.sonnets import SONNET_LINES, is_heading, lines_of, load_sonnets
from errors import UserError, check
from files import not_utf8, read_text, where_it_may_be

TASKS = ("sonnets", "pairs", *CLASSES)
TITLES = {"pairs": "Predicted_Is_Paraphrase"} | dict.fromkeys(CLASSES, "Predicted_Sentiment")
LABELS = {"pairs": "is_duplicate"} | dict.fromkeys(CLASSES, "sentiment")
POSSIBLE = {"pairs": tuple(ANSWERS.values())} | {name: tuple(range(number)) for name, number in CLASSES.items()}
SONNETS_BEGIN = "--Generated Sonnets--"
MOST_BYTES = 16 * 2**20  # of a file of answers: ten times the course's largest
MOST_SONNET_BYTES, MOST_SONNETS = 2**20, 1000


def read_hand_in(path, most_bytes=MOST_BYTES):
    """The text of a hand-in file, line ends as "\\n", without a byte-order mark. Raises UserError."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {where_it_may_be(path)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): check its permissions") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise UserError(f"{path} is a {'folder' if stat.S_ISDIR(mode) else 'device or a pipe'}: give a file")
    with os.fdopen(handle, "rb") as file:
        data = file.read(most_bytes + 1)
    check(len(data) <= most_bytes, f"{path} has more than {most_bytes:,} bytes: no hand-in is that long")
    check(data.strip(), f"{path} is empty: write the predictions first")
    check(not data.startswith((b"\xff\xfe", b"\xfe\xff")), f"{path} is UTF-16: save it as UTF-8")
    check(b"\0" not in data, f"{path} holds NUL bytes, so it is no text: write it again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def task_of(path, hint=""):
    """Which of TASKS a hand-in file answers, by its first line; SST or CFIMDB by its name or by the hint. UserError."""
    first = read_hand_in(path).split("\n", 1)[0]
    if first.startswith(SONNETS_BEGIN):
        return "sonnets"
    if TITLES["pairs"] in first:
        return "pairs"
    check(TITLES["sst"] in first, f"{path} begins with {first[:60]!r}, no task's header: write it as the scripts do")
    return "cfimdb" if "cfimdb" in f"{Path(path).name} {hint}".lower() else "sst"


def read_answers(path, task):
    """{id: answer} of a file of answers, ids in lower case. Raises UserError, with the line."""
    lines = read_hand_in(path).rstrip().split("\n")
    title, possible, answers = TITLES[task], POSSIBLE[task], {}
    wanted = f"id \t {title} "
    header = re.fullmatch(rf"\s*id\s*[\t,]\s*{title}\s*", lines[0])
    check(header, f"{path}, line 1: the header is {lines[0][:60]!r}, it must be {wanted!r}")
    legal, wanted = set(map(str, possible)), " or ".join(map(str, possible))
    for number, line in enumerate(lines[1:], start=2):
        identifier, comma, value = (part.strip() for part in line.rpartition(","))
        where = f"{path}, line {number}"
        check(comma and identifier, f"{where}: {line[:60]!r} is not an id, a comma and an answer")
        identifier = identifier.lower()  # as the readers of the input have it
        check(identifier not in answers, f"{where}: the id {identifier[:60]!r} is there a second time")
        check(value in legal, f"{where}: the answer is {value[:40]!r}, it must be {wanted}")
        answers[identifier] = int(value)
    check(answers, f"{path} has a header and no answer: write the predictions")
    return answers


def check_answers(path, task, ids):
    """{id: answer}, one for each of the ids and no other. Raises UserError."""
    answers, wanted = read_answers(path, task), set(ids)
    for fault, names in (
        ("no answer for", [identifier for identifier in ids if identifier not in answers]),
        ("answers for what the input has not,", [identifier for identifier in answers if identifier not in wanted]),
    ):
        check(not names, f"{path} has {fault} {len(names)} ids, the first {(names or [''])[0][:60]!r}: predict again")
    return answers


def read_sonnets(path):
    """The sonnets of a hand-in file. Raises UserError."""
    text = read_hand_in(path, MOST_SONNET_BYTES)
    first, *lines = text.split("\n")
    check(first.strip() == SONNETS_BEGIN, f"{path} begins with {first[:60]!r}, it must be {SONNETS_BEGIN!r}")
    numbers = sum(map(is_heading, lines))  # the reader compares each with all others
    check(numbers <= MOST_SONNETS, f"{path} has {numbers} lines with a number: no hand-in has that many sonnets")
    return load_sonnets(path)


def check_sonnets(path, prompts):
    """The sonnets of a hand-in file, one for each prompt, which it begins with. Raises UserError."""
    sonnets = read_sonnets(path)
    count = f"{path} holds {len(sonnets)} sonnets for {len(prompts)} prompts: write one for each"
    check(len(sonnets) == len(prompts), count)
    for place, (sonnet, prompt) in enumerate(zip(sonnets, prompts, strict=True)):
        kept = " ".join(sonnet.split()).startswith(" ".join(prompt.split()))
        check(kept, f"{path}: sonnet {place} does not begin with its prompt, {prompt.splitlines()[0][:60]!r}: keep it")
    return sonnets


def warn_of_lengths(path, sonnets):
    """Say how many sonnets have not 14 lines: they count, and their score suffers."""
    other = [place for place, sonnet in enumerate(sonnets) if len(lines_of(sonnet)) != SONNET_LINES]
    if other:
        say(f"{path}: {len(other)} of {len(sonnets)} sonnets have not {SONNET_LINES} lines, the first is {other[0]}")


def say_faults(checker, *arguments):
    """Check what a script has just written. What is wrong is said, and does not end the run: the file is there."""
    try:
        checker(*arguments)
    except UserError as error:
        say(f"warning: {error}")


def load_input(path, task, split=None):
    """The rows of the input of a task (sonnets: its texts); split None: "dev" where there are labels, else "test"."""
    if task == "sonnets":
        return load_sonnets(path)
    if split is None:
        split = "dev" if LABELS[task] in read_text(path).lstrip().split("\n", 1)[0].split("\t") else "test"
    return load_paraphrase_data(path, split) if task == "pairs" else load_sentiment_data(path, CLASSES[task], split)


def check_file(path, task, rows):
    """A hand-in against its input's rows: what it holds, {id: answer} or sonnets. Raises UserError."""
    return check_sonnets(path, rows) if task == "sonnets" else check_answers(path, task, [row[-1] for row in rows])
