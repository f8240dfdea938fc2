"""How long back-translation takes: a batch of questions through a Marian model of opus-mt's size, by beams.

    python -m benchmarks.translation_speed --rounds 3

Random weights at the size of Helsinki-NLP/opus-mt-en-fr; 32 texts of 14 tokens to translations of 14 tokens, which is
what Quora's questions have on average. Reported: seconds a batch, and what 27,192 questions (of 14,212 pairs) then take
there and back.
"""

import argparse
import statistics

import torch
import transformers

from benchmarks.rounds import time_rounds
from cli.script import run_script

QUESTIONS = 27_192
SIZES = {
    "vocab_size": 59_514,
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "max_position_embeddings": 512,
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": 59_513,
    "decoder_start_token_id": 59_513,
    "eos_token_id": 0,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=14, help="of a text and of its translation (default: 14)")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = transformers.MarianMTModel(transformers.MarianConfig(**SIZES)).eval()
    ids = torch.randint(1, 59_000, (options.batch_size, options.tokens))
    mask = torch.ones_like(ids)

    def translate(beams):
        length = {"min_new_tokens": options.tokens, "max_new_tokens": options.tokens}
        return lambda: model.generate(ids, attention_mask=mask, num_beams=beams, do_sample=False, **length)

    variants = {f"--bt_beams {beams}": translate(beams) for beams in (1, 4)}
    seconds = time_rounds(variants, options.rounds)
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds, {options.batch_size} texts a batch")
    for name, times in seconds.items():
        median = statistics.median(times)
        minutes = 2 * QUESTIONS / options.batch_size * median / 60
        print(f"{name}: {median:.2f} s a batch, {minutes:.0f} minutes for {QUESTIONS:,} questions there and back")


if __name__ == "__main__":
    run_script(main)
