"""What models make of texts that they have not seen: nats a byte, so that different vocabularies compare.

    python -m benchmarks.held_out data/gpt2-mini ANOTHER_MODEL --texts wordsworth.txt wilde.txt

Every token of a text but its first is predicted once, from at most --context tokens before it. Less is better; bits a
byte are nats a byte / 0.693.
"""

import argparse
from pathlib import Path

import numpy as np

from cli.script import run_script
from cli.tables import format_table
from config import END_OF_TEXT
from datasets import load_tokenizer
from datasets.corpus import held_out_batches
from files import read_text
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT, summed_loss


def nats_a_byte(folder, texts, context):
    """{title: nats a byte} of a model's folder, {title: text}; and of all texts as one."""
    tokenizer = load_tokenizer(folder)
    model = SonnetGPT(GPT2Model.from_pretrained(folder)).eval()
    context = min(context, model.gpt.context)
    nats, sizes = {}, {title: len(text.encode()) for title, text in texts.items()}
    for title, text in texts.items():
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id(END_OF_TEXT)]
        nats[title], _ = summed_loss(model, held_out_batches([np.asarray(ids)], context, 32))
    each = {title: nats[title] / sizes[title] for title in texts}
    return each | {"all": sum(nats.values()) / sum(sizes.values())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders in Hugging Face layout")
    parser.add_argument("--texts", nargs="+", required=True, type=Path, help="text files")
    parser.add_argument("--context", type=int, default=256, help="tokens (default: 256)")
    options = parser.parse_args()
    texts = {path.stem: read_text(path) for path in options.texts}
    columns = {folder: nats_a_byte(folder, texts, options.context) for folder in options.models}
    rows = {title: {f: f"{columns[f][title]:.4f}" for f in options.models} for title in [*texts, "all"]}
    print(format_table(rows, corner="nats a byte"), end="")


if __name__ == "__main__":
    run_script(main)
