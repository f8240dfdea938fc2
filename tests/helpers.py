"""Small things that the tests of several files share."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from config import (
    ParaphraseSettings,
    PoolingSettings,
    SonnetSettings,
)

BOTH = (SonnetSettings, ParaphraseSettings)


def flat(settings):
    """{flag: value}, and proof that no flag is in two groups."""
    values = [item for group in dataclasses.asdict(settings).values() for item in group.items()]
    assert len(dict(values)) == len(values)
    return dict(values)


MINI = "data/gpt2-mini"
MINI_VOCABULARY = json.loads((Path(__file__).resolve().parents[1] / MINI / "config.json").read_text())["vocab_size"]
MINI_END = MINI_VOCABULARY - 1  # its end of text


LINES = [
    "The reservoir drew down. The steeple tip",
    "And people drove from miles around, to slip",
    "My mistress' eyes are nothing like the sun;",
    'I said, "The night\'s long theft is sweet to see!"',
]


PROMPT_END = '"? Answer "yes" or "no": '


def prompt_of(first, second):
    """The contract's template, typed again."""
    return 'Is "' + first + '" a paraphrase of "' + second + PROMPT_END


def hugging_face_logits(model, input_ids, attention_mask=None):
    positions = None if attention_mask is None else (attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids, attention_mask=attention_mask, position_ids=positions).logits


def assert_close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


VOCAB, CONTEXT = 8600, 16


def prose(seed, words=9000):
    """Made-up text with enough different words for a vocabulary of 8,600, and none of them "yes"."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(5000)] + ["no"]
    text = ""
    while words:
        line = draw.choices(lexicon, k=min(words, draw.randint(3, 9)))
        words -= len(line)
        text += " ".join(line).capitalize() + draw.choice([",\n", ".\n", "\n\n", "?  \n \n", "\n\n\n\t"])
    return text


GENERALIZED = PoolingSettings(pooling="generalized", pooling_heads=3, pooling_hidden=4)


WORDS = ["yes", "no", "eye", "one", "noon", "yonder", "hen", "bee"]


class RandomRows:
    """Random token rows as a dataset: an item is (number, row), and a batch names its rows."""

    def __init__(self, number, seed=0, lengths=(5, 30)):
        random = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(*lengths, (number,), generator=random).tolist()
        self.rows = [torch.randint(0, 8599, (n,), generator=random) for n in self.lengths]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return index, self.rows[index]

    def collate_fn(self, items):
        ids = torch.nn.utils.rnn.pad_sequence([row for _, row in items], batch_first=True, padding_value=8599)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for _, row in items], batch_first=True)
        return {"token_ids": ids, "attention_mask": mask, "sent_ids": [f"row{index}" for index, _ in items]}


class Rows:
    """A dataset whose items are row numbers and whose batches are lists of them."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return index

    def collate_fn(self, items):
        return items


def mostly_slow(values):
    """Values of a parameter, of which the first goes through the quick tests and the others are slow proofs."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]
