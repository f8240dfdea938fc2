"""What switching between tasks costs at the 124M size: `python exchange.py switch` on runs with random tensors.

    python -m benchmarks.switching

Makes a random GPT-2 small and a run of each method in a temporary folder (1 GB), and lets exchange.py measure them.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import torch

from cli.script import run_script
from config import GPT2Config, SonnetSettings
from exchange import main as exchange
from exchange import parse
from formats.hugging_face import save_pretrained
from models.gpt2 import GPT2Model
from training.inputs import fingerprint
from training.runs import Run
from training.tasks import task_model
from tuning.attach import attach
from tuning.register import METHODS, chosen_methods


def make_run(folder, base, methods):
    """A run with random trained tensors of these methods."""
    settings = SonnetSettings()
    settings.model.model_path, settings.tuning.tuning, settings.training.lr = str(base), methods, 1e-3
    gpt2 = GPT2Model.from_pretrained(str(base))
    run = Run(folder)
    with contextlib.closing(run):
        run.begin("sonnet_generation", settings, fingerprint(gpt2))
        attach(gpt2, chosen_methods(settings))
        model = task_model(gpt2, settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        run.save_best(model, {"epoch": 1, "score": 0.0})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        save_pretrained(GPT2Model(GPT2Config()), Path("base"))
        for name in options.methods:
            make_run(Path(name), Path("base"), (name,))
        exchange(parse(["switch", *options.methods]))


if __name__ == "__main__":
    run_script(main)
