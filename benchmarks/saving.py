"""What keeping a run costs: one save of its state at the 124M size, full fine-tuning and LoRA.

    python -m benchmarks.saving --rounds 5

Random weights; the optimizer's moments are there as after a step. The time of a save holds writing, syncing and the
SHA-256 of every file. A save every ten minutes costs its time in 600 seconds.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.rounds import time_rounds
from cli.tables import format_table
from config import GPT2Config, LoRASettings, SonnetSettings
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from optimizer import AdamW, parameter_groups
from training.runs import Progress, Run
from tuning.attach import attach


def saver(folder, methods):
    """(a function that saves once, the folder of what it writes)"""
    gpt2 = GPT2Model(GPT2Config())
    attach(gpt2, methods)
    model = SonnetGPT(gpt2)
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": 1} | moments
    run = Run(folder)
    run.begin("benchmark", SonnetSettings(), {"weights": "", "config": {}})
    return (lambda: run.save(model, optimizer, Progress(), {"cpu.0": torch.get_rng_state()})), folder / "last"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as place:
        savers = {
            "full fine-tuning": saver(Path(place, "full"), {}),
            "LoRA": saver(Path(place, "lora"), {"lora": LoRASettings()}),
        }
        seconds = time_rounds({name: save for name, (save, _) in savers.items()}, options.rounds)
        rows = {}
        for name, times in seconds.items():
            size = sum(path.stat().st_size for path in savers[name][1].iterdir()) / 2**20
            middle = sorted(times)[len(times) // 2]
            rows[name] = {
                "MiB": f"{size:.1f}",
                "median s": f"{middle:.2f}",
                "max s": f"{max(times):.2f}",
                "of ten minutes": f"{100 * middle / 600:.2f} %",
            }
    print(format_table(rows, f"one save of the state, {options.rounds} rounds"), end="")


if __name__ == "__main__":
    main()
