"""A student's code run apart: a process without network, with limits, on a scratch copy; what it computed comes back.

Each exercise has a process of its own, with limits of time, memory and number of processes, which is killed with all
its descendants at the end. `protections` says what of this machine holds it besides. Answers are a file that is read
with distrust.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from course.cutting import take_out
from course.exercises import ROOT, load_exercises
from course.launcher import Launcher, can_isolate
from course.sandbox import landlock_version
from handin.bundle import files_to_pack

MOST_ANSWERS = 8 * 2**20  # bytes
MOST_FILE = 16 * 2**20
OURS = ("__init__", "sandbox", "worker", "cutting", "exercises")  # what of course/ the student's process needs


@dataclass(frozen=True)
class Limits:
    """seconds: for all tests of an exercise, the start of Python included. memory: bytes of each process."""

    seconds: float = 60.0
    memory: int = 4 * 2**30


def protections():
    """What holds a student's process on this machine, in words."""
    version = landlock_version()
    otherwise = "no TCP (Landlock)" if version >= 4 else "NOT BLOCKED"
    network = "none (a namespace of its own)" if can_isolate() else otherwise
    files = "a scratch folder alone can be written (Landlock)" if version else "NOT HELD: a copy is all that protects"
    return f"network: {network}; files: {files}"


@contextlib.contextmanager
def launched():
    """A Launcher, in a folder of its own."""
    exercise = next(iter(load_exercises().values()))
    with scratch_folder() as folder, scratch_folder() as scratch:
        lay_out(folder, None, {})
        lay_out(scratch, exercise, {file: (ROOT / file).read_text("utf-8") for file in exercise.files})
        with Launcher(folder, order_of(scratch, exercise.name, [], 0, Limits())) as launcher:
            yield launcher


def run_tests(exercise, files, seed, limits, launcher):
    """{test: answer} of a student's files ({name: text}) for an exercise.

    Where the process ends before all tests have answered, the next one is to blame; the others get another process, as
    long as there is time.
    """
    answers, left, end = {}, list(exercise.tests), time.monotonic() + limits.seconds
    while left:
        seconds = end - time.monotonic()
        if seconds <= 0:
            late = f"no time was left, of {limits.seconds:g} seconds"
            return answers | {test: {"fault": late} for test in left}
        with scratch_folder() as scratch:
            lay_out(scratch, exercise, files)
            order = order_of(scratch, exercise.name, left, seed, Limits(seconds, limits.memory))
            with open(scratch / "answers", "w+b") as file:  # held open: what is answered stays, even if it is deleted
                fault = launcher.run(order, seconds)
                given = _answers_in(file)
        answers |= {test: given[test] for test in left if test in given}
        left = [test for test in left if test not in given]
        if left:
            answers[left.pop(0)] = {"fault": fault}
    return answers


def order_of(scratch, exercise, tests, seed, limits):
    """Write what the worker shall do, and return the file's path."""
    order = {"exercise": exercise, "tests": tests, "seed": seed, "scratch": str(scratch), "memory": limits.memory}
    order |= {"seconds": int(limits.seconds) + 1, "file_bytes": MOST_FILE}
    path = scratch / "order.json"
    path.write_text(json.dumps(order), encoding="utf-8")
    return path


@contextlib.contextmanager
def scratch_folder():
    """A folder that is removed whatever was left in it: unreadable folders, too."""
    folder = Path(tempfile.mkdtemp(prefix="course-"))
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, onerror=_remove_anyway)


def _remove_anyway(function, path, error):
    with contextlib.suppress(OSError):  # what cannot be removed even so stays in the machine's folder for such files
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def lay_out(scratch, exercise, files):
    """scratch/project: the reference without this exercise (None: whole); scratch/student: what was handed in."""
    for source in files_to_pack(ROOT):
        name = source.relative_to(ROOT)
        if source.suffix == ".py":
            _put(scratch / "project" / name, without(exercise, name.as_posix(), source.read_text("utf-8")))
    course = ROOT / "course"
    for source in [*(course / f"{name}.py" for name in OURS), course / "exercises.toml", *course.glob("checks/*.py")]:
        _put(scratch / "project" / source.relative_to(ROOT), source.read_text("utf-8"))
    for name, text in files.items():
        _put(scratch / "student" / name, text)


def without(exercise, file, source):
    """A file of the reference without an exercise's solution."""
    if exercise is None:
        return source
    bodies, helpers = exercise.named(("write", "withheld"), file), exercise.named(("remove",), file)
    return take_out(source, dict.fromkeys(bodies, exercise.name), helpers) if bodies else source


def _put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _answers_in(file):
    """{test: answer}, of the lines that can be read."""
    file.seek(0)
    answers = {}
    for line in file.read(MOST_ANSWERS).decode("utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            answers.setdefault(entry["test"], entry["given"])
        except (ValueError, KeyError, TypeError, RecursionError):  # cut off, or written by the student's code
            continue
    return answers
