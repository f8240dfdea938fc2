"""What pooling costs: one paraphrase training step at the 124M size with each pooling, over the last token alone.

    python -m benchmarks.pooling_step --rounds 7

LoRA, linear head, 8 pairs of up to 64 tokens; the variants run in turn, round by round, and share one backbone.
"""

import argparse

import torch

from benchmarks.rounds import report, time_rounds
from config import GPT2Config, HeadSettings, LoRASettings, PairPoolingSettings
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from optimizer import AdamW, parameter_groups
from tuning.attach import attach

POOLINGS = {
    "last": PairPoolingSettings(),
    "mean": PairPoolingSettings(pooling="mean"),
    "max": PairPoolingSettings(pooling="max"),
    "attention": PairPoolingSettings(pooling="attention"),
    "generalized": PairPoolingSettings(pooling="generalized"),
    "aligned": PairPoolingSettings(pooling="aligned"),
}


def make_step(gpt2, pooling, batch):
    model = ParaphraseGPT(gpt2, HeadSettings(head="linear"), pooling).train()
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)

    def step():
        loss, count = model(**batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


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
    types = torch.zeros_like(ids)  # two questions of 16 tokens
    types[:, 3:19], types[:, 26:42] = 1, 2
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "token_type_ids": types}
    steps = {name: make_step(gpt2, pooling, batch) for name, pooling in POOLINGS.items()}
    seconds = time_rounds(steps, flags.rounds)

    def cells(name, median, ratio):
        return {"s a step": f"{median:.3f}", "over the last token": f"{100 * (ratio - 1):+.1f} %"}

    report(seconds, "last", cells, "fp32, batch 8 x 64, LoRA, ")


if __name__ == "__main__":
    main()
