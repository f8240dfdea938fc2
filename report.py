"""One HTML file about one or several runs: curves, figures, texts, mistakes, attention, what LoRA changed.

python report.py runs/sonnet-lora
    a page of its own, report.html; nothing is loaded from anywhere when it is opened
python report.py RUN RUN --out compared.html
    the curves of both over one another, then each for itself
python report.py RUN --png FOLDER
    the plots as PNG, too, for a paper
"""

import argparse

from cli.flags import FlagParser
from cli.script import run_script, start


def parse(arguments=None):
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders (of classifier.py: RUN/sst, RUN/cfimdb)")
    parser.add_argument("--out", default="report.html", help="the page (default: report.html)")
    parser.add_argument("--png", help="a folder for the plots as PNG")
    parser.add_argument("--text", help="whose attention is drawn; by default one of the dev data, its first 40 tokens")
    parser.add_argument("--rows", type=int, default=1000, help="dev rows to answer, at most (default: 1000)")
    parser.add_argument("--model_path", help="the base model, where it is not where the run found it")
    parser.add_argument("--model_size", help="the same, by its size")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

import datetime
from pathlib import Path

from errors import check
from files import check_writable, write_bytes, write_text
from reporting import page
from training.figures import code_version
from training.runs import Run
from training.tasks import SETTINGS, open_tuned


def main(options):
    check(options.rows >= 1, f"--rows must be at least 1, got {options.rows}")
    check(options.text is None or options.text.strip(), "--text is empty: give some words")
    check_writable(options.out)
    runs = {name: Run(Path(folder)) for name, folder in zip(names_of(options.runs), options.runs, strict=True)}
    records = {name: run.record() for name, run in runs.items()}
    reports = {name: run.reported() for name, run in runs.items()}
    sections, tasks = [page.final_table(reports)], dict.fromkeys(record["task"] for record in records.values())
    for task in tasks:  # losses of different tasks are not compared
        lines = {name: run.lines() for name, run in runs.items() if records[name]["task"] == task}
        sections.append(page.course_of_training(lines, task if len(tasks) > 1 else None))
    for name, run in runs.items():
        if records[name]["task"] not in SETTINGS:  # a Transformer or a model that is pre-trained: no GPT-2 to look into
            continue
        print(f"{run.folder}: looking into the model")
        opened = open_tuned(run.folder, options.model_path, options.model_size)
        sections += page.of_task(name, opened, records[name].get("part"), options)
    footer = f"Made on {datetime.date.today().isoformat()} by report.py, {code_version()}."
    text = page.write_page(sections, ", ".join(runs), footer)
    if options.png:
        for plot in page.plots_of(sections):
            write_bytes(Path(options.png, plot.file), plot.png())
    write_text(options.out, text)
    plots = len(page.plots_of(sections))
    print(f"{options.out}: {len(sections)} sections, {plots} plots, {len(text) / 2**20:.1f} MiB")


def names_of(folders):
    """What runs are called in the page: the end of their path that tells them apart."""
    check(len({Path(folder).resolve() for folder in folders}) == len(folders), "a run is named twice: name it once")
    parts = [Path(folder).resolve().parts for folder in folders]
    length = next(n for n in range(1, 100) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


if __name__ == "__main__":
    run_script(main, OPTIONS)
