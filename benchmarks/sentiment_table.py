"""Sentiment on the course's real files with the mini model: every way of tuning over several seeds, beside its floors.

    python -m benchmarks.sentiment_table

Runs classifier.py on SST and CFIMDB for each way and seed, with rates chosen for so small a model (it wants more than
GPT-2 does), and prints Markdown: accuracy and macro-F1 on dev at the best epoch, mean and deviation over the seeds.
What --out holds of
them is not made again: a table that was stopped goes on.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from cli.script import run_script
from config import CLASSES
from errors import check
from evaluation import mean_and_deviation

ALL = "query,key,value,attention_dense,interm_dense,out_dense"
BATCHES = "--batch_size 32 --eval_batch_size 64"
WAYS = {  # name: flags of classifier.py
    "last linear layer": "--fine-tune-mode last-linear-layer --epochs 10",
    "last linear layer, mean pooling": "--fine-tune-mode last-linear-layer --epochs 10 --pooling mean --lr 3e-3",
    "full model": f"--fine-tune-mode full-model --lr 5e-4 --epochs 3 {BATCHES}",
    "LoRA": f"--lora --lora_rank 8 --lora_targets {ALL} --lr 3e-3 --epochs 3 {BATCHES}",
}
FIGURES = ("dev accuracy", "dev macro-F1")
FLOORS = ("always the commonest class", "bag of words")
HEAD = ("", *(f"{name}: {figure}" for name in ("SST", "CFIMDB") for figure in ("accuracy", "macro-F1")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of the course's files (default: data)")
    parser.add_argument("--model", default="data/gpt2-mini", help="the base model (default: data/gpt2-mini)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3, help="runs for each way (default: 3)")
    parser.add_argument("--out", default="runs/sentiment-table", help="where the runs go (default: %(default)s)")
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n|---|" + "---:|" * (len(HEAD) - 1), flush=True)
    for number, way in enumerate(options.ways):
        runs = [run(options, way, seed) for seed in range(1, options.seeds + 1)]
        if number == 0:
            for floor in FLOORS:
                print_row(floor, [f"{value:.4f}" for value in floor_figures(runs[0], floor)])
        values = mean_and_deviation([best_figures(folder) for folder in runs])
        print_row(way, ["{:.4f} ± {:.4f}".format(*value) for value in values.values()])


def print_row(name, cells):
    print("| " + " | ".join([name, *cells]) + " |", flush=True)


def run(options, way, seed):
    """One run of classifier.py, or the rest of one that is there already; returns its folder."""
    folder = Path(options.out, f"{re.sub('[^a-z0-9]+', '-', way.lower())}-{seed}")
    if (folder / "cfimdb" / "report.json").exists():
        return folder
    command = [sys.executable, "classifier.py", "--model_path", options.model, "--seed", str(seed)]
    command += ["--run_dir", str(folder), "--predictions", str(folder / "predictions"), *WAYS[way].split()]
    for name in CLASSES:
        for split, file in (("train", "train"), ("dev", "dev"), ("test", "test-student")):
            command += [f"--{name}_{split}", str(Path(options.data, f"ids-{name}-{file}.csv"))]
    if folder.exists():
        command = [sys.executable, "classifier.py", "--resume", "--run_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return folder


def best_figures(folder):
    """{"sst dev accuracy": value, ...} at the best epoch of both parts."""
    figures = {}
    for name in CLASSES:
        records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text("utf-8").splitlines()]
        best = max((record for record in records if "train_loss" in record), key=lambda record: record["score"])
        figures |= {f"{name} {figure}": best[figure] for figure in FIGURES}
    return figures


def floor_figures(folder, floor):
    """The four figures of something that needs no model, as the runs' reports have them."""
    reports = [json.loads((folder / name / "report.json").read_text("utf-8"))["figures"] for name in CLASSES]
    return [float(number) for report in reports for number in re.findall(r"\d\.\d+", report[floor])]


if __name__ == "__main__":
    run_script(main)
