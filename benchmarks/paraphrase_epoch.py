"""Time an epoch of question pairs at the 124M size: ours beside a plain loop on transformers (and peft).

    python -m benchmarks.paraphrase_epoch --pairs data/quora-train.csv --vocabulary FOLDER --only LoRA

Both read the same pairs with the same prompt, 8 a step. Ours sorts them by length and computes two logits a pair. The
plain loop is what most begin with: random batches padded to their longest pair, logits of the whole vocabulary at every
position, the cross entropy of the answer's token. Of each one's epoch a few batches are timed, evenly spread over the
epoch's batches in the order of their size; the two run in turn, round by round. Random weights.

FOLDER has GPT-2's vocab.json and merges.txt (its tokens are longer than those of the mini model, whose vocabulary is
taken otherwise).
"""

import argparse
import functools
import random

import torch

from benchmarks.rounds import report, time_rounds
from benchmarks.train_step import LORA, transformers_model
from cli.script import run_script, say
from config import ANSWERS, GPT2Config
from datasets.batching import LengthGroupedBatches
from datasets.paraphrase import ParaphraseDetectionDataset, load_paraphrase_data
from datasets.tokenizer import load_tokenizer
from errors import check
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from optimizer import AdamW, parameter_groups
from training.loop import scale_gradients
from tuning.attach import attach, cast_frozen

ROWS = 8  # of a step


def our_steps(tuned, bf16):
    """A function of batches that trains on them with our loop's step."""
    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config.of_size("gpt2"))
    attach(gpt2, {"lora": LORA} if tuned else {})
    if bf16 and tuned:
        cast_frozen(gpt2, torch.bfloat16)
    model = ParaphraseGPT(gpt2).train()
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)

    def steps(batches):
        for batch in batches:
            loss, count = model(batch["token_ids"], batch["attention_mask"], labels=batch["labels"])
            loss.backward()
            scale_gradients(optimizer, 1 / count, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return steps


def plain_steps(tuned, bf16):
    """The same with transformers (and peft)."""
    model = transformers_model(GPT2Config.of_size("gpt2"), tuned)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    answers = torch.tensor(list(ANSWERS.values()))

    def steps(batches):
        for batch in batches:
            mask = batch["attention_mask"]
            logits = model(input_ids=batch["token_ids"], attention_mask=mask).logits
            last = logits[torch.arange(len(mask)), mask.sum(1) - 1]
            torch.nn.functional.cross_entropy(last.float(), answers[batch["labels"]]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return steps


def random_batches(dataset):
    """The batches of an epoch, their rows in no order."""
    order = list(range(len(dataset)))
    random.Random(0).shuffle(order)
    return [dataset.collate_fn([dataset[row] for row in order[i : i + ROWS]]) for i in range(0, len(order), ROWS)]


def padded(batch):
    """Positions of a batch, padding included."""
    return batch["token_ids"].numel()


def spread(batches, number):
    """So many of the batches, evenly over all of them in the order of their size."""
    order = sorted(batches, key=padded)
    return [order[int((place + 0.5) * len(order) / number)] for place in range(number)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="data/sample/para-train.csv", metavar="FILE")
    parser.add_argument("--vocabulary", default="data/gpt2-mini", metavar="FOLDER")
    parser.add_argument("--only", choices=("full", "LoRA"), default="full", help="what is trained")
    parser.add_argument("--batches", type=int, default=8, help="of an epoch, timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", help="file for the figures")
    flags = parser.parse_args()
    dataset = ParaphraseDetectionDataset(load_paraphrase_data(flags.pairs), load_tokenizer(flags.vocabulary))
    ours = list(LengthGroupedBatches(dataset, ROWS, shuffle=True).epoch(1))
    check(0 < flags.batches <= len(ours), f"--batches: from 1 to the {len(ours)} of an epoch")
    check(flags.rounds > 0, "--rounds must be at least 1")
    theirs, tuned, bf16 = random_batches(dataset), flags.only == "LoRA", flags.precision == "bf16"
    with_padding = [sum(map(padded, batches)) for batches in (ours, theirs)]
    say("{} tokens; with our padding {}, with theirs {}".format(sum(dataset.lengths), *with_padding))
    plain = f"transformers{' + peft' * tuned}, {flags.only}"
    steps = {
        f"ours, {flags.only}": functools.partial(our_steps(tuned, bf16), spread(ours, flags.batches)),
        plain: functools.partial(plain_steps(tuned, bf16), spread(theirs, flags.batches)),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        seconds = time_rounds(steps, flags.rounds)

    def cells(name, median, ratio):
        return {"an epoch": f"{median * len(ours) / flags.batches / 60:.1f} min", f"over {plain}": f"{ratio:.2f}"}

    report(seconds, plain, cells, f"{flags.precision}, ", flags.json)


if __name__ == "__main__":
    run_script(main)
