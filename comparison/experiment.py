"""An experiment: a TOML file that names a task, flags, variants and seeds; and the runs that it takes.

    task = "pairs"                  # or sonnets, sst, cfimdb, translation
    seeds = [11711, 11712]
    columns = ["score", "difference", "seconds"]   # else the usual ones
    [flags]                         # of all variants
    head = "linear"
    [variants.last]                 # what the others are compared with
    pooling = "last"
    [variants.attention]
    pooling = "attention"
    [mini]                          # with --mini (small model): flags that win,
    epochs = 3
    [mini.attention]                # and of one variant
    lr = 3e-3
    [sample]                        # with --mini on the sample: win over all
    epochs = 1

With a table [trained] its flags train one run, and every variant only
predicts with it (decoders, for instance).
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cli.flags import parse_flags, refuse_training_flags
from cli.near import did_you_mean
from comparison.tasks import TASKS, ComparedTask, course_files, sample_files
from errors import UserError, check
from files import read_text

GENERAL = (
    *("difference", "epochs", "initial train loss", "final train loss", "seconds", "seconds an epoch"),
    *("peak memory", "trained parameters", "bytes of the weights"),
)
SHOWN = GENERAL[:-1]  # where an experiment names no columns
OWN = {"seed", "run_dir", "resume", "checkpoint", "settings"}  # flags that compare.py gives itself
KEYS = ("task", "seeds", "columns", "flags", "trained", "variants", "mini", "sample")
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MINI = "data/gpt2-mini"
TRAINED = "trained"  # the folder of the run that all variants predict with


@dataclass(frozen=True)
class Experiment:
    """variants: {name: {flag: value}}, those of all variants included. trained: flags of one run that all predict with,
    or None. columns: as the file has them."""

    task: ComparedTask
    variants: dict
    trained: dict | None
    seeds: list
    columns: tuple


@dataclass
class PlannedRun:
    """variant: its name. settings: as the script would have them."""

    task: ComparedTask
    variant: str
    seed: int
    folder: Path
    arguments: list
    settings: object
    checkpoint: Path | None = None  # of the run that this one predicts with

    @property
    def record_folder(self):
        return self.task.record_folder(self.folder)

    @property
    def report_path(self):
        return (self.folder if self.checkpoint else self.record_folder) / "report.json"

    @property
    def done(self):
        return self.report_path.exists()

    @property
    def begun(self):
        return not self.checkpoint and (self.record_folder / "settings.json").exists()

    @property
    def state(self):
        return "done" if self.done else "goes on" if self.begun else "to predict" if self.checkpoint else "to train"


def read_experiment(path, mini=False, data=None):
    """The Experiment of a TOML file. mini: on the small model that comes along. data: folder of the course's files;
    without it the paths that the flags have or, with mini, the sample. Raises UserError, naming file and key."""
    try:
        values = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML ({error}): compare.py --help shows one") from error
    unknown = min(values.keys() - set(KEYS), default=None)
    recipe = "variants" not in values and "task" not in values
    advice = "a file of flags is for a script, by --settings" if recipe else "compare.py --help lists them"
    check(unknown is None, f"{path}: unknown key {unknown}: {advice}{did_you_mean(str(unknown), KEYS)}")
    near = did_you_mean(str(values.get("task")), TASKS)
    check(values.get("task") in list(TASKS), f"{path}: task must be one of {', '.join(TASKS)}{near}")
    task = TASKS[values["task"]]
    check(not mini or "mini" in values, f"{path} has no table [mini]: add one, or leave --mini out")
    variants = _variants(path, values)
    small, own = _small(path, values, "mini", variants) if mini else ({}, {})
    tiny, tiny_own = _small(path, values, "sample", variants) if mini and not data else ({}, {})
    seeds = tiny.pop("seeds", small.pop("seeds", values.get("seeds")))
    numbers = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    check(numbers and len(set(seeds)) == len(seeds), f"{path}: seeds must be a list of different whole numbers")
    model = {"model_path": MINI} if mini and task.tunes else {}
    files = course_files(task, data) if data else sample_files(task) if mini else {}
    common = model | _table(path, values, "flags")  # a variant may name another model
    training = small | files | tiny
    trained = common | _table(path, values, TRAINED) | training if TRAINED in values else None
    if trained is not None:
        common = {name: value for name, value in common.items() if name not in model}
        training = {flag: trained[flag] for flag in task.files if flag in trained}
    flags = {
        name: common | mine | training | own.get(name, {}) | tiny_own.get(name, {}) for name, mine in variants.items()
    }
    return Experiment(task, flags, trained, seeds, _columns(path, values, task))


def _variants(path, values):
    variants = _table(path, values, "variants")
    check(variants, f"{path} has no variants: add a table [variants.NAME] for each")
    for name in variants:
        check(FOLDER_NAME.fullmatch(name), f"{path}: {name!r} is no folder name: use letters, digits, - and _")
        check(name != TRAINED, f"{path}: no variant can be called {TRAINED}: rename it")
        _table(path, variants, name)
    lowered = [name.lower() for name in variants]
    twice = next((name for name in variants if lowered.count(name.lower()) > 1), None)
    check(twice is None, f"{path}: two variants are called {twice}, capitals aside: rename one")
    return variants


def _small(path, values, name, variants):
    """A table of flags that win: (those of all variants, {variant: those of its own})."""
    small = dict(_table(path, values, name))
    own = {key: small.pop(key) for key in list(small) if isinstance(small[key], dict)}
    unknown = min(own.keys() - variants.keys(), default=None)
    check(unknown is None, f"{path}: [{name}.{unknown}] is no variant")
    return small, own


def _columns(path, values, task):
    known = ("score", *task.columns, *task.hidden, *GENERAL)
    columns = values.get("columns", [*task.columns, *SHOWN])
    fits = isinstance(columns, list) and columns and all(name in known for name in columns)
    check(fits, f"{path}: columns must be a list of some of: {', '.join(known)}")
    return tuple(dict.fromkeys(task.score if name == "score" else name for name in columns))


def _table(path, values, name):
    table = values.get(name, {})
    check(isinstance(table, dict), f"{path}: {name} must be a table [{name}], not {table!r}")
    return table


def plan(experiment, path, out):
    """[PlannedRun], seed by seed; what only predicts, and draws nothing, once. UserError for what a script refuses."""
    runs, checkpoint = [], None
    if experiment.trained is not None:
        runs.append(_planned(experiment.task, path, TRAINED, experiment.seeds[0], out / TRAINED, experiment.trained))
        checkpoint = runs[0].folder
    for seed in experiment.seeds:
        for name, flags in experiment.variants.items():
            folder = out / f"{name}-{seed}"
            run = _planned(experiment.task, path, name, seed, folder, flags, checkpoint)
            if not checkpoint or seed == experiment.seeds[0] or experiment.task.draws(run.settings):
                runs.append(run)
    return runs


def _planned(task, path, name, seed, folder, flags, checkpoint=None):
    try:
        settings, _ = parse_flags(task.settings, as_arguments(flags))
        own = task.own_flags(folder, settings)
        refused = min(flags.keys() & (OWN | own.keys()), default=None)
        check(refused is None, f"compare.py sets {refused} itself: leave it out")
        own |= {"seed": seed} | ({"checkpoint": str(checkpoint)} if checkpoint else {"run_dir": str(folder)})
        arguments = as_arguments(flags | own)
        settings, given = parse_flags(task.settings, arguments)
        if checkpoint:
            refuse_training_flags(settings, given)
    except UserError as error:
        raise UserError(f"{path}: {name}: {error}") from error
    return PlannedRun(task, name, seed, folder, arguments, settings, checkpoint)


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
