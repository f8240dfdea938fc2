"""What pooling costs: one paraphrase training step at the 124M size with each pooling, over the last token alone.

    python -m benchmarks.pooling_step --rounds 7

LoRA, linear head, 8 pairs of up to 64 tokens; the variants run in turn, round by round, and share one backbone.
"""

import argparse
import statistics
import time

import torch

from config import GPT2Config, HeadSettings, LoRASettings, PoolingSettings
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from modules.tuning import attach
from optimizer import AdamW, parameter_groups

POOLINGS = {
    "last": PoolingSettings(),
    "mean": PoolingSettings(pooling="mean"),
    "max": PoolingSettings(pooling="max"),
    "attention": PoolingSettings(pooling="attention"),
    "generalized": PoolingSettings(pooling="generalized"),
}


def step(model, optimizer, ids, mask, labels):
    loss, count = model(ids, mask, labels=labels)
    (loss / count).backward()
    optimizer.step()
    optimizer.zero_grad()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config.of_size("gpt2"))
    attach(gpt2, {"lora": LoRASettings()})
    ids, labels = torch.randint(0, 50257, (8, 64)), torch.arange(8) % 2
    mask = torch.ones_like(ids)
    for row in range(8):
        mask[row, 64 - 2 * row :] = 0
    prepared = {}
    for name, settings in POOLINGS.items():
        model = ParaphraseGPT(gpt2, HeadSettings(head="linear"), settings).train()
        prepared[name] = model, AdamW(parameter_groups(model, 0.0), lr=1e-5)
    seconds = {name: [] for name in prepared}
    for round_number in range(flags.rounds + 1):
        for name, (model, optimizer) in prepared.items():
            start = time.perf_counter()
            step(model, optimizer, ids, mask, labels)
            if round_number:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"fp32, batch 8 x 64, LoRA, {torch.get_num_threads()} threads, {flags.rounds} rounds")
    for name, times in seconds.items():
        ratio = statistics.median(t / last for t, last in zip(times, seconds["last"], strict=True))
        print(f"{name:<12} median {statistics.median(times):.3f} s, {100 * (ratio - 1):+.1f} % over the last token")


if __name__ == "__main__":
    main()
