"""Every way of decoding on the same trained model and the course's dev sonnets: one table.

    python -m benchmarks.decoders_table --run runs/sonnet-full-1

The run is one of sonnet_generation.py. For each decoder, over several seeds: chrF of the whole sonnets and of the
continuations, beside the floors; distinct-2 (different pairs of words among all of them, in the lines written); the
share of texts of exactly 14 lines; syllables and rhymes; tokens written a second (candidates that are thrown away count
as time, not as tokens).
"""

import argparse
import dataclasses
import time
from pathlib import Path

from cli.script import run_script
from config import DecodingSettings
from datasets import load_sonnets, load_tokenizer
from datasets.sonnets import PROMPT_LINES, head_of, tail_of
from decoding.prosody import load_pronouncing, measure_form, words_of
from decoding.template import Lexicon, load_tagger
from decoding.writer import SonnetWriter
from errors import check
from evaluation import mean_and_deviation, score_sonnets, sonnet_floors
from training.tasks import open_tuned

DECODERS = {
    "sample, T 1.2, top-p 0.9": {},
    "sample, T 0.8, top-p 0.9": {"temperature": 0.8},
    "sample, T 1.2, min-p 0.1": {"top_p": 1.0, "min_p": 0.1},
    "sample, --form sonnet": {"form": "sonnet"},
    "best of 8 samples": {"form": "sonnet", "num_samples": 8},
    "mbr, 8 samples": {"form": "sonnet", "decode": "mbr"},
    "greedy": {"decode": "greedy"},
    "greedy, --form sonnet": {"form": "sonnet", "decode": "greedy"},
    "beam 4": {"decode": "beam"},
    "beam 4, --form sonnet": {"form": "sonnet", "decode": "beam"},
    "beam 4, form, no repeated 3-gram": {"form": "sonnet", "decode": "beam", "no_repeat_ngram": 3},
    "template, penn tags": {"decode": "template"},
    "template, universal tags": {"decode": "template", "template_tags": "universal"},
    "template, content or function": {"decode": "template", "template_tags": "content"},
    "template, words only": {"decode": "template", "template_tags": "word"},
}
COLUMNS = ("chrF whole", "chrF continuation", "distinct-2", "14 lines", "syllables a line", "rhymes", "tokens/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a finished run of sonnet_generation.py")
    parser.add_argument("--data", default="data", help="folder of the course's files (default: data)")
    parser.add_argument("--model", default="data/gpt2-mini", help="the base model (default: data/gpt2-mini)")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    tuned, _, settings, _ = open_tuned(options.run, options.model)
    tokenizer = load_tokenizer(tuned.folder)
    training = load_sonnets(Path(options.data, "sonnets.txt"))
    gold = load_sonnets(Path(options.data, "TRUE_sonnets_held_out_dev.txt"))
    check(options.seeds >= 1, "--seeds must be at least 1")
    pronouncing, lexicon = load_pronouncing(), Lexicon(training, *load_tagger())
    print("| decoder | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS), flush=True)
    for name, changes in DECODERS.items():
        chosen = dataclasses.replace(DecodingSettings(), **changes)
        templates = lexicon.templates[chosen.template_tags]
        writer = SonnetWriter(tuned.gpt2, tokenizer, chosen, settings.inference.eval_batch_size, lexicon, templates)
        seeds = range(options.seeds) if chosen.decode in ("sample", "mbr", "template") else [0]
        rows = []
        for seed in seeds:
            start = time.perf_counter()
            texts = [best.text for best, *_ in writer.write([head_of(sonnet) for sonnet in gold], seed)]
            seconds = time.perf_counter() - start
            written = sum(len(tokenizer.encode(tail_of(text)).ids) for text in texts)
            rows.append(measures(texts, gold, pronouncing) | {"tokens/s": written / seconds})
        print(row(name, mean_and_deviation(rows)), flush=True)
    for name, values in sonnet_floors(gold, training).items():
        print(row(f"floor: {name}", values))
    print(row("gold", mean_and_deviation([measures(gold, gold, pronouncing)])))


def measures(texts, gold, pronouncing):
    return (
        score_sonnets(texts, gold) | measure_form(texts, PROMPT_LINES, pronouncing) | {"distinct-2": distinct(texts, 2)}
    )


def distinct(texts, n):
    """The share of different n-grams of words among all in the lines written, marks left out (Li et al. 2016)."""
    grams = []
    for text in texts:
        words = words_of(tail_of(text).replace("\n", " "))
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def row(name, values):
    cells = [name]
    for column in COLUMNS:
        if column not in values:
            cells.append("-")
            continue
        mean, deviation = values[column]
        places = 0 if column == "tokens/s" else 2
        cells.append(f"{mean:.{places}f}" + (f" ± {deviation:.{places}f}" if deviation and places else ""))
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run_script(main)
