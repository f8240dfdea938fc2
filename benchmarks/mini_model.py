"""Is pre-training worth it? The mini model against the same architecture from random weights, with the same budget.

    python -m benchmarks.mini_model sonnets
    python -m benchmarks.mini_model pairs -- --epochs 3 --lr 5e-4

Runs the task's own script for both starts and several seeds; flags after -- go to the script. With --parallel 2 two
runs share the cores, a thread each, which on small models is faster than one after the other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from cli.script import run_script
from cli.tables import format_table
from datasets import load_tokenizer
from datasets.tokenizer import save_tokenizer
from errors import check
from formats.hugging_face import read_config, save_pretrained
from models.gpt2 import GPT2Model

TASKS = {  # script, its data flags, the figures of an epoch to report
    "sonnets": (
        "sonnet_generation.py",
        {
            "sonnet_path": "sonnets.txt",
            "held_out_sonnet_path": "sonnets_held_out.txt",
            "gold_sonnet_path": "TRUE_sonnets_held_out_dev.txt",
        },
        ("dev loss", "dev perplexity"),
    ),
    "pairs": (
        "paraphrase_detection.py",
        {"para_train": "quora-train.csv", "para_dev": "quora-dev.csv", "para_test": "quora-test-student.csv"},
        ("dev accuracy", "dev macro-F1"),
    ),
}
OUTPUTS = {"sonnets": ("sonnet_out", "sonnet_dev_out"), "pairs": ("para_dev_out", "para_test_out")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", default="data", help="folder of the course's files (default: data)")
    parser.add_argument("--model", default="data/gpt2-mini", help="the pre-trained model (default: data/gpt2-mini)")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each start (default: 3)")
    parser.add_argument("--starts", nargs="+", choices=("mini", "random"), default=["mini", "random"])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--out", default="runs/mini-model", help="where the runs go (default: runs/mini-model)")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:cut])
    options.flags = sys.argv[cut + 1 :]
    check(Path(options.model, "config.json").is_file(), f"--model: {options.model} is no model folder")
    out = Path(options.out)
    models = {"mini": options.model, "random": str(out / "random")}
    if "random" in options.starts:
        make_random_twin(options.model, models["random"])
    jobs = [(start, seed) for seed in range(1, options.seeds + 1) for start in options.starts]
    with ThreadPoolExecutor(options.parallel) as pool:
        figures = list(pool.map(lambda job: run(options, out, models, *job), jobs))
    print(f"\n{' '.join([TASKS[options.task][0], *options.flags])}, best epoch of each run, {options.seeds} seeds")
    table = {}
    for start in options.starts:
        rows = [row for (name, _), row in zip(jobs, figures, strict=True) if name == start]
        for figure in TASKS[options.task][2]:
            values = [row[figure] for row in rows]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            each = ", ".join(f"{value:.4f}" for value in values)
            table[f"{start}, {figure}"] = f"{statistics.fmean(values):.4f} +- {deviation:.4f}   ({each})"
    print(format_table(table), end="")


def make_random_twin(model, folder):
    """The same architecture and tokenizer with fresh random weights."""
    config = read_config(Path(model))
    torch.manual_seed(0)
    save_pretrained(GPT2Model(config), folder)
    save_tokenizer(load_tokenizer(model), folder, config.max_position_embeddings)


def run(options, out, models, start, seed):
    """One run of the script; returns the figures of its best epoch."""
    folder = free_folder(out / f"{options.task}-{start}-{seed}")
    flags = ["--seed", str(seed), *options.flags]
    best, _ = run_task(options.task, models[start], options.data, folder, flags, options.parallel)
    shown = ", ".join(f"{name} {best[name]:.4f}" for name in TASKS[options.task][2])
    print(f"{start}, seed {seed}: best epoch {best['epoch']}, {shown}", flush=True)
    return best


def free_folder(wanted):
    """The folder itself where it holds no run, else the first of its names with -2, -3, ... that holds none."""
    folder, number = wanted, 1
    while (folder / "settings.json").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def run_task(task, model, data_folder, run_dir, flags, parallel=1):
    """Run a task's script on the course's files: (figures of the best epoch, what the script reported at its end)."""
    script, data, _ = TASKS[task]
    command = [sys.executable, script, "--model_path", model, "--run_dir", str(run_dir)]
    for name, file in data.items():
        command += [f"--{name}", str(Path(data_folder, file))]
    for name in OUTPUTS[task]:
        command += [f"--{name}", str(run_dir / name)]
    threads = max(1, (os.cpu_count() or 1) // parallel)
    done = subprocess.run(
        [*command, *flags], env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True
    )
    check(done.returncode == 0, f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = max((record for record in records if "train_loss" in record), key=lambda record: record["score"])
    return best, json.loads((run_dir / "report.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
