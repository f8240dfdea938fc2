"""`make quickstart`: both tasks on the mini model and the sample data, offline, in a few minutes on two cores.

It gives the two commands that you would give yourself, shows them, and sums up what they did.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cli.flags import FlagParser
from cli.script import run_script
from cli.tables import format_table, plus_minus
from datasets import load_sonnets
from files import write_text
from training.runs import Run

SAMPLE, MODEL = "data/sample", "data/gpt2-mini"
LORA = (
    f"--model_path {MODEL} --lora --lora_rank 8 --lora_targets query,key,value,attention_dense,interm_dense,out_dense"
)
COMMANDS = {  # the run's name: the command, but for where its outputs go
    "sonnets": f"""sonnet_generation.py {LORA} --lr 3e-3 --epochs 3 --form sonnet --decode mbr
        --sonnet_path {SAMPLE}/sonnets.txt --held_out_sonnet_path {SAMPLE}/sonnets_held_out.txt
        --gold_sonnet_path {SAMPLE}/TRUE_sonnets_held_out_dev.txt""",
    "pairs": f"""paraphrase_detection.py {LORA} --lr 3e-3 --epochs 3 --batch_size 16 --pooling aligned --head linear
        --para_train {SAMPLE}/para-train.csv --para_dev {SAMPLE}/para-dev.csv
        --para_test {SAMPLE}/para-test-student.csv""",
}
OUTPUTS = {
    "sonnets": {"sonnet_out": "generated_sonnets.txt", "sonnet_dev_out": "generated_sonnets_dev.txt"},
    "pairs": {"para_dev_out": "para-dev-output.csv", "para_test_out": "para-test-output.csv"},
}
TITLES = ("written by the model, from line 4 on\n\n", "written by the author\n\n")


def main(predictions="predictions/quickstart", runs="runs", more=""):
    """predictions, runs: folders for what comes out. more: further flags for both commands."""
    os.chdir(ROOT)
    number = 1
    while Path(runs, f"quickstart-{number}").exists():
        number += 1
    start, reports = time.perf_counter(), {}
    for name, command in COMMANDS.items():
        folder = Path(runs, f"quickstart-{number}", name)
        words = [*command.split(), *more.split(), "--run_dir", str(folder)]
        for flag, file in OUTPUTS[name].items():
            words += [f"--{flag}", str(Path(predictions, file))]
        print(f"\n$ python {' '.join(words)}\n", flush=True)
        outcome = subprocess.run([sys.executable, *words])
        if outcome.returncode:
            sys.exit(outcome.returncode)  # the script has said why
        reports[name] = Run(folder).reported() | {"epochs": Run(folder).epochs()}
    text = summary(reports, predictions, time.perf_counter() - start)
    print(text)
    write_text(Path(predictions, "summary.txt"), text)
    folders = [str(Path(runs, f"quickstart-{number}", name)) for name in COMMANDS]
    words = ["report.py", *folders, "--out", str(Path(predictions, "report.html"))]
    print(f"\n$ python {' '.join(words)}\n", flush=True)
    subprocess.run([sys.executable, *words], check=True)
    print(f"This page and every prediction file are in {predictions}/, the runs in {runs}/quickstart-{number}/.")
    print(f"Open {predictions}/report.html in a browser to look into both models.")


def summary(reports, predictions, seconds):
    """The one page to look at: what was trained, what came out, and what one gets without training."""
    sonnets, pairs = reports["sonnets"], reports["pairs"]
    rows = {
        "parameters trained": sonnets["figures"]["trained parameters"],
        "sonnets: train loss": _course(sonnets, "train_loss"),
        "sonnets: dev loss": f"{_course(sonnets, 'dev loss')} (nats a token)",
    }
    for name, scores in sonnets["scores"].items():
        if "chrF continuation" in scores:  # a prompt alone has none
            rows[f"sonnets: chrF of lines 4-14, {name}"] = plus_minus(scores["chrF continuation"])
    rows |= {
        "pairs: train loss": _course(pairs, "train_loss"),
        "pairs: dev accuracy": pairs["figures"]["dev accuracy"],
        "pairs: dev macro-F1": pairs["figures"]["dev macro-F1"],
        "pairs: floor: always one answer": pairs["figures"]["always the commoner answer"],
    }
    if trees := pairs["figures"].get("trees over word overlap"):  # with scikit-learn
        rows["pairs: floor: trees over common words"] = trees
    rows["time"] = f"{seconds / 60:.1f} minutes"
    text = "\n" + format_table(rows, "Quickstart: GPT-2 mini with LoRA on the sample data")
    gold = load_sonnets(f"{SAMPLE}/TRUE_sonnets_held_out_dev.txt")
    written = load_sonnets(Path(predictions, "generated_sonnets_dev.txt"))
    for index in range(2):
        text += "\n" + "\n".join(_side_by_side(TITLES[0] + written[index], TITLES[1] + gold[index])) + "\n"
    return text


def _course(report, figure):
    first, last = (report["epochs"][place][figure] for place in (0, -1))
    return f"{first:.4f} after the first epoch, {last:.4f} after the last"


def _side_by_side(left, right):
    left, right = left.splitlines(), right.splitlines()
    width = max(map(len, left))
    return [f"{one:<{width}}   {other}".rstrip() for one, other in itertools.zip_longest(left, right, fillvalue="")]


def parse(arguments=None):
    """It takes no flags, but says so, and --help what it does."""
    FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)


if __name__ == "__main__":
    run_script(parse)
    run_script(main)
