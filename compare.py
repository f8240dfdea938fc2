"""Trains variants of an experiment over several seeds: one table of them all.

python compare.py experiments/compare-sonnet-methods.toml
    train what is missing, then write table.md, table.csv and table.html
python compare.py experiments/compare-sonnet-methods.toml --mini
    the same offline, on sample data and the model that comes along
python compare.py experiments/compare-sonnet-methods.toml --mini --data data
    that model on the course's files

Every run has a folder, OUT/VARIANT-SEED, and a log beside it. A run that is
there is not trained again, one that was stopped goes on, one with other
settings is refused.

An experiment is a TOML file:

"""

import argparse
from pathlib import Path

from cli.flags import FlagParser
from cli.script import run_script, start


def parse(arguments=None):
    shown = Path(__file__).with_name("comparison").joinpath("experiment.py").read_text(encoding="utf-8")
    parser = FlagParser(
        description=__doc__ + shown.split("\n\n", 1)[1].split('\n"""', 1)[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.toml")
    parser.add_argument("--mini", action="store_true", help="on data/gpt2-mini and, without --data, data/sample")
    parser.add_argument("--data", help="folder of the course's files (default: those that the flags name)")
    parser.add_argument(
        "--out", help="folder of runs and tables (default: runs/EXPERIMENT, with --mini -mini, and -data with --data)"
    )
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--dry_run", action="store_true", help="only list the runs")
    options = parser.parse_args(arguments)
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    return options


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

from cli.script import on_stop, say
from cli.tables import format_table
from comparison.experiment import plan, read_experiment
from comparison.running import check_recorded, check_same_dev, make_all, same_precision
from comparison.table import write_tables
from errors import check
from files import where_it_may_be


def main(options):
    path = Path(options.experiment)
    experiment = read_experiment(path, options.mini, options.data)
    kind = ("-mini" if options.mini else "") + ("-data" if options.mini and options.data else "")
    out = Path(options.out or Path("runs", path.stem + kind))
    runs = plan(experiment, path, out)
    for run in runs:
        if run.begun or run.checkpoint:
            check_recorded(run)
    same_precision(runs)
    if options.dry_run:
        say(format_table({str(run.folder): run.state for run in runs}), end="")
        return
    script = Path(f"{experiment.task.script}.py")
    check(script.is_file() or all(run.done for run in runs), f"{script} is not here: {where_it_may_be(script)}")
    experiment.task.gold(runs[0].settings)  # what the table needs at the end: told now
    on_stop(f"go on with the same command: what is trained is kept in {out}")
    make_all(runs, options.parallel)
    check_same_dev(runs)
    write_tables(experiment, runs, out, path.stem)


if __name__ == "__main__":
    run_script(main, OPTIONS)
