"""One table of all variants: mean and deviation over the seeds, the difference to the first variant, the floors."""

import contextlib
import io

import numpy as np

from cli.script import say
from cli.tables import format_table, to_csv, to_html, to_markdown
from comparison.experiment import GENERAL
from comparison.running import report_of
from evaluation import interval, mean_and_deviation, resample_counts
from files import write_text

RESAMPLES = 1000
UNITS = {"peak memory": ("peak memory (GiB)", 2**30), "bytes of the weights": ("weights (KiB)", 2**10)}
DIGITS = {"dev loss": 4, "test loss": 4, "initial train loss": 4, "final train loss": 4, "seconds": 1, "p": 3}


def write_tables(experiment, runs, out, title):
    """Print the table, and write it to the folder `out` as Markdown, CSV and HTML."""
    rows, note = table_rows(experiment, runs), note_of(experiment)
    say("\n" + format_table(rows, title) + f"\n{note}\n")
    for suffix, text in (
        ("md", to_markdown(rows, note)),
        ("csv", to_csv(rows)),
        ("html", to_html(rows, title, note)),
    ):
        write_text(out / f"table.{suffix}", text)
    say(f"{out}/table.md, .csv, .html")


def note_of(experiment):
    seeds, first = ", ".join(map(str, experiment.seeds)), next(iter(experiment.variants))
    return (
        f"Seeds: {seeds}; mean +- deviation. difference: in {experiment.task.score}, to {first}, the mean over the "
        f"seeds, with a 95 % interval from {RESAMPLES:,} paired resamples of the items."
    )


def table_rows(experiment, runs):
    """{variant or floor: {column: text}}"""
    task, rows, base = experiment.task, {}, None
    made = [run for run in runs if run.variant in experiment.variants]
    with contextlib.redirect_stdout(io.StringIO()):  # what the loaders say, the runs have said
        gold = task.gold(runs[0].settings)
        counts = resample_counts(len(gold), RESAMPLES)
        floors = task.floors(runs[0].settings, gold)
        for name in experiment.variants:
            mine = [run for run in made if run.variant == name]
            reports = [report_of(run) for run in mine]
            pairs = zip(mine, reports, strict=True)
            measured = [task.measure(run.settings, report, gold, counts) for run, report in pairs]
            base = base or (mine, measured)
            cells = _cells(task, measured, reports) | _beside(task, base, mine, measured, gold)
            rows[name] = _chosen(experiment, cells)
    for name, values in floors.items():
        cells = _chosen(experiment, {column: cell(task, column, *value) for column, value in values.items()})
        if set(cells.values()) != {"-"}:
            rows[name] = cells
    return rows


def _cells(task, measured, reports):
    figures = []
    for one, report in zip(measured, reports, strict=True):
        facts = {name: report["run"].get(name) for name in GENERAL}
        figures.append(one.figures | {name: value for name, value in facts.items() if value is not None})
    common = set.intersection(*(set(row) for row in figures))  # a report of old may lack one
    rows = [{name: row[name] for name in row if name in common} for row in figures]
    return {column: cell(task, column, *value) for column, value in mean_and_deviation(rows).items()}


def _beside(task, base, mine, measured, gold):
    """What compares a variant with the first one, (its runs, what was measured of them)."""
    if mine is base[0]:
        return {}
    (value, draws), (other, others) = (_mean(task, some) for some in (measured, base[1]))
    low, high = interval(draws - others)
    text = f"{value - other:+.{task.digits}f} [{low:+.{task.digits}f}, {high:+.{task.digits}f}]"
    pairs = [task.against(run.settings, other.settings, gold) for run, other in zip(mine, base[0], strict=False)]
    return {"difference": text} | {column: ", ".join(pair[column] for pair in pairs) for column in pairs[0]}


def _mean(task, measured):
    """(score, score of each resample), the means over the seeds."""
    return np.mean([one.figures[task.score] for one in measured]), np.mean([one.draws for one in measured], axis=0)


def cell(task, column, mean, deviation):
    """A figure as text, with the digits that its column deserves."""
    mean, deviation = (value / UNITS.get(column, ("", 1))[1] for value in (mean, deviation))
    own = column in (*task.columns, *task.hidden) and column not in DIGITS
    digits = DIGITS.get(column, task.digits if own else 2)
    text = f"{mean:,.0f}" if column in ("epochs", "trained parameters") else f"{mean:,.{digits}f}"
    return text + (f" +- {deviation:.{digits}f}" if deviation else "")


def _chosen(experiment, cells):
    """The experiment's columns in their order, with the headings that a reader sees."""
    return {UNITS.get(column, (column,))[0]: cells.get(column, "-") for column in experiment.columns}
