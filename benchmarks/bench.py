"""All that ours is faster at, or not, beside the peers that are installed: one table of ratios, JSON beside it.

    make bench                      what this does, with the lock's releases; OUT is bench/
    python -m benchmarks.bench OUT  OUT/bench.md and OUT/bench.json
    python -m benchmarks.bench OUT --precisions fp32 bf16 --rounds 3

From an empty process to ready to train; a training step of 8 x 192 tokens of GPT-2 small (full and LoRA, dropout 0 and
0.1; plain and compiled); sampling 96 tokens (12 prompts and one); random weights. Every part is a process of its own;
within it the variants run in turn, round by round. CTranslate2 takes part where it is installed (pip install
ctranslate2). bf16 is worth its time only where the processor has it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rounds import medians
from cli.script import run_script, say
from cli.tables import format_table, to_markdown
from errors import check
from files import write_json, write_text
from training.assembly import auto_precision


def parts(precision, rounds, compiled):
    """{name: arguments of python -m} of a precision."""
    common = ["--precision", precision, "--rounds", str(rounds)]
    found = {}
    for dropout in ("0", "0.1"):
        for tuned in ("full", "LoRA"):
            arguments = ["benchmarks.train_step", "--dropout", dropout, "--only", tuned, *common]
            found[f"step, {tuned}, dropout {dropout}"] = arguments + ["--compile"] * compiled
    for prompts in ("12", "1"):
        found[f"sampling, {prompts} x 96"] = ["benchmarks.generate", "--prompts", prompts, "--no_course", *common]
    return found


def starts(rounds):
    """The same of what is done in one precision alone."""
    common = ["benchmarks.start", "--rounds", str(rounds), "--only"]
    return {f"ready to train, {tuned}": [*common, tuned] for tuned in ("full", "LoRA")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("bench"), metavar="OUT")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), help="default: fp32, and bf16 if native")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no_compile", action="store_true", help="without torch.compile")
    flags = parser.parse_args()
    check(flags.rounds > 0, "--rounds must be at least 1")
    precisions = flags.precisions or sorted({"fp32", auto_precision("cpu")}, reverse=True)
    work = starts(flags.rounds)
    for precision in precisions:
        of_precision = parts(precision, flags.rounds, not flags.no_compile)
        work |= {f"{name}, {precision}": arguments for name, arguments in of_precision.items()}
    record = {}
    for name, arguments in work.items():
        say(f"{name} ...")
        record[name] = measured(arguments)
        write_json(flags.out / "bench.json", record)  # after each part: a stop loses the one that it comes in
    rows = {name: row_of(part) for name, part in record.items()}
    write_text(flags.out / "bench.md", to_markdown(rows))
    say("\n" + format_table(rows, "seconds, medians; ours over the best peer, below 1 where ours is faster"), end="")


def measured(arguments):
    """What a benchmark says with --json."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        done = subprocess.run([sys.executable, "-m", *arguments, "--json", str(file)], check=False)
        check(done.returncode == 0, f"python -m {' '.join(arguments)} failed: its message is above")
        return json.loads(file.read_text(encoding="utf-8"))


def row_of(part):
    """A line of the table: the quickest of ours and of the peers, and the median of their ratios within each round."""
    seconds = {name: figures["seconds"] for name, figures in part["variants"].items()}
    ours = [name for name in seconds if name.startswith("ours") and "int8" not in name]
    peers = [name for name in seconds if not name.startswith("ours")]
    mine, best = (min(names, key=lambda name: part["variants"][name]["median"]) for names in (ours, peers))
    found = medians(seconds, best)
    return {
        "ours": f"{found[mine][0]:.3f}",
        "which": mine,
        "best peer": f"{found[best][0]:.3f}",
        "which peer": best,
        "ratio": f"{found[mine][1]:.2f}",
    }


if __name__ == "__main__":
    run_script(main)
