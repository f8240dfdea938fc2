"""What a report needs of a run: numbers for report.json, and the same as lines for the table at the end."""

import datetime
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from training.pace import in_words
from tuning.state import count_parameters

ROOT = Path(__file__).resolve().parents[1]


def record_of(session, model, best):
    """{name: value} of a run whose best epoch is in the model. best: {"epoch", "score"}.

    Losses, seconds and epochs are those of all sittings, as metrics.jsonl has them. Of a run that only predicts the
    rate, the batch and the seed are still those of its training; the machine and the code are the ones here.
    """
    run, epochs = session.run, session.run.epochs()
    options, processes = session.settings.training, _processes_of_training(session)
    steps = [line for line in run.lines() if "step" in line]
    trained, total = count_parameters(model)
    rows, tokens = getattr(options, "batch_size", None), getattr(options, "batch_tokens", None)
    batches = options.gradient_accumulation * processes  # a step
    seconds = [epoch["seconds"] for epoch in epochs]
    return {
        "task": session.task,
        "run": str(run.folder),
        "learning rate": options.lr,
        "rows a step": rows and rows * batches,
        "tokens a step": tokens and tokens * batches,
        "processes": session.accelerator.num_processes,
        "seed": run.seed,
        "prediction seed": options.seed,
        "precision": session.settings.training.precision,
        "device": device_name(session.accelerator.device),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "code": code_version(),
        "trained parameters": trained,
        "parameters": total,
        "steps": len(steps),
        "skipped steps": sum("skipped" in step for step in steps),
        "epochs": len(epochs),
        "best epoch": best["epoch"],
        "best score": best["score"],
        "initial train loss": epochs[0]["train_loss"] if epochs else None,
        "final train loss": epochs[-1]["train_loss"] if epochs else None,
        "seconds": sum(seconds) if epochs else None,
        "seconds an epoch": sum(seconds) / len(seconds) if epochs else None,
        "peak memory": peak_memory(session.accelerator.device),
        "bytes of the run": run.size(),
        "bytes of the weights": run.bytes,
    }


def _processes_of_training(session):
    """How many processes train the run, or trained it."""
    if not session.run.predicting:
        return session.accelerator.num_processes
    inputs = session.run.record().get("inputs", {})  # older versions kept none
    [(what, alone)] = session.settings.training.together(1).items()
    return inputs.get(what, alone) // alone


def table_of(record):
    """The same as lines for the table: {name: text}."""
    batch = f"{record['rows a step']} rows" if record["rows a step"] else f"{record['tokens a step']} tokens"
    share = 100 * record["trained parameters"] / record["parameters"]
    weights = in_bytes(record["bytes of the weights"])
    lines = {
        "run": f"{record['run']} ({weights} of trained weights; {in_bytes(record['bytes of the run'])} in all)",
        "trained parameters": f"{record['trained parameters']:,} of {record['parameters']:,} ({share:.2f} %)",
        "learning rate": f"{record['learning rate']:g}, {batch} a step, seed {record['seed']}",
        "machine": f"{record['device']}, {record['precision']}, {record['processes']} process(es)",
        "code": f"{record['code']}, torch {record['torch']}, {record['date']}",
        "best epoch": f"{record['best epoch']} of {record['epochs']}",
        "peak memory": f"{record['peak memory'] / 2**30:.2f} GiB",
    }
    if record["prediction seed"] != record["seed"]:
        lines["machine"] += f", predictions drawn with seed {record['prediction seed']}"
    if record["epochs"]:
        first, last = record["initial train loss"], record["final train loss"]
        lines["train loss"] = f"{first:.4f} in the first epoch, {last:.4f} in the last"
        lines["training time"] = f"{in_words(record['seconds'])} ({record['seconds an epoch']:.1f} s an epoch)"
    if record["skipped steps"] or record["precision"] == "fp16":
        lines["skipped steps"] = f"{record['skipped steps']} of {record['steps']} (their numbers were not finite)"
    return lines


def in_bytes(number):
    """Bytes for people: 1.3 MiB, 12 KiB."""
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"


def device_name(device):
    """The GPU's name, or "cpu" with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else device.type


def code_version():
    """The commit of this code, and whether it was changed since; "unknown" outside of git."""
    git = ["git", "-C", str(ROOT)]
    try:
        options = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"commit {commit}{', changed' if changed else ''}"


def peak_memory(device):
    """Bytes: on the GPU what torch allocated at most, on the CPU the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
