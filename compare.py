"""Trains variants of an experiment over several seeds: one table of them all.

python compare.py experiments/compare-sonnet-methods.toml
    train what is missing, then write table.md, table.csv and table.html
python compare.py experiments/compare-sonnet-methods.toml --mini
    the same offline, on sample data and the model that comes along

An experiment is a TOML file:

    task = "pairs"                  # or "sonnets"
    seeds = [11711, 11712]
    columns = ["score", "difference", "seconds"]   # all, where it is left out
    [flags]                         # of all variants
    head = "linear"
    [variants.last]                 # what the others are compared with
    pooling = "last"
    [variants.attention]
    pooling = "attention"
    [mini]                          # with --mini: flags that win over those,
    epochs = 2
    [mini.attention]                # and of one variant
    lr = 3e-3

Every run has a folder, OUT/VARIANT-SEED, and a log beside it. A run that is
there is not trained again, one that was stopped goes on, one with other
settings is refused.
"""

import argparse

from cli.flags import FlagParser, parse_flags, settings_to_dict
from cli.near import did_you_mean
from cli.script import Stopped, finish_first, on_stop, run_script, say, start, stop_asked


def parse(arguments=None):
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", metavar="EXPERIMENT.toml")
    parser.add_argument("--mini", action="store_true", help="on data/gpt2-mini and data/sample, offline")
    parser.add_argument("--out", help="folder of runs and tables (default: runs/EXPERIMENT, with --mini -mini)")
    parser.add_argument("--dry_run", action="store_true", help="only list the runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

import contextlib
import io
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cli.tables import format_table, to_csv, to_html, to_markdown
from config import ParaphraseSettings, SonnetSettings
from datasets import load_paraphrase_data, load_sonnets
from datasets.sonnets import head_of
from errors import UserError, check
from evaluation import answer_token, chrf, mean_and_deviation, paired_bootstrap
from files import read_text, where_it_may_be, write_text
from handin.checks import check_answers, check_sonnets
from training.runs import Run
from tuning.register import default_learning_rate

SAMPLE = "data/sample"
COLUMNS = (
    *("score", "dev loss", "difference", "epochs", "initial train loss", "final train loss"),
    *("seconds", "seconds an epoch", "peak memory", "trained parameters"),
)
KEYS = {"task", "seeds", "columns", "flags", "variants", "mini"}  # of an experiment
OWN = {"seed", "run_dir", "resume", "checkpoint", "settings"}  # flags that this script gives itself
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Task:
    """script: without .py. score: what the column "score" is. sample: the flags of --mini. outputs: {flag: file}."""

    script: str
    settings: type
    score: str
    sample: dict
    outputs: dict


TASKS = {
    "sonnets": Task(
        "sonnet_generation",
        SonnetSettings,
        "chrF a sonnet",
        {
            "sonnet_path": f"{SAMPLE}/sonnets.txt",
            "held_out_sonnet_path": f"{SAMPLE}/sonnets_held_out.txt",
            "gold_sonnet_path": f"{SAMPLE}/TRUE_sonnets_held_out_dev.txt",
        },
        {"sonnet_out": "sonnets.txt", "sonnet_dev_out": "sonnets-dev.txt"},
    ),
    "pairs": Task(
        "paraphrase_detection",
        ParaphraseSettings,
        "dev accuracy",
        {
            "para_train": f"{SAMPLE}/para-train.csv",
            "para_dev": f"{SAMPLE}/para-dev.csv",
            "para_test": f"{SAMPLE}/para-test-student.csv",
        },
        {"para_dev_out": "dev.csv", "para_test_out": "test.csv"},
    ),
}


@dataclass(frozen=True)
class Experiment:
    """variants: {name: {flag: value}}, those of all variants included."""

    task: Task
    variants: dict
    seeds: list
    columns: tuple


@dataclass
class PlannedRun:
    variant: str
    seed: int
    folder: Path
    arguments: list
    settings: object

    @property
    def done(self):
        return (self.folder / "report.json").exists()

    @property
    def begun(self):
        return (self.folder / "settings.json").exists()

    @property
    def state(self):
        return "done" if self.done else "goes on" if self.begun else "to train"


def main(options):
    path = Path(options.experiment)
    experiment = read_experiment(path, options.mini)
    out = Path(options.out or Path("runs", path.stem + ("-mini" if options.mini else "")))
    runs = plan(experiment, path, out)
    for run in runs:
        if run.begun:
            check_recorded(run, experiment.task)
    if options.dry_run:
        say(format_table({str(run.folder): run.state for run in runs}), end="")
        return
    script = Path(f"{experiment.task.script}.py")
    check(script.is_file(), f"{script} is not here: {where_it_may_be(script)}")
    on_stop(f"go on with the same command: what is trained is kept in {out}")
    for place, run in enumerate(runs, 1):
        say(f"{place} of {len(runs)}: {run.folder} ", end="")
        began, state = time.perf_counter(), run.state
        if not run.done:
            train(run, experiment.task)
        say("done before" if state == "done" else f"{time.perf_counter() - began:.0f} s")
    check_same_dev(runs, experiment.task)
    write_tables(experiment, runs, out, path.stem)


# --- the file ---------------------------------------------------------------------------------------------------------


def read_experiment(path, mini=False):
    """The Experiment of a TOML file. Raises UserError, naming file and key."""
    try:
        values = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML ({error}): compare.py --help shows one") from error
    unknown = values.keys() - KEYS
    first = min(unknown, default="")
    recipe = "variants" not in values and "task" not in values
    advice = "a file of flags is for a script, by --settings" if recipe else "compare.py --help lists them"
    check(not unknown, f"{path}: unknown key {first}: {advice}{did_you_mean(first, KEYS)}")
    near = did_you_mean(str(values.get("task")), TASKS)
    check(values.get("task") in list(TASKS), f"{path}: task must be one of {', '.join(TASKS)}{near}")
    task, small = TASKS[values["task"]], dict(_table(path, values, "mini")) if mini else {}
    check(not mini or small, f"{path} has no table [mini]: add one, or leave --mini out")
    variants = _table(path, values, "variants")
    check(variants, f"{path} has no variants: add a table [variants.NAME] for each")
    for name in variants:
        check(FOLDER_NAME.fullmatch(name), f"{path}: {name!r} is no folder name: use letters, digits, - and _")
        _table(path, variants, name)
    lowered = [name.lower() for name in variants]
    twice = next((name for name in variants if lowered.count(name.lower()) > 1), None)
    check(twice is None, f"{path}: two variants are called {twice}, capitals aside: rename one")
    own = {name: small.pop(name) for name in list(small) if isinstance(small[name], dict)}
    check(own.keys() <= variants.keys(), f"{path}: [mini.{min(own.keys() - variants, default='')}] is no variant")
    seeds = small.pop("seeds", values.get("seeds"))
    numbers = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    check(numbers and len(set(seeds)) == len(seeds), f"{path}: seeds must be a list of different whole numbers")
    columns = values.get("columns", list(COLUMNS))
    known = isinstance(columns, list) and columns and all(name in COLUMNS for name in columns)
    check(known, f"{path}: columns must be a list of some of: {', '.join(COLUMNS)}")
    sample = {"model_path": "data/gpt2-mini"} | task.sample if mini else {}
    common = _table(path, values, "flags")
    flags = {name: common | mine | sample | small | own.get(name, {}) for name, mine in variants.items()}
    return Experiment(task, flags, seeds, tuple(columns))


def _table(path, values, name):
    table = values.get(name, {})
    check(isinstance(table, dict), f"{path}: {name} must be a table [{name}], not {table!r}")
    return table


def plan(experiment, path, out):
    """[PlannedRun], seed by seed. Raises UserError for flags that the script would refuse."""
    runs = []
    for seed in experiment.seeds:
        for name, flags in experiment.variants.items():
            folder = out / f"{name}-{seed}"
            outputs = {flag: str(folder / file) for flag, file in experiment.task.outputs.items()}
            refused = flags.keys() & (OWN | outputs.keys())
            check(not refused, f"{path}: {name}: compare.py sets {min(refused, default='')} itself: leave it out")
            flags_of_run = flags | outputs | {"seed": seed, "run_dir": str(folder)}
            try:
                arguments = as_arguments(flags_of_run)
                settings, _ = parse_flags(experiment.task.settings, arguments)
            except UserError as error:
                raise UserError(f"{path}: {name}: {error}") from error
            runs.append(PlannedRun(name, seed, folder, arguments, settings))
    return runs


def as_arguments(flags):
    """{flag: value} as they would be typed. (`false` is what a switch is when it is not typed.)"""
    words = []
    for name, value in flags.items():
        check(not isinstance(value, dict), f"{name} is a table: write NAME = VALUE")
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}={value}"]
    return words


# --- the runs ---------------------------------------------------------------------------------------------------------


def check_recorded(run, task):
    """Raise UserError where a run's record is not what the experiment now asks for."""
    recorded, asked = Run(run.folder).record(task.script)["settings"], settings_to_dict(run.settings)
    if asked["training"]["lr"] is None:
        asked["training"]["lr"] = default_learning_rate(run.settings.tuning.methods)
    if asked["training"]["precision"] == "auto":  # the machine's choice is recorded
        asked["training"]["precision"] = recorded["training"]["precision"]
    for group, values in asked.items():
        for name, value in values.items():
            value = list(value) if isinstance(value, tuple) else value
            known = recorded.get(group, {}).get(name)
            same = known == value or name in ("run_dir", "resume", *task.outputs)  # the folder may have been moved
            check(
                same,
                f"{run.folder} was trained with {name} = {known}, the experiment asks for {value}: "
                "give another --out, or remove that folder",
            )


def check_same_dev(runs, task):
    """Raise UserError unless all runs were measured on the same dev items: the bootstrap pairs them."""
    first = None
    for run in runs:
        inputs = Run(run.folder).record(task.script)["inputs"]
        dev = {name: data["sha256"] for name, data in inputs.items() if name.startswith("dev ")}
        first = first or dev
        check(
            dev == first,
            f"{run.folder} was measured on other dev data than {runs[0].folder}: the file was changed in between; give "
            "another --out, or remove one of them",
        )


def train(run, task):
    """Run the script to its end, its output in a log. Raises UserError with its own line, Stopped after a stop."""
    command = [sys.executable, f"{task.script}.py", *run.arguments, *(["--resume"] if run.begun else [])]
    log = run.folder.with_name(f"{run.folder.name}.log")
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with finish_first(), open(log, "wb") as file:
        # a session of its own: Ctrl-C must reach it once, from here, for a second one ends it at once
        child = subprocess.Popen(command, stdout=file, stderr=file, cwd=Path.cwd(), start_new_session=True)
        told = False
        while child.poll() is None:
            if stop_asked() and not told:
                child.terminate()
                told = True
            time.sleep(0.1)
    if stop_asked():
        raise Stopped(stop_asked())
    if child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
        said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
        raise UserError(f"{run.folder} failed: {said} (log: {log}; the same command goes on with what is missing)")


# --- the table --------------------------------------------------------------------------------------------------------


def dev_scores(run, task):
    """(the score of each dev item: 1 or 0 for a pair, chrF for a sonnet; {floor: the same list})"""
    data = run.settings.data
    if task is TASKS["pairs"]:
        rows = load_paraphrase_data(data.para_dev, split="dev")
        answers = check_answers(data.para_dev_out, "pairs", [identifier for *_, identifier in rows])
        labels = [label for *_, label, _ in rows]
        common = max(set(labels), key=labels.count)
        scores = [float(answers[identifier] == answer_token(label)) for *_, label, identifier in rows]
        return scores, {"always the commoner answer": [float(label == common) for label in labels]}
    gold = load_sonnets(data.gold_sonnet_path)
    prompts = [head_of(whole) for whole in gold]
    texts = check_sonnets(data.sonnet_dev_out, prompts)
    each, floor = ([chrf([text], [whole]) for text, whole in zip(some, gold, strict=True)] for some in (texts, prompts))
    return each, {"prompt alone": floor}


def write_tables(experiment, runs, out, title):
    rows = table_rows(experiment, runs)
    seeds, first = ", ".join(map(str, experiment.seeds)), next(iter(experiment.variants))
    note = (
        f"Seeds: {seeds}; mean +- deviation. Difference to {first}: mean over dev items (each averaged over the seeds) "
        "with a 95 % interval from 10,000 paired resamples of the items."
    )
    say("\n" + format_table(rows, title) + f"\n{note}\n")
    for suffix, text in (
        ("md", to_markdown(rows, note)),
        ("csv", to_csv(rows)),
        ("html", to_html(rows, title, note)),
    ):
        write_text(out / f"table.{suffix}", text)
    say(f"{out}/table.md, .csv, .html")


def table_rows(experiment, runs):
    """{variant or floor: {column: text}}"""
    rows, base, floors = {}, None, {}
    for name in experiment.variants:
        mine = [run for run in runs if run.variant == name]
        facts = [Run(run.folder).reported()["run"] for run in mine]
        with contextlib.redirect_stdout(io.StringIO()):  # what the loaders say, the runs have said
            scored = [dev_scores(run, experiment.task) for run in mine]
        items, floors = [scores for scores, _ in scored], scored[0][1]
        means = [sum(each) / len(items) for each in zip(*items, strict=True)]
        figures = [
            {"score": sum(scores) / len(scores), "dev loss": -fact["best score"]} | _measured(fact)
            for scores, fact in zip(items, facts, strict=True)
        ]
        cells = {column: _cell(*value) for column, value in mean_and_deviation(figures).items()}
        if base is None:
            base, cells["difference"] = means, "-"
        else:
            cells["difference"] = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*paired_bootstrap(means, base))
        rows[name] = _chosen(experiment, cells)
    for name, scores in floors.items():
        rows[f"floor: {name}"] = _chosen(experiment, {"score": _cell(sum(scores) / len(scores), 0)})
    return rows


def _measured(fact):
    """The columns that stand in a run's facts; memory in GiB."""
    return {name: fact[name] / 2**30 if name == "peak memory" else fact[name] for name in COLUMNS[3:] if name in fact}


def _cell(mean, deviation):
    digits = 4 if abs(mean) < 10 else 2
    text = f"{mean:,.0f}" if float(mean).is_integer() and abs(mean) >= 1 else f"{mean:.{digits}f}"
    return text + (f" +- {deviation:.{digits}f}" if deviation else "")


def _chosen(experiment, cells):
    """The experiment's columns in their order, with the headings that a reader sees."""
    titles = {"score": experiment.task.score, "peak memory": "peak memory (GiB)"}
    shown = [c for c in experiment.columns if c != "dev loss" or experiment.task is TASKS["sonnets"]]
    return {titles.get(column, column): cells.get(column, "-") for column in shown}


if __name__ == "__main__":
    run_script(main, OPTIONS)
