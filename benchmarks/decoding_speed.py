"""What constraints and beams cost.

    python -m benchmarks.decoding_speed beams          12 prompts x 4 beams, against 48 samples (124M size, random)
    python -m benchmarks.decoding_speed constraints    sampling free, in sonnet form, to templates (mini model)

The variants run in turn, round by round; reported are medians, and the median of the ratios within each round.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.rounds import report, time_rounds
from cli.script import run_script
from config import DecodingSettings, GPT2Config
from datasets import load_sonnets, load_tokenizer
from datasets.sonnets import head_of
from decoding import GPT2Steps, Rules, beam_search, generate, row_streams
from decoding.template import Lexicon, load_tagger
from decoding.writer import SonnetWriter
from models.gpt2 import GPT2Model


def beam_variants(options):
    """{name: function}, {name: tokens that it makes}"""
    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config()).eval()
    prompts = torch.randint(50257, (12, 32)).tolist()
    rules = Rules(DecodingSettings(max_new_tokens=options.new_tokens, beams=4))

    def steps(prompts):
        return GPT2Steps(gpt2, prompts, options.new_tokens)

    variants = {
        "48 samples": lambda: generate(steps(prompts * 4), prompts * 4, rules, row_streams(0, range(48))),
        "12 prompts x 4 beams": lambda: beam_search(steps(prompts), prompts, rules),
    }
    return variants, dict.fromkeys(variants, 48 * options.new_tokens)


def constraint_variants(options):
    """{name: function}, {name: tokens that it makes}"""
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

    variants = {
        "free": variant(),
        "sonnet form": variant(form="sonnet"),
        "templates, penn tags": variant(decode="template"),
        "templates, words only": variant(decode="template", template_tags="word"),
    }
    return variants, {name: run() for name, run in variants.items()}  # the same seed, so the same tokens every time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("beams", "constraints"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=64, help="of the beams (default: 64)")
    parser.add_argument("--data", default="data/sample", help="folder with sonnets.txt (default: data/sample)")
    options = parser.parse_args()
    variants, tokens = {"beams": beam_variants, "constraints": constraint_variants}[options.what](options)
    seconds, first = time_rounds(variants, options.rounds), next(iter(variants))

    def cells(name, median, ratio):
        per_token = ratio * tokens[first] / tokens[name]
        return {"tokens/s": f"{tokens[name] / median:.0f}", "time a token": f"{per_token:.2f}x"}

    report(seconds, first, cells)


if __name__ == "__main__":
    run_script(main)
