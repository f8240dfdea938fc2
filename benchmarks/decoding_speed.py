"""What constraints and beams cost.

    python -m benchmarks.decoding_speed beams          12 prompts x 4 beams, against 48 samples (124M size, random)
    python -m benchmarks.decoding_speed constraints    sampling free, in sonnet form, to templates (mini model)

The variants run in turn, round by round; reported are medians, and the median of the ratios within each round.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from config import DecodingSettings, GPT2Config, run_script
from datasets import load_sonnets, load_tokenizer
from datasets.sonnets import head_of
from decoding import beam_search, generate
from decoding.template import Lexicon, load_tagger
from decoding.writer import SonnetWriter
from models.gpt2 import GPT2Model


def beam_variants(options):
    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config()).eval()
    prompts = torch.randint(50257, (12, 32)).tolist()
    settings = DecodingSettings(max_new_tokens=options.new_tokens, beams=4)
    tokens = 48 * options.new_tokens
    return {
        "48 samples": lambda: (generate(gpt2, prompts * 4, settings), tokens)[1],
        "12 prompts x 4 beams": lambda: (beam_search(gpt2, prompts, settings), tokens)[1],
    }


def constraint_variants(options):
    gpt2, tokenizer = GPT2Model.from_pretrained("data/gpt2-mini").eval(), load_tokenizer("data/gpt2-mini")
    sonnets = load_sonnets(Path(options.data, "sonnets.txt"))
    lexicon = Lexicon(sonnets, *load_tagger())
    heads = [head_of(sonnet) for sonnet in sonnets[:12]]

    def variant(**changes):
        settings = DecodingSettings(**changes)
        templates = lexicon.templates[settings.template_tags]
        writer = SonnetWriter(gpt2, tokenizer, settings, 32, lexicon, templates)

        def run():
            written = []
            writer.write(heads, 0, written.append)
            return sum(written)

        return run

    return {
        "free": variant(),
        "sonnet form": variant(form="sonnet"),
        "templates, penn tags": variant(decode="template"),
        "templates, words only": variant(decode="template", template_tags="word"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("beams", "constraints"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=64, help="of the beams (default: 64)")
    parser.add_argument("--data", default="data/sample", help="folder with sonnets.txt (default: data/sample)")
    options = parser.parse_args()
    variants = {"beams": beam_variants, "constraints": constraint_variants}[options.what](options)
    rates = {name: [] for name in variants}
    for number in range(options.rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            tokens = run()
            if number:  # the first round warms up
                rates[name].append(tokens / (time.perf_counter() - start))
    first = next(iter(rates))
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds\n{'':<26}{'tokens/s':>10}{'time a token':>16}")
    for name, values in rates.items():
        ratio = statistics.median(base / rate for rate, base in zip(values, rates[first], strict=True))
        print(f"{name:<26}{statistics.median(values):>10.0f}{ratio:>15.2f}x")


if __name__ == "__main__":
    run_script(main)
