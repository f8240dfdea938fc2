"""What a training step of the paraphrase task costs under every tuning method, on the mini model.

    python -m benchmarks.methods_step --rounds 9

32 pairs of 60 tokens; forward, backward, AdamW. The methods run in turn, round by round; reported are the medians and
the median of the ratios to full fine-tuning within each round.
"""

import argparse

import torch

from benchmarks.rounds import report, time_rounds
from cli.flags import parse_flags
from cli.script import run_script
from comparison.experiment import as_arguments, read_experiment
from config import ParaphraseSettings
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from optimizer import AdamW, parameter_groups
from tuning.attach import attach
from tuning.register import chosen_methods

EXPERIMENT = "experiments/compare-pairs-methods.toml"  # its variants, at the mini model's rates


def make_step(flags, model_folder, batch):
    settings, _ = parse_flags(ParaphraseSettings, as_arguments(flags))
    gpt2 = GPT2Model.from_pretrained(model_folder)
    attach(gpt2, chosen_methods(settings))
    model = ParaphraseGPT(gpt2).train()
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)

    def step():
        loss, count = model(*batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="data/gpt2-mini", help="the base model (default: data/gpt2-mini)")
    options = parser.parse_args()
    torch.manual_seed(0)
    batch = (torch.randint(8000, (32, 60)), torch.ones(32, 60, dtype=torch.long), torch.randint(2, (32,)))
    steps = {
        name: make_step(flags, options.model, batch)
        for name, flags in read_experiment(EXPERIMENT, mini=True).variants.items()
    }
    seconds = time_rounds(steps, options.rounds)
    report(seconds, "full", lambda _, s, ratio: {"s a step": f"{s:.3f}", "of full": f"{ratio:.2f}"})


if __name__ == "__main__":
    run_script(main)
