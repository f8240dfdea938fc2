"""Timing on a noisy machine: variants run in turn, round by round; what counts are ratios within a round."""

import statistics
import time

import torch

from cli.tables import format_table
from files import write_json


def time_rounds(variants, rounds, clock=time.perf_counter):
    """{name: seconds of each round} for {name: function}; a round before the first warms up. clock: gives seconds."""
    seconds = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def medians(seconds, reference):
    """{name: (median seconds, median of the ratios to the reference within each round)}"""
    return {
        name: (
            statistics.median(times),
            statistics.median(t / r for t, r in zip(times, seconds[reference], strict=True)),
        )
        for name, times in seconds.items()
    }


def report(seconds, reference, cells, note="", file=None):
    """Print a table of medians. cells(name, median seconds, ratio to the reference) -> {column: text}.

    file: where to write the same as JSON, every round's seconds included; None: nowhere.
    """
    rounds = len(next(iter(seconds.values())))
    if file is not None:
        figures = {
            name: {"median": median, "ratio": ratio, "seconds": seconds[name]}
            for name, (median, ratio) in medians(seconds, reference).items()
        }
        about = {"note": note.rstrip(", "), "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_json(file, about | {"reference": reference, "variants": figures})
    rows = {name: cells(name, median, ratio) for name, (median, ratio) in medians(seconds, reference).items()}
    print(format_table(rows, f"{note}{torch.get_num_threads()} threads, {rounds} rounds"), end="")
