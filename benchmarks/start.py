"""From an empty process to a model ready to train: imports, GPT-2 small's weights, its tokenizer, the optimizer.

    python -m benchmarks.start --rounds 5

Ours, all parameters and with LoRA, beside transformers and peft with torch's AdamW, each in processes of its own, in
turn. Random weights unless --model names a folder; the files are in the system's cache, so that no disk is timed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rounds import report, time_rounds
from cli.script import run_script
from config import GPT2Config
from formats.hugging_face import save_pretrained
from models.gpt2 import GPT2Model

TOKENIZER = Path("data/gpt2-mini/tokenizer.json")
OURS = """
from config import LoRASettings
from datasets import load_tokenizer
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from optimizer import AdamW, parameter_groups
from training.assembly import make_accelerator
from training.loop import TrainingLoop
from tuning.attach import attach
load_tokenizer(FOLDER)
model = SonnetGPT(GPT2Model.from_pretrained(FOLDER)).train()
attach(model.gpt, METHODS)
optimizer = AdamW(parameter_groups(model, 0.01), lr=1e-4)
optimizer.zero_grad()
"""
THEIRS = """
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel
AutoTokenizer.from_pretrained(FOLDER)
model = GPT2LMHeadModel.from_pretrained(FOLDER).train()
"""
PEFT = """
from peft import LoraConfig, get_peft_model
model = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
"""
OPTIMIZER = """
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
optimizer.zero_grad()
"""
PROGRAMS = {
    "ours, full": OURS.replace("METHODS", "{}"),
    "ours, LoRA": OURS.replace("METHODS", "{'lora': LoRASettings()}"),
    "transformers, full": THEIRS + OPTIMIZER,
    "transformers + peft, LoRA": THEIRS + PEFT + OPTIMIZER,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder in Hugging Face layout (default: GPT-2 small, random weights)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", default="", choices=("full", "LoRA"), help="one of the two comparisons (default: both)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = flags.model or random_small(Path(place))
        runs = {name: starter(code, folder) for name, code in PROGRAMS.items() if flags.only in name}
        seconds = time_rounds(runs, flags.rounds)
    reference = min(name for name in runs if name.startswith("transformers"))
    report(seconds, reference, cells, "ready to train, ", flags.json)


def random_small(folder):
    save_pretrained(GPT2Model(GPT2Config()), folder)
    shutil.copyfile(TOKENIZER, folder / TOKENIZER.name)
    return folder


def starter(code, folder):
    command = [sys.executable, "-c", f"FOLDER = {str(folder)!r}\n{code}"]
    return lambda: subprocess.run(command, check=True)


def cells(name, median, ratio):
    return {"seconds": f"{median:.2f}", "ratio": f"{ratio:.2f}"}


if __name__ == "__main__":
    run_script(main)
