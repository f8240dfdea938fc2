"""A student's code run apart: a process without network, with limits, on a scratch copy; what it computed comes back.

The process has a time limit, a limit of memory and of processes, and is killed with all its descendants at the end.
`protections` says what of this machine holds it besides. Answers are a file that is read with distrust.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from course.cutting import take_out
from course.exercises import ROOT
from course.sandbox import landlock_version
from errors import UserError
from handin.bundle import files_to_pack
from handin.checks import read_hand_in

MOST_ANSWERS = 8 * 2**20  # bytes
MOST_FILE = 16 * 2**20
MOST_PROCESSES = 32
OURS = ("__init__", "sandbox", "worker", "cutting", "exercises")  # what of course/ the student's process needs
ISOLATED = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child=KILL")


@dataclass(frozen=True)
class Limits:
    """seconds: for all tests of an exercise, the start of Python included. memory: bytes of each process."""

    seconds: float = 60.0
    memory: int = 4 * 2**30


@functools.cache
def can_isolate():
    """Whether a process may have a network and process ids of its own here, which are none."""
    try:
        return subprocess.run([*ISOLATED, "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def protections():
    """What holds a student's process on this machine, in words."""
    version = landlock_version()
    network = (
        "none (a namespace of its own)" if can_isolate() else "no TCP (Landlock)" if version >= 4 else "NOT BLOCKED"
    )
    files = "the scratch folder alone can be written (Landlock)" if version else "NOT HELD: a copy is all that protects"
    return f"network: {network}; files: {files}"


def run_tests(exercise, files, seed, limits):
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
        given, fault = _run_once(exercise, files, left, seed, Limits(seconds, limits.memory))
        answers |= {test: given[test] for test in left if test in given}
        left = [test for test in left if test not in given]
        if left:
            answers[left.pop(0)] = {"fault": fault}
    return answers


def _run_once(exercise, files, tests, seed, limits):
    """({test: answer} as far as there is one, why there is no more)."""
    with scratch_folder() as scratch:
        lay_out(scratch, exercise, files)
        order = {"exercise": exercise.name, "tests": tests, "seed": seed, "scratch": str(scratch)}
        order |= {"student": str(scratch / "student"), "answers": str(scratch / "answers"), "memory": limits.memory}
        order |= {"seconds": int(limits.seconds) + 1, "file_bytes": MOST_FILE}
        (scratch / "order.json").write_text(json.dumps(order), encoding="utf-8")
        fault = _watched(scratch, limits)
        return _read_answers(scratch / "answers"), fault


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
    """scratch/project: the reference without this exercise; scratch/student: what was handed in."""
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
    bodies = exercise.named(("write", "withheld"), file)
    return (
        take_out(source, dict.fromkeys(bodies, exercise.name), exercise.named(("remove",), file)) if bodies else source
    )


def _put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _watched(scratch, limits):
    """Run the worker and return why it ended, in words for a student."""
    command = [*(ISOLATED if can_isolate() else ()), sys.executable, "-B", "-m", "course.worker"]
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(scratch), "TMPDIR": str(scratch)}
    environment |= {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [*command, str(scratch / "order.json")],
        cwd=scratch / "project",
        env=environment,
        start_new_session=True,
        **quiet,
    )
    end, family = time.monotonic() + limits.seconds, set()
    try:
        while process.poll() is None:
            if time.monotonic() > end:
                return f"stopped after {limits.seconds:.0f} seconds: an endless loop?"
            family |= set(_descendants(process.pid))
            if len([p for p in family if p.is_running()]) > MOST_PROCESSES:
                return f"stopped: your code started more than {MOST_PROCESSES} processes"
            time.sleep(0.05)
    finally:
        _end(process, family)
    code = process.returncode
    why = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the process {why} before the test had an answer: your code ended it, or took too much memory"


def _descendants(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:  # it has ended meanwhile
        return []


def _end(process, family):
    """Kill the process, its group, and all descendants that were ever seen."""
    family |= set(_descendants(process.pid))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in family:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()


def _read_answers(path):
    """{test: answer}, of the lines that can be read."""
    answers = {}
    try:
        lines = read_hand_in(path, MOST_ANSWERS).splitlines()
    except UserError:  # no answer, or no file that the worker wrote
        return answers
    for line in lines:
        try:
            entry = json.loads(line)
            answers.setdefault(entry["test"], entry["given"])
        except (ValueError, KeyError, TypeError, RecursionError):  # cut off, or written by the student's code
            continue
    return answers
