"""Run folders: the only place that reads and writes what a training run keeps.

    runs/NAME/settings.json     every setting, the task, the base model and all else that the run depends on
              metrics.jsonl     one line a step (step, loss, lr) and one an epoch
              report.json       the figures that the script printed last
              best/             model.safetensors of the best epoch, score.json
              snapshots/        weights of the last measurements, where their mean is wanted
              last/             model, optimizer and random state where training stands, state.json

A script that trains several models, one after the other (its parts), has a folder with a run in it for each:
runs/NAME/sst/settings.json and so on.

Only tensors that are trained are kept. Tensors are safetensors, everything else JSON; nothing is pickled. How best/ and
last/ outlive stops and damage: training/storage.py. A folder has one writer at a time: it holds a lock.
"""

import contextlib
import dataclasses
import os
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from cli.flags import GoingOn, refuse_training_flags, settings_to_dict, take_over
from cli.script import on_stop, say
from config import TuningSettings
from errors import Diverged, UserError, check
from files import read_json, where_it_may_be, write_json
from formats.hugging_face import all_finite
from training.inputs import check_base, difference, find_again, places_beside
from training.metrics import Metrics, read_lines
from training.processes import from_first_process, in_first_process
from training.sharding import in_first, placed_like
from training.storage import damage_of, find_folder, put_back, read_tensors, sha256_of_record, user_errors, write_folder
from tuning.register import default_learning_rate
from tuning.state import load_tuning, trainable_state_dict

FORMAT = 2  # of settings.json; 1 kept less, and can be predicted with, but not gone on with
OLDER = "was recorded by an older version of this project"


@dataclass
class Progress:
    """Where training stands.

    epoch: complete epochs. step: optimizer steps, skipped ones too; updates: without them; bad_steps: skipped in a row.
    epoch_step, epoch_loss, epoch_count: steps of the epoch under way, and its summed loss and number of terms.
    rows_at_once: rows of a batch that fit into memory, 0 while all do.
    loss_scale, steady_steps, overflows: in fp16, what the loss is multiplied by, the steps in a row that it has been
    right for, and the steps that were left out because it was too large (training/fp16.py).
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    bad_steps: int = 0
    best_score: float = float("-inf")
    best_epoch: int = 0
    epochs_since_best: int = 0
    epoch_step: int = 0
    epoch_loss: float = 0.0
    epoch_count: float = 0.0
    rows_at_once: int = 0
    loss_scale: float = 1.0
    steady_steps: int = 0
    overflows: int = 0

    @property
    def scheduled(self):
        """The steps that the learning rate's schedule has seen."""
        return self.step - self.overflows


PROGRESS = {setting.name: setting.type for setting in dataclasses.fields(Progress)}
SINCE_FP16 = ("loss_scale", "steady_steps", "overflows")  # which no state of before has


@dataclass
class Run:
    """folder: where it is kept. resumed: it was there already. claims: a new folder, which gets a free name if need be.

    part: the name of the script's part that it is a run of, which is the folder's own; "" where there are no parts.
    predicting: nothing is trained; then what the script writes into the folder has names of its own. total_steps: the
    optimizer steps of the whole run as it was begun, which the learning rate follows. bytes: of the best epoch's
    weights, once they are loaded. seed: what it is trained with, or was.
    """

    folder: Path
    resumed: bool = False
    claims: bool = False
    predicting: bool = False
    total_steps: int = 0
    bytes: int = 0
    part: str = ""
    seed: int = 0
    facts: dict = field(default_factory=dict)  # what a report says of it, as from `record_of`
    trackers: list = field(default_factory=list, repr=False)  # what gets the lines of metrics, too
    metrics: Metrics | None = None  # in the main process
    lock: filelock.FileLock = field(default=None, repr=False)

    @property
    def home(self):
        """What --run_dir and --checkpoint call the run: the folder or, where it is a part, the folder of all parts."""
        return self.folder.parent if self.part else self.folder

    @property
    def resume_flags(self):
        """The flags that go on with this run and no other part. (A script with parts has --only.)"""
        return f"--resume --run_dir {self.home}" + (f" --only {self.part}" if self.part else "")

    def settle(self, home):
        """Keep a part's run in this home, which an earlier part of the same script has claimed."""
        self.folder, self.claims = home / self.part, False

    # --- beginning ---------------------------------------------------------------------------------------------------

    def begin(self, task, settings, base, inputs=None, total_steps=0):
        """Write a new run's record, or hold a resumed one to its own. Raises UserError for what differs, by name.

        base: as from `fingerprint`. inputs: {what: value} that a run that goes on must find again: a number, or
        {"rows", "sha256"} of data. Nothing is written where nothing will be trained.
        """
        if self.resumed:
            self._hold_to(base, inputs or {}, type(settings.training))
        if self.predicting:
            return
        made = not self.folder.exists() or self.claims
        with user_errors(self.folder):
            self._take_folder()
        with self.given_up_on_errors(made):
            self._lock()
            if self.resumed:
                self._go_on(self.record(), settings, total_steps)
            else:
                taken = (self.folder / "settings.json").exists()
                check(not taken, f"{self.folder} holds a run already: continue it with --resume, or choose another")
                now = {"format": FORMAT, "task": task, "base": base, "inputs": inputs or {}, "total_steps": total_steps}
                now |= {"part": self.part} if self.part else {}
                now |= {"places": places_beside(self.folder, settings)}
                self._write_record(now | {"settings": settings_to_dict(settings)})
                self.total_steps = total_steps
        self.metrics = Metrics(self.folder / "metrics.jsonl")
        on_stop(f"go on with: python {task}.py --resume --run_dir {self.home}")

    @contextlib.contextmanager
    def given_up_on_errors(self, made=True):
        """Where this context ends in a UserError, no half-made run is left behind. made: its folder was made for it."""
        try:
            yield
        except UserError:
            self.close()
            if made and not self.resumed:
                shutil.rmtree(self.folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # not empty: other parts are there
                    self.home.rmdir()
            raise

    def _go_on(self, record, settings, total_steps):
        """The learning rate follows the steps that the run was begun with, unless the user asks for more epochs."""
        self.total_steps, now = record["total_steps"], record
        if total_steps > self.total_steps:
            say(f"{self.folder}: the learning rate now follows {total_steps} steps in all, not {self.total_steps}")
            self.total_steps, now = total_steps, record | {"total_steps": total_steps}
        if now != record or self.diverged.exists():  # more epochs or, after a divergence, another --lr
            self._write_record(now | {"settings": settings_to_dict(settings)})

    def _take_folder(self):
        """Make the folder; creating it (of a part: the folder of all parts) is what claims a default name."""
        wanted, home, number = self.home, self.home, 1
        while self.claims and not self.resumed:
            try:
                home.parent.mkdir(parents=True, exist_ok=True)
                home.mkdir()
                break
            except FileExistsError:
                number += 1
                home = wanted.with_name(f"{wanted.name}-{number}")
        self.folder = home / self.part
        self.folder.mkdir(parents=True, exist_ok=True)

    def _lock(self):
        """One writer at a time. The operating system lets go of the lock when its holder ends, however it ends."""
        self.lock, holder = filelock.FileLock(self.folder / ".lock", timeout=0, mode=0o666), self.folder / ".lock.json"
        try:
            self.lock.acquire()
        except filelock.Timeout as error:
            known = read_json(holder, {"host": str, "pid": int}) if holder.exists() else {"host": "?", "pid": "?"}
            raise UserError(
                f"{self.folder} is being trained by process {known['pid']} on {known['host']}: wait for it, or stop it"
            ) from error
        write_json(holder, {"host": socket.gethostname(), "pid": os.getpid()})

    def close(self):
        """Let go of the folder."""
        while self.trackers:
            self.trackers.pop().close()
        if self.lock is not None and self.lock.is_locked:
            (self.folder / ".lock.json").unlink(missing_ok=True)
            self.lock.release()  # the file .lock stays: to remove it would let two others lock two different files
        self.lock = None

    def _write_record(self, record):
        record = {key: value for key, value in record.items() if key != "sha256"}
        write_json(self.folder / "settings.json", record | {"sha256": sha256_of_record(record)})

    def record(self, task=None):
        """What settings.json holds: {"task", "base", "inputs", "total_steps", "settings"}. Raises UserError."""
        path = self.folder / "settings.json"
        if not path.exists():
            raise UserError(f"{self.folder} is no run folder: it has no settings.json; {self._instead()}")
        record = read_json(path, optional={"format": int, "task": str}, remedy="train the run again")
        if task and record.get("task", task) != task:
            theirs = record["task"]
            raise UserError(
                f"{self.folder} is a run of {theirs}, not of {task}: give it to {theirs}.py, or another run"
            )
        kinds = {"task": str, "settings": dict}
        kinds |= {"base": dict, "inputs": dict, "total_steps": int} if "format" in record else {"base_fingerprint": str}
        if not kinds.keys() <= record.keys():
            raise UserError(f"{path} is not the settings.json of a run")
        record = read_json(path, kinds, {"places": dict}, remedy="train the run again")
        check(
            record.get("format", 1) <= FORMAT,
            f"{self.folder} was recorded by a newer version of this project: use that",
        )
        if "format" in record:
            said = {key: value for key, value in record.items() if key != "sha256"}
            whole = record.get("sha256") == sha256_of_record(said)
            check(whole, f"{path} was changed, or is damaged (its SHA-256 does not fit): restore it, or train again")
        training = record["settings"].get("training")
        if isinstance(training, dict) and training.get("lr", 0) is None:  # of old the rate was left to the methods
            training["lr"] = default_learning_rate(TuningSettings(**record["settings"].get("tuning", {})).methods)
        return find_again(self.folder, record)

    def _instead(self):
        """What to give in the place of a folder that is none of a run."""
        if not self.folder.is_dir():
            return where_it_may_be(self.folder)
        inner = sorted(path.parent for path in self.folder.glob("*/settings.json"))
        return (
            f"give one of those in it, {' or '.join(map(str, inner[:3]))}" if inner else "give one that training made"
        )

    def _hold_to(self, base, inputs, training_settings):
        """training_settings: the class of the script's group of that name."""
        record = self.record()
        if "base" not in record:
            check(self.predicting, f"{self.folder} {OLDER}, which kept too little to go on: predict with --checkpoint")
            say(f"{self.folder} {OLDER}: whether the base model is the one that it was trained on cannot be checked")
            return
        check_base(record, base, self.folder)
        if self.predicting:
            return
        known = dict(record["inputs"])
        if "processes" in known:  # of old; several processes drew other batches then
            check(known.pop("processes") == 1, f"{self.folder} {OLDER}, whose processes had other batches: begin again")
            known |= training_settings(**record["settings"]["training"]).together(1)
        for what in known.keys() | inputs.keys():
            found = difference(self.folder, what, known.get(what), inputs.get(what))
            check(found is None, found)

    # --- while training ----------------------------------------------------------------------------------------------

    def log(self, record):
        """Append one line to metrics.jsonl."""
        self.metrics.add(record)
        for tracker in self.trackers:
            tracker.log(record)

    def save(self, model, optimizer, progress, random_states):
        """Keep where training stands. random_states: {name: uint8 tensor}. Raises Diverged, and changes nothing.

        As all that keeps a model's tensors: called in all processes, of which the first one writes.
        """
        tensors = in_first(trainable_state_dict(model, resumable=True))
        moments = in_first(_optimizer_tensors(model, optimizer))
        in_first_process(self._write_state, tensors, moments, progress, random_states)

    def _write_state(self, tensors, moments, progress, random_states):
        self._keep_finite(tensors)
        size, digest = self.metrics.sync()
        write_folder(
            self.folder / "last",
            {"model.safetensors": tensors, "optimizer.safetensors": moments, "random.safetensors": random_states},
            {"state.json": dataclasses.asdict(progress), "metrics.json": {"bytes": size, "sha256": digest}},
        )

    def _keep_finite(self, tensors):
        """Raise Diverged for tensors that are not finite; from now on --resume takes another --lr, as it advises."""
        try:
            _check_finite(tensors)
        except Diverged as error:
            write_json(self.diverged, {"what": str(error)})
            raise

    def restore(self, model):
        """Put the model back to where training stood: (Progress, moments, random states).

        moments: (name, tensor), one after the other, for `put_moments`. A new run, or one that was stopped before
        anything was kept, starts at 0.
        """
        folder, progress = in_first_process(self._find_state)
        if folder is None:
            return progress, (), {}
        load_tuning(model, dict(from_first_process(read_tensors, folder / "model.safetensors")), self.folder)
        moments = from_first_process(read_tensors, folder / "optimizer.safetensors")
        return progress, moments, dict(from_first_process(read_tensors, folder / "random.safetensors"))

    def _find_state(self):
        """(the folder of what was kept last or None, its Progress); metrics.jsonl is cut to it."""
        for name in ("last", "best") if self.metrics is not None else ():
            put_back(self.folder / name)
        folder = find_folder(self.folder / "last") if self.resumed else None
        if folder is None:
            if self.resumed:
                say(f"{self.folder} has kept no state of its training (last/): it begins at the first step")
            if self.metrics is not None:
                self.metrics.cut_to(0, "")
            return None, Progress()
        if self.metrics is not None:
            kept = read_json(folder / "metrics.json", {"bytes": int, "sha256": str})
            self.metrics.cut_to(kept["bytes"], kept["sha256"])
        newer = {name: PROGRESS[name] for name in SINCE_FP16}
        known = {name: kind for name, kind in PROGRESS.items() if name not in newer}
        return folder, Progress(**read_json(folder / "state.json", known, newer))

    @property
    def diverged(self):
        """The file that says that the run ended in numbers that are not finite; then --resume takes another --lr."""
        return self.folder / "diverged.json"

    # --- what comes out ----------------------------------------------------------------------------------------------

    def save_best(self, model, score):
        """Keep model's trained tensors as the run's best epoch. score: {"epoch", "score"}. Called in all processes."""
        in_first_process(self._write_best, in_first(trainable_state_dict(model)), score)

    def _write_best(self, tensors, score):
        self._keep_finite(tensors)
        write_folder(self.folder / "best", {"model.safetensors": tensors}, {"score.json": score})

    def load_best(self, model):
        """Put the weights of the best epoch into the model; returns {"epoch", "score"}. Called in all processes."""
        found = {}

        def read():
            folder = find_folder(self.folder / "best", without_manifest="format" not in self.record())
            if folder is None:
                raise UserError(f"{self.folder} has no complete epoch yet: go on with it first, by {self.resume_flags}")
            tensors = read_tensors(folder / "model.safetensors")
            _check_finite(tensors)
            self.bytes = (folder / "model.safetensors").stat().st_size
            found["score"] = read_json(folder / "score.json", {"epoch": int, "score": float})
            return tensors

        load_tuning(model, dict(from_first_process(read)), self.folder)
        return in_first_process(found.get, "score")

    def save_snapshot(self, model, number, most):
        """Keep the weights of measurement `number`, and of the `most` last ones no more than that."""
        place = self.folder / "snapshots"
        tensors = trainable_state_dict(model)
        _check_finite(tensors)
        write_folder(place / f"{number:06d}", {"model.safetensors": tensors}, {})
        for folder in place.iterdir():
            if not folder.name.isdigit() or int(folder.name) <= number - most:
                shutil.rmtree(folder)

    def load_average(self, model):
        """Put the mean of all kept snapshots into the model (Vaswani et al. 2017, section 6.1); returns their numbers.

        Damaged ones are said, and left out.
        """
        total, numbers = {}, []

        def read():
            for folder in sorted((self.folder / "snapshots").glob("[0-9]*")):
                if damage := damage_of(folder):
                    say(f"{damage}: it is left out of the mean")
                    continue
                for name, tensor in read_tensors(folder / "model.safetensors").items():
                    total[name] = total.get(name, 0) + tensor.double()
                numbers.append(int(folder.name))
            check(
                numbers,
                f"{self.folder} has kept no whole snapshot of its weights: train it again",
            )
            return {name: (tensor / len(numbers)).float() for name, tensor in total.items()}

        load_tuning(model, dict(from_first_process(read)), self.folder)
        return in_first_process(lambda: numbers)

    def lines(self):
        """The lines of metrics.jsonl that can be read."""
        return read_lines(self.folder / "metrics.jsonl")

    def epochs(self):
        """Those of them that are epochs."""
        return [line for line in self.lines() if {"epoch", "train_loss", "seconds"} <= line.keys()]

    def size(self):
        """Bytes of the whole folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def output(self, name):
        """The path of a file that the script writes besides: one of its own where nothing was trained."""
        return self.folder / (f"checkpoint-{name}" if self.predicting else name)

    def report(self, record):
        """Keep what the script has printed at its end, and the run's facts as numbers, for whoever compares runs."""
        write_json(self.output("report.json"), {"run": self.facts} | record)

    def reported(self):
        """What the training run's script has kept so: {} where it has not come to its end. Raises UserError."""
        path = self.folder / "report.json"
        return read_json(path, optional={"run": dict, "figures": dict, "scores": dict}) if path.exists() else {}


def open_run(task, name, settings, given, part=""):
    """The run that the flags in settings.run ask for, and the settings to use: (Run, settings).

    task: the script's name. name: what a new run is called by default. given: the flags that the user typed. A resumed
    run, or one that only predicts, brings its own settings along; flags that contradict them are refused by name.
    part: the script's part that is asked for. Where a resumed run was stopped before it, it begins with the settings of
    the parts that are there.
    """
    flags = settings.run
    if flags.checkpoint:
        refuse_training_flags(settings, given)
        return _saved_run(task, Run(Path(flags.checkpoint) / part, True, predicting=True, part=part), settings, given)
    if flags.resume:
        home = Path(flags.run_dir) if flags.run_dir else _newest(name.split("-")[0], "*" if part else "")
        return _saved_run(task, Run(home / part, True, part=part), settings, given)
    if flags.run_dir:
        folder = Path(flags.run_dir, part)
        check(not Path(flags.run_dir).is_file(), f"--run_dir {flags.run_dir} is a file: give a folder, or a new name")
        if (folder / "settings.json").exists():
            raise UserError(f"{folder} holds a run already: continue it with --resume, or choose another --run_dir")
        return Run(folder, part=part, seed=settings.training.seed), settings
    return Run(Path("runs", name, part), claims=True, part=part, seed=settings.training.seed), settings


def _saved_run(task, run, settings, given):
    """(run, its settings with what the user changed), or those of another part, where this one was not begun."""
    source = run
    if run.part and not (run.folder / "settings.json").exists():
        others = sorted(path.parent for path in run.home.glob("*/settings.json"))
        no_run = f"{run.home} is no run folder of {task}.py: it has no {run.part}/settings.json"
        check(others, f"{no_run}; give one that {task}.py has made")
        source = Run(others[0], part=others[0].name)
        run.resumed = run.predicting
    how = GoingOn(str(source.folder), given, predicting=run.predicting, diverged=source.diverged.exists())
    saved = source.record(task)["settings"]
    settings = take_over(saved, settings, how)
    run.seed = saved.get("training", {}).get("seed", settings.training.seed)
    return run, settings


def _newest(task_prefix, part=""):
    runs = list(Path("runs").glob(str(Path(f"{task_prefix}*", part, "settings.json"))))
    if not runs:
        raise UserError("there is no run to resume under runs/: leave --resume out, or name one with --run_dir")
    return max(runs, key=lambda path: path.stat().st_mtime).parents[1 if part else 0]


def put_moments(model, optimizer, moments, updates):
    """Give the optimizer of the model's parameters what `_optimizer_tensors` took of it: (name, tensor) after (name,
    tensor). updates: the steps that it has taken."""
    parameters = dict(model.named_parameters())
    for key, tensor in moments:
        kind, _, name = key.partition(".")
        state = optimizer.state[parameters[name]]
        state["step"], state[kind] = updates, placed_like(tensor, parameters[name])


def _optimizer_tensors(model, optimizer):
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in ("exp_avg", "exp_avg_sq")
    }


def _check_finite(tensors):
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise Diverged(f"{name} is not finite any more: it is not kept; go on with --resume and a lower --lr")
