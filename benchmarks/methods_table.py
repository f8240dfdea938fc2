"""Every tuning method on the mini model, on the course's real sonnets and real question pairs: one table.

    python -m benchmarks.methods_table

Runs both task scripts once for each method, with rates chosen for so small a model (it wants about ten times those of
GPT-2), and prints Markdown: parameters trained, loss on the dev sonnets, accuracy on the dev pairs, peak memory on the
sonnets, size of the kept file. (What a step costs: benchmarks/methods_step.py, where the methods run in turn.)
"""

import argparse
import re
from pathlib import Path

from benchmarks.mini_model import free_folder, run_task
from cli.script import run_script
from config import TUNING_METHODS
from errors import check

ALL = "query,key,value,attention_dense,interm_dense,out_dense"
METHOD_FLAGS = {  # name: flags of both scripts
    "full fine-tuning": "--lr 5e-4",
    "lora": f"--tuning lora --lora_rank 8 --lora_targets {ALL} --lr 3e-3",
    "qlora": f"--tuning qlora --lora_rank 8 --lora_targets {ALL} --lr 3e-3",
    "adalora": "--tuning adalora --lr 5e-3",
    "ia3": "--tuning ia3 --lr 2e-2",
    "adapter": "--tuning adapter --lr 2e-3",
    "prompt": "--tuning prompt --lr 3e-2",
    "ptuning": "--tuning ptuning --lr 3e-3",
    "prefix": "--tuning prefix --lr 5e-2",
    "llama_adapter": "--tuning llama_adapter --lr 5e-2",
    "bitfit": "--tuning bitfit --lr 2e-2",
    "top_layers": "--tuning top_layers --lr 5e-4",
}
HEAD = ("method", "rate", "trained", "sonnets: dev loss", "pairs: accuracy", "pairs: macro-F1", "memory", "file")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of the course's files (default: data)")
    parser.add_argument("--model", default="data/gpt2-mini", help="the base model (default: data/gpt2-mini)")
    parser.add_argument("--methods", nargs="+", choices=METHOD_FLAGS, default=list(METHOD_FLAGS))
    parser.add_argument("--sonnet_epochs", default="6")
    parser.add_argument("--pair_epochs", default="1")
    parser.add_argument("--out", default="runs/methods", help="where the runs go (default: runs/methods)")
    options = parser.parse_args()
    check(set(TUNING_METHODS) <= set(METHOD_FLAGS), "a method is missing from METHOD_FLAGS")
    print("| " + " | ".join(HEAD) + " |\n|---|" + "---:|" * (len(HEAD) - 1), flush=True)
    for name in options.methods:
        flags = METHOD_FLAGS[name].split()
        folders = {task: free_folder(Path(options.out, f"{name.split()[0]}-{task}")) for task in ("sonnets", "pairs")}
        sonnets, report = run_task(
            "sonnets", options.model, options.data, folders["sonnets"], [*flags, "--epochs", options.sonnet_epochs]
        )
        more = ["--epochs", options.pair_epochs, "--batch_size", "32", "--eval_batch_size", "64"]
        pairs, _ = run_task("pairs", options.model, options.data, folders["pairs"], [*flags, *more])
        figures = report["figures"]
        cells = (
            name,
            flags[flags.index("--lr") + 1],
            figures["trained parameters"].split(" of ")[0],
            f"{sonnets['dev loss']:.4f}",
            f"{pairs['dev accuracy']:.4f}",
            f"{pairs['dev macro-F1']:.4f}",
            figures["peak memory"],
            re.search(r"\((.*) of trained", figures["run"])[1],
        )
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run_script(main)
