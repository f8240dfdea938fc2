"""The process that has torch loaded, seen from the grader's side: started, given orders, watched, killed.

Every order is carried out by a child of it, which is killed with all its descendants at the end, or when it takes too
long or becomes too many.
"""

import contextlib
import functools
import os
import re
import select
import subprocess
import sys
import time

import psutil

MOST_PROCESSES = 32
START_SECONDS = 120  # of the process, on a slow machine
END_SECONDS = 5
ROUNDS = 50  # of killing: what forks meanwhile is caught by the next one
ISOLATED = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child=KILL")


@functools.cache
def can_isolate():
    """Whether a process may have a network and process ids of its own here, which are none."""
    try:
        return subprocess.run([*ISOLATED, "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Launcher:
    """A process of course/worker.py that starts a child for each order: torch is loaded once. A context manager."""

    def __init__(self, folder, trial):
        """folder: with the project in it, as folder/project. trial: a path, an order that is carried out first: what is
        wrong with this machine must not cost a student's points."""
        self.folder, self.trial = folder, trial
        self.process, self.family = None, set()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._end()

    def run(self, order, seconds):
        """Carry out an order (a path), and return in a student's words why the process ended."""
        if self.process is not None and self._reply(0):
            self._end()  # it has said what nobody asked for
        if self.process is None:
            self._start()
        try:
            self._send(order)
            fault = self._watch(seconds)
        except BrokenPipeError:
            fault = None
        reply = self._reply(START_SECONDS)
        if not re.fullmatch(r"-?\d+", reply):
            fault = fault or "your code ended the process that runs the tests"
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
        self.replies = reading
        if self._reply(START_SECONDS) == "ready":
            self._send(self.trial)
        if self._reply(START_SECONDS) != "0":
            self._end()
            raise RuntimeError(f"the process for students' code does not work:\n{log.read_text(errors='replace')}")
        self.worker = psutil.Process(self.process.pid)
        if can_isolate():  # the process is that of `unshare`, the worker its child
            self.worker = self.worker.children()[0]

    def _send(self, order):
        self.process.stdin.write(f"{order}\n".encode())
        self.process.stdin.flush()

    def _reply(self, seconds):
        """The next line from the worker; "" where none comes in this time, or ever."""
        ready, _, _ = select.select([self.replies], [], [], seconds)
        return os.read(self.replies, 64).decode(errors="replace").strip() if ready else ""

    def _watch(self, seconds):
        """Wait until there is a reply. Returns why the child was killed, or None where it ended by itself."""
        end, self.family = time.monotonic() + seconds, set()
        while not select.select([self.replies], [], [], 0.05)[0]:
            self.family |= self._children()
            fault = None
            if sum(child.is_running() for child in self.family) > MOST_PROCESSES:
                fault = f"stopped: your code started more than {MOST_PROCESSES} processes"
            elif time.monotonic() > end:
                fault = f"stopped after {seconds:.0f} seconds: an endless loop?"
            if fault:
                self._kill_children()
                return fault
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
        """The worker ends where its orders do; one that does not is killed, and `unshare` takes it along."""
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            os.close(self.replies)
            self.process = None


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _ending(code):
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}, or took too much memory"
