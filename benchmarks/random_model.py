"""Make a randomly initialised GPT-2 folder in Hugging Face layout, to try the project without a download.

    python -m benchmarks.random_model FOLDER --vocabulary DIR_WITH_vocab.json_AND_merges.txt --width 128 --layers 4
    python -m benchmarks.random_model FOLDER --like data/gpt2-mini    the same shape and tokenizer, untrained

It knows nothing, so what it is good for is to see that everything runs, and to measure speed at the true sizes.
"""

import argparse
import shutil
from pathlib import Path

import torch

from cli.script import run_script
from config import GPT2Config
from datasets import load_tokenizer
from errors import check
from formats.hugging_face import read_config, save_pretrained
from models.gpt2 import GPT2Model

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--vocabulary", type=Path, help="folder with GPT-2's vocab.json and merges.txt")
    source.add_argument("--like", type=Path, help="folder of a model whose shape and tokenizer to take")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    check(not flags.folder.exists(), f"{flags.folder} exists already: choose another folder")
    vocabulary = flags.vocabulary or flags.like
    vocab_size = load_tokenizer(vocabulary).get_vocab_size()
    torch.manual_seed(flags.seed)
    gpt2 = GPT2Model(read_config(flags.like) if flags.like else make_config(flags, vocab_size))
    save_pretrained(gpt2, flags.folder)
    for name in TOKENIZER_FILES:
        if (vocabulary / name).is_file():
            shutil.copyfile(vocabulary / name, flags.folder / name)
    print(f"{flags.folder}: {sum(p.numel() for p in gpt2.parameters()):,} random parameters, {vocab_size:,} tokens")


def make_config(flags, vocab_size):
    return GPT2Config(
        vocab_size=vocab_size,
        hidden_size=flags.width,
        num_hidden_layers=flags.layers,
        num_attention_heads=flags.heads,
        eos_token_id=vocab_size - 1,
    )


if __name__ == "__main__":
    run_script(main)
