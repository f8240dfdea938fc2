"""What keeping a run costs: one save of its state at the 124M size, full fine-tuning and LoRA, beside a training step.

    python -m benchmarks.saving --rounds 5

Random weights; the optimizer's moments are there as after a step; a step is 8 rows x 192 tokens, in fp32. Saves and
steps are timed in turn. The time of a save holds writing, syncing and the SHA-256 of every file. Steps an hour follow
from both: training stands still for six saves an hour (--save_minutes 10), and for none (0). To count the steps of two
whole hours would tell less: two hours differ by more than a save takes.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.rounds import time_rounds
from benchmarks.train_step import LORA, our_model, our_step
from cli.tables import format_table
from config import GPT2Config, SonnetSettings
from optimizer import AdamW, parameter_groups
from training.runs import Progress, Run

SAVES_AN_HOUR = 6
ROWS, TOKENS = 8, 192


def saver_and_step(folder, methods):
    """(a function that saves once, one that takes a training step)"""
    model = our_model(GPT2Config(), methods, bf16=False)
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)
    token_ids = torch.randint(0, 50257, (ROWS, TOKENS))
    batch = {"token_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
    our_step(model, optimizer, batch)
    run = Run(folder)
    run.begin("benchmark", SonnetSettings(), {"weights": "", "config": {}})
    states = {"cpu.0": torch.get_rng_state()}
    return lambda: run.save(model, optimizer, Progress(), states), lambda: our_step(model, optimizer, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as place:
        variants = {}
        for name, methods in (("full fine-tuning", {}), ("LoRA", {"lora": LORA})):
            variants[name, "save"], variants[name, "step"] = saver_and_step(Path(place, name), methods)
        seconds = time_rounds(variants, options.rounds)
        rows = {}
        for name in ("full fine-tuning", "LoRA"):
            size = sum(path.stat().st_size for path in Path(place, name, "last").iterdir()) / 2**20
            save, step = (statistics.median(seconds[name, what]) for what in ("save", "step"))
            rows[name] = {
                "MiB": f"{size:.1f}",
                "save, s": f"{save:.2f}",
                "longest": f"{max(seconds[name, 'save']):.2f}",
                "step, s": f"{step:.2f}",
                "steps an hour": f"{3600 / step:.1f}",
                "saving every 10 min": f"{(3600 - SAVES_AN_HOUR * save) / step:.1f}",
                "less": f"{100 * SAVES_AN_HOUR * save / 3600:.2f} %",
            }
    print(format_table(rows, f"saves and steps in turn, {options.rounds} rounds"), end="")


if __name__ == "__main__":
    main()
