"""What a batch costs whose rows have LoRAs of their own, at the 124M size, beside the same batch with one LoRA for all.

    python -m benchmarks.multi_lora --rounds 9

12 rows x 192 tokens, forward; five LoRAs of ranks 2 to 16 and the base alone, mixed, against a single LoRA of rank 8,
on the same linears. Random weights. The two run in turn; reported are medians and the median of the ratios of a round.
"""

import argparse

import torch

from benchmarks.rounds import report, time_rounds
from config import GPT2Config, LoRASettings
from models.gpt2 import GPT2Model
from modules.multi_lora import apply_multi_lora
from tuning.attach import attach, detach
from tuning.state import trainable_state_dict

RANKS = (2, 4, 8, 8, 16)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=192)
    options = parser.parse_args()
    torch.manual_seed(0)
    single, mixed = GPT2Model(GPT2Config()).eval(), GPT2Model(GPT2Config()).eval()
    adapters = {}
    for place, rank in enumerate(RANKS):
        settings = LoRASettings(lora_rank=rank)
        attach(mixed, {"lora": settings})
        adapters[place] = ({k: t.clone() for k, t in trainable_state_dict(mixed).items()}, settings.scaling)
        detach(mixed)
    attach(single, {"lora": LoRASettings(lora_rank=8)})
    routing = apply_multi_lora(mixed, adapters)
    names = [None, *adapters] * options.rows
    ids = torch.randint(50257, (options.rows, options.tokens))
    variants = {"one LoRA": lambda: single(ids), "five LoRAs and the base": lambda: mixed(ids)}
    with torch.no_grad(), routing.batch(names[: options.rows]):
        seconds = time_rounds(variants, options.rounds)
    report(seconds, "one LoRA", lambda _, s, ratio: {"s a batch": f"{s:.3f}", "of one LoRA": f"{ratio:.3f}"})


if __name__ == "__main__":
    main()
