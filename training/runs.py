"""Run folders: the only place that reads and writes what a training run keeps.

    runs/NAME/settings.json     every setting, the task, and a fingerprint of the base model
              metrics.jsonl     one line a step (step, loss, lr) and one an epoch
              report.json       the figures that the script printed last
              best/             model.safetensors of the best epoch, score.json
              last/             model.safetensors, optimizer.safetensors, state.json of the last complete epoch

Only tensors that are trained are kept. Tensors are safetensors, everything else JSON; nothing is pickled. A folder is
written beside its place and renamed, so that a stop at any moment leaves the old state or the new one, never a mixture.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli.flags import refuse_training_flags, settings_to_dict, take_over
from config import TuningSettings
from errors import UserError
from tuning.register import default_learning_rate
from tuning.state import load_tuning, trainable_state_dict


@dataclass
class Progress:
    """Where training stands: complete epochs and steps, the best score and its epoch, epochs since then."""

    epoch: int = 0
    step: int = 0
    best_score: float = float("-inf")
    best_epoch: int = 0
    epochs_since_best: int = 0


@dataclass
class Run:
    folder: Path
    resumed: bool = False

    @property
    def last(self):
        return _complete(self.folder / "last")

    @property
    def best(self):
        return _complete(self.folder / "best")

    def log(self, record):
        """Append one line to metrics.jsonl."""
        with _user_errors(self.folder), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_epoch(self, model, optimizer, progress):
        """Keep the state after a complete epoch and, if it is the best one, its weights for prediction."""
        if progress.epochs_since_best == 0:
            self.save_best(model, {"epoch": progress.best_epoch, "score": progress.best_score})
        _write_folder(
            self.folder / "last",
            {
                "model.safetensors": trainable_state_dict(model, resumable=True),
                "optimizer.safetensors": _optimizer_tensors(model, optimizer),
            },
            {"state.json": dataclasses.asdict(progress)},
        )

    def restore(self, model, optimizer):
        """Put model and optimizer back to the last complete epoch, and return the Progress; a new run starts at 0."""
        if not self.resumed or not self.last.is_dir():
            return Progress()
        load_tuning(model, _read_tensors(self.last / "model.safetensors"), self.folder)
        moments = _read_tensors(self.last / "optimizer.safetensors")
        progress = Progress(**_read_json(self.last / "state.json"))
        for name, parameter in model.named_parameters():
            if f"exp_avg.{name}" in moments:
                optimizer.state[parameter] = {
                    "step": progress.step,
                    "exp_avg": moments[f"exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": moments[f"exp_avg_sq.{name}"].to(parameter.device),
                }
        self._forget_metrics_after(progress)
        return progress

    def record(self, task=None):
        """What settings.json holds: {"task", "base_fingerprint", "settings"}. Raises UserError."""
        path = self.folder / "settings.json"
        record = _read_json(path)
        if task and isinstance(record, dict) and record.get("task", task) != task:
            raise UserError(f"{self.folder} is a run of {record['task']}, not of {task}")
        if not isinstance(record, dict) or not {"task", "base_fingerprint", "settings"} <= record.keys():
            raise UserError(f"{path} is not the settings.json of a run")
        training = record["settings"].get("training", {})
        if training.get("lr", 0) is None:  # runs of old: the rate was left to the methods, and not said
            training["lr"] = default_learning_rate(TuningSettings(**record["settings"].get("tuning", {})).methods)
        return record

    def save_best(self, model, score):
        """Keep model's trained tensors as the run's best epoch. score: {"epoch", "score"}."""
        _write_folder(self.folder / "best", {"model.safetensors": trainable_state_dict(model)}, {"score.json": score})

    def load_best(self, model):
        """Put the weights of the best epoch into the model; returns {"epoch", "score"}."""
        if not self.best.is_dir():
            raise UserError(f"{self.folder} has no complete epoch yet: train it first, without --checkpoint")
        load_tuning(model, _read_tensors(self.best / "model.safetensors"), self.folder)
        return _read_json(self.best / "score.json")

    def begin(self, task, settings, fingerprint):
        """Write a new run's settings, or hold a resumed one to the base model that it was trained on (UserError)."""
        if not self.resumed:
            record = {"task": task, "base_fingerprint": fingerprint, "settings": settings_to_dict(settings)}
            with _user_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "settings.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            return
        known = self.record()["base_fingerprint"]
        if known != fingerprint:
            raise UserError(
                f"{self.folder} was trained on another base model (fingerprint {known}, here {fingerprint}): "
                "give the --model_size or --model_path that it was trained with"
            )

    def report(self, record):
        """Keep what the script has printed at its end, for whoever compares runs."""
        with _user_errors(self.folder):
            (self.folder / "report.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def size(self):
        """Bytes of the weights that prediction needs."""
        return (self.best / "model.safetensors").stat().st_size

    def _forget_metrics_after(self, progress):
        """Drop the lines of the epoch that was cut off; it is trained again."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= progress.epoch]
        path.write_text("".join(kept), encoding="utf-8")


def open_run(task, name, settings, given):
    """The run that the flags in settings.run ask for, and the settings to use: (Run, settings).

    task: the script's name. name: what a new run is called by default. given: the flags that the user typed. A resumed
    run, or one that only predicts, brings its own settings along; flags that contradict them are refused by name.
    """
    flags = settings.run
    if flags.checkpoint:
        refuse_training_flags(settings, given)
        run = Run(Path(flags.checkpoint), resumed=True)
        return run, take_over(run.record(task)["settings"], settings, given, run.folder, predicting=True)
    if flags.resume:
        run = Run(Path(flags.run_dir) if flags.run_dir else _newest(name.split("-")[0]), resumed=True)
        return run, take_over(run.record(task)["settings"], settings, given, run.folder)
    if flags.run_dir:
        folder = Path(flags.run_dir)
        if (folder / "settings.json").exists():
            raise UserError(f"{folder} holds a run already: continue it with --resume, or choose another --run_dir")
        return Run(folder), settings
    return Run(free_folder(Path("runs") / name)), settings


def free_folder(wanted):
    """The folder itself where it holds no run, else the first of its names with -2, -3, ... that holds none."""
    folder, number = wanted, 1
    while (folder / "settings.json").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _newest(task_prefix):
    runs = list(Path("runs").glob(f"{task_prefix}*/settings.json"))
    if not runs:
        raise UserError("there is no run to resume under runs/: leave --resume out, or name one with --run_dir")
    return max(runs, key=lambda path: path.stat().st_mtime).parent


def fingerprint(model):
    """A short hash of a model's shapes and of 64 values of each tensor, the same whatever its dtype was cast from."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        sampled = values[:: max(1, len(values) // 64)][:64].float().cpu().contiguous()
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()[:16]


def _optimizer_tensors(model, optimizer):
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in ("exp_avg", "exp_avg_sq")
    }


def _complete(folder):
    """The folder, or the previous one where a stop fell between the two renames of `_write_folder`."""
    old = folder.with_name(f"{folder.name}.old")
    return old if old.is_dir() and not folder.is_dir() else folder


def _write_folder(folder, tensors, records):
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    with _user_errors(folder):
        if old.is_dir() and not folder.is_dir():
            os.rename(old, folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        for name, named_tensors in tensors.items():
            save_file({key: t.detach().cpu().contiguous() for key, t in named_tensors.items()}, new / name)
        for name, record in records.items():
            (new / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.is_dir():
            os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old, ignore_errors=True)


def _read_tensors(path):
    with _user_errors(path):
        return load_file(path)


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): train the run again") from error


@contextlib.contextmanager
def _user_errors(path):
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read or write {path} ({error}): check the disk's room and your permissions") from error
