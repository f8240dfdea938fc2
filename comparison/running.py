"""The runs of an experiment: what is missing is trained, some at a time, each by its script in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

from cli.flags import settings_to_dict
from cli.script import Stopped, finish_first, say, stop_asked
from errors import UserError, check
from files import read_json, write_json
from training.runs import Run
from tuning.register import default_learning_rate

ARGUMENTS = "arguments.json"  # in the folder of a run that only predicts


def check_recorded(run):
    """Raise UserError where a run's record is not what the experiment now asks for."""
    if run.checkpoint:
        _check_arguments(run)
        return
    own = run.task.own_flags(run.folder, run.settings).keys() - {"only"}
    recorded = Run(run.record_folder).record(run.task.script)["settings"]
    asked = settings_to_dict(run.settings)
    if asked["training"]["lr"] is None:
        frozen = getattr(run.settings, "frozen", False)
        methods = run.settings.tuning.methods if run.task.tunes else []
        asked["training"]["lr"] = default_learning_rate(methods, frozen)
    if asked["training"]["precision"] == "auto":  # the machine's choice is recorded
        asked["training"]["precision"] = recorded["training"]["precision"]
    defaults = settings_to_dict(run.task.settings())  # a record of old lacks what has come since
    for group, values in asked.items():
        for name, value in values.items():
            known = recorded.get(group, {}).get(name, defaults[group][name])
            known, value = (list(it) if isinstance(it, tuple) else it for it in (known, value))
            same = known == value or name in ("run_dir", "resume", *own)  # the folder may have been moved
            check(
                same,
                f"{run.folder} was trained with {name} = {known}, the experiment asks for {value}: "
                "give another --out, or remove that folder",
            )


def _check_arguments(run):
    path = run.folder / ARGUMENTS
    if path.exists():
        known = read_json(path, {"arguments": list})["arguments"]
        other = next((word for word in run.arguments if word not in known), None)
        other = other or next((word for word in known if word not in run.arguments), None)
        check(
            known == run.arguments,
            f"{run.folder} was made with other flags ({other}): give another --out, or remove that folder",
        )


def same_precision(runs):
    """Let the runs that are still to be trained have the precision of those that are there: what "auto" takes differs
    from machine to machine, and a table of both compares nothing. Raises UserError where both are there already."""
    known = {}
    for run in runs:
        if not run.checkpoint and (run.begun or run.done):
            found = Run(run.record_folder).record(run.task.script)["settings"]["training"]["precision"]
            known.setdefault(found, run.folder)
    asked = {run.settings.training.precision for run in runs}
    if asked != {"auto"} or not known:
        return
    names = " and ".join(f"{folder} in {name}" for name, folder in known.items())
    check(len(known) == 1, f"{names}: these do not compare; give `precision` in the experiment and another --out")
    (precision,) = known
    for run in runs:
        run.settings.training.precision = precision
        if not run.checkpoint and not run.begun:
            run.arguments = [*run.arguments, f"--precision={precision}"]


def check_same_dev(runs):
    """Raise UserError unless all runs were measured on the same dev items: the bootstrap pairs them."""
    first = None
    for run in runs:
        if run.checkpoint:
            continue
        inputs = Run(run.record_folder).record(run.task.script)["inputs"]
        dev = {name: data["sha256"] for name, data in inputs.items() if " dev " in f" {name} "}
        first = first or dev
        check(
            dev == first,
            f"{run.folder} was measured on other dev data than {runs[0].folder}: the file was changed in between; give "
            "another --out, or remove one of them",
        )


def make_all(runs, at_a_time):
    """Make what is missing, so many runs at a time, in order. Raises UserError with a failed script's own line (those
    under way are finished first), Stopped after a stop."""
    waiting, under_way, failed = list(runs), [], None
    with finish_first():
        while under_way or (waiting and not failed and not stop_asked()):
            while waiting and len(under_way) < at_a_time and not failed and not stop_asked():
                run = waiting.pop(0)
                if run.done:
                    say(f"{_place(runs, run)}: {run.folder} done before")
                    continue
                if run.checkpoint and any(not child.run.checkpoint for child in under_way):
                    waiting.insert(0, run)  # its model is in the making
                    break
                under_way.append(_Child(run, at_a_time))
                say(f"{_place(runs, run)}: {run.folder} ...")
            time.sleep(0.1)
            for child in list(under_way):
                if stop_asked():
                    child.stop()
                if child.process.poll() is None:
                    continue
                under_way.remove(child)
                failed = failed or (None if stop_asked() else child.fault())
                if not failed and not stop_asked():
                    say(f"{_place(runs, child.run)}: {child.run.folder} {child.seconds:.0f} s")
    if stop_asked():
        raise Stopped(stop_asked())
    if failed:
        raise UserError(failed)


def _place(runs, run):
    return f"{runs.index(run) + 1} of {len(runs)}"


class _Child:
    """A script at work on a run. Its output goes into a log beside the run's folder."""

    def __init__(self, run, at_a_time):
        self.run, self.began, self.told = run, time.perf_counter(), False
        self.log = run.folder.with_name(f"{run.folder.name}.log")
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        if run.checkpoint:
            run.folder.mkdir(exist_ok=True)
            write_json(run.folder / ARGUMENTS, {"arguments": run.arguments})
        command = [sys.executable, f"{run.task.script}.py", *run.arguments, *(["--resume"] if run.begun else [])]
        threads = max(1, (os.cpu_count() or 1) // at_a_time)
        environment = os.environ | {"PYTHONIOENCODING": "utf-8"}  # the log's, whatever the console's is
        environment |= {"OMP_NUM_THREADS": str(threads)} if at_a_time > 1 else {}
        with open(self.log, "ab") as file:
            # a session of its own: Ctrl-C must reach it once, from here, for a second one ends it at once
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=Path.cwd(), env=environment, start_new_session=True
            )

    @property
    def seconds(self):
        return time.perf_counter() - self.began

    def stop(self):
        if not self.told:
            self.process.terminate()
            self.told = True

    def fault(self):
        """What went wrong, in one line, or None. A run that only predicted leaves its report in its own folder."""
        if not self.process.returncode:
            if self.run.checkpoint:
                os.replace(self.run.checkpoint / "checkpoint-report.json", self.run.report_path)
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
        said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
        return f"{self.run.folder} failed: {said} (log: {self.log}; the same command goes on with what is missing)"


def report_of(run):
    """The report.json of a run that is done. Raises UserError."""
    if not run.checkpoint:
        return Run(run.record_folder).reported()
    return read_json(run.report_path, {"run": dict}, remedy=f"remove {run.folder}, and go on")
