"""A student's code run apart: a process without network, with limits, on a scratch copy; what it computed comes back.

Each exercise has a process of its own, with limits of time, memory and number of processes, which is killed with all
its descendants at the end. `protections` says what of this machine holds it besides. Answers are a file that is read
with distrust.
"""

import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from course.cutting import take_out
from course.exercises import ROOT, load_exercises
from course.sandbox import landlock_version
from errors import UserError
from handin.bundle import files_to_pack
from handin.checks import read_hand_in

MOST_ANSWERS = 8 * 2**20  # bytes
MOST_FILE = 16 * 2**20
MOST_PROCESSES = 32
START_SECONDS = 120  # of a worker, on a slow machine
ROUNDS = 50
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


class Launcher:
    """A process of course/worker.py that starts a child for each order: torch is loaded once. A context manager."""

    def __init__(self, folder):
        """folder: a new one, for a copy of the project that the process is started in."""
        self.folder, self.process = folder, None
        lay_out(folder, None, {})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._end()

    def run(self, order, limits):
        """Carry out an order (a path), and return in a student's words why the process ended."""
        if self.process is None:
            self._start()
        try:
            self._send(order)
            fault = self._watch(limits)
        except BrokenPipeError:
            fault = None
        reply = self._reply(START_SECONDS)
        if fault is None and not reply:
            fault = "your code ended the process that runs the tests"
        if not reply:
            self._end()  # the next order has a new one
        self._kill_children()
        return fault or f"the process {_ending(int(reply))} before the test had an answer"

    def _start(self):
        (reading, writing), log = os.pipe(), self.folder / "log"
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        environment |= {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
        command = [*(ISOLATED if can_isolate() else ()), sys.executable, "-B", "-m", "course.worker", str(writing)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder / "project",
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                pass_fds=[writing],
                start_new_session=True,
            )
        os.close(writing)
        self.replies = os.fdopen(reading)
        if self._reply(START_SECONDS) != "ready" or self._try_out() != "0":
            self._end()
            raise RuntimeError(f"the process for students' code does not work:\n{log.read_text(errors='replace')}")
        self.worker = psutil.Process(self.process.pid)
        if can_isolate():  # the process is that of `unshare`, the worker its child
            self.worker = self.worker.children()[0]

    def _try_out(self):
        """The reply to an order without tests: what is wrong with this machine must not cost a student's points."""
        exercise = next(iter(load_exercises().values()))
        with scratch_folder() as scratch:
            lay_out(scratch, exercise, {file: (ROOT / file).read_text("utf-8") for file in exercise.files})
            self._send(order_of(scratch, exercise.name, [], 0, Limits()))
            return self._reply(START_SECONDS)

    def _send(self, order):
        self.process.stdin.write(f"{order}\n".encode())
        self.process.stdin.flush()

    def _reply(self, seconds):
        """The next line from the worker; "" where none comes in this time, or ever."""
        ready, _, _ = select.select([self.replies], [], [], seconds)
        return self.replies.readline().strip() if ready else ""

    def _watch(self, limits):
        """Wait until there is a reply. Returns why the child was killed, or None where it ended by itself."""
        end, self.family = time.monotonic() + limits.seconds, set()
        while not select.select([self.replies], [], [], 0.05)[0]:
            self.family |= self._children()
            late, many = time.monotonic() > end, sum(child.is_running() for child in self.family) > MOST_PROCESSES
            if late or many:
                self._kill_children()
                too_long = f"stopped after {limits.seconds:.0f} seconds: an endless loop?"
                return too_long if late else f"stopped: your code started more than {MOST_PROCESSES} processes"
        return None

    def _children(self):
        try:
            return set(self.worker.children(recursive=True))
        except psutil.Error:  # the worker itself is gone
            return set()

    def _kill_children(self):
        """Kill all descendants that are there or were seen; a fork bomb needs several rounds."""
        for _ in range(ROUNDS):
            self.family |= self._children()
            alive = [child for child in self.family if _is_alive(child)]
            for child in alive:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            if not alive:
                return
            time.sleep(0.02)

    def _end(self):
        if self.process is not None:
            self.process.kill()  # the worker goes with `unshare`; else it ends when its orders do
            self.process.stdin.close()
            self.process.wait()
            self.replies.close()
            self.process = None


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _ending(code):
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}, or took too much memory"


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
            fault = launcher.run(order, Limits(seconds, limits.memory))
            given = _read_answers(scratch / "answers")
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
    bodies = exercise.named(("write", "withheld"), file)
    return (
        take_out(source, dict.fromkeys(bodies, exercise.name), exercise.named(("remove",), file)) if bodies else source
    )


def _put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


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
