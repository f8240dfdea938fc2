"""Does the parallel Transformer win? base, parallel, and parallel with layer teacher forcing: equal steps, three seeds.

    python -m benchmarks.translation_table                                 on the sample
    python -m benchmarks.translation_table --out runs/multi30k -- --train_pairs train.en.gz,train.de.gz ...

Trains what is missing under --out, goes on where a run was stopped, and prints, as Markdown, the mean and deviation of
test loss and BLEU-4 over the seeds and, seed by seed, a paired bootstrap against base (Koehn 2004; sacrebleu's, 1,000
samples). Flags after -- go to translation.py, the same for all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from cli.flags import settings_from_dict
from cli.script import run_script
from config import TranslationSettings
from datasets.translation import load_pairs
from errors import check

VARIANTS = {
    "base": [],
    "parallel": ["--model", "parallel"],
    "parallel, forced 0.5": ["--model", "parallel", "--layer_teacher_forcing", "0.5"],
}
HEAD = ("model", "parameters", "test loss", "BLEU-4", "of 1", "seed by seed", "p against base", "seconds a run")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, a thread each if several (default: 1)")
    parser.add_argument("--out", default="runs/translation", help="where the runs go (default: runs/translation)")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:cut])
    jobs = [(name, seed) for seed in options.seeds for name in options.variants]
    with ThreadPoolExecutor(options.parallel) as pool:
        folders = list(pool.map(lambda job: trained(options, sys.argv[cut + 1 :], *job), jobs))
    runs = {job: Result(folder) for job, folder in zip(jobs, folders, strict=True)}
    print("| " + " | ".join(HEAD) + " |\n|---|" + "---:|" * (len(HEAD) - 1))
    for name in options.variants:
        mine = [runs[name, seed] for seed in options.seeds]
        base = [runs.get(("base", seed)) for seed in options.seeds]
        print("| " + " | ".join(cells(name, mine, base)) + " |")
    print(f"\n{next(iter(runs.values())).signature}")


def trained(options, flags, name, seed):
    """The folder of a whole run: trained, gone on with, or there already."""
    folder = Path(options.out, f"{name.replace(', ', '-').replace(' ', '-')}-{seed}")
    if (folder / "report.json").exists():
        return folder
    flags = [*flags, *VARIANTS[name], "--seed", str(seed), "--run_dir", str(folder)]
    if (folder / "settings.json").exists():
        flags = ["--resume", "--run_dir", str(folder)]
    command = [sys.executable, "translation.py", *flags, "--translation_out", str(folder / "test.txt")]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.parallel > 1 else {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    check(code == 0, f"{' '.join(command)} ended with exit code {code}: see {folder.with_suffix('.log')}")
    return folder


class Result:
    """What a run came to. (Its references are read again from the files that it names.)"""

    def __init__(self, folder):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        record = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        settings = settings_from_dict(TranslationSettings, record["settings"])
        self.bleu, self.signature = report["scores"]["model"]["BLEU-4"], report["scores"]["model"]["signature"]
        self.loss = float(report["figures"]["test loss"].split()[0])
        self.parameters = report["figures"]["trained parameters"].split(" of ")[0]
        self.tokenize = settings.decoding.bleu_tokenize
        self.texts = (folder / "test.txt").read_text(encoding="utf-8").splitlines()
        self.references = [target for _, target in load_pairs(settings.data.test_pairs, settings.text.lowercase)]
        lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        self.seconds = sum(line["seconds"] for line in lines if "seconds" in line)


def cells(name, mine, base):
    scores = [run.bleu for run in mine]
    each = [f"{score:.2f}" for score in scores]
    return (
        name,
        mine[0].parameters,
        plus_minus([run.loss for run in mine], 4),
        plus_minus(scores, 2),
        plus_minus([score / 100 for score in scores], 4),
        ", ".join(each),
        ", ".join(p_value(*pair) for pair in zip(base, mine, strict=True)) if name != "base" and all(base) else "-",
        f"{statistics.median(run.seconds for run in mine):.0f}",
    )


def plus_minus(values, digits):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} +- {deviation:.{digits}f}"


def p_value(base, other):
    """How probable so large a difference is between systems that are alike, over resampled test sets."""
    metrics = {"BLEU": BLEU(tokenize=base.tokenize, references=[base.references])}
    test = PairedTest([("base", base.texts), ("other", other.texts)], metrics, None, test_type="bs", n_samples=1000)
    _, results = test()
    return f"{results['BLEU'][1].p_value:.3f}"


if __name__ == "__main__":
    run_script(main)
