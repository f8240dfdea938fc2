"""Batches of rows that are alike in length, padded to the longest row of the batch and no further."""

import random
from functools import cache

import torch

from cli.script import say
from errors import UserError, is_out_of_memory


def pad(rows, pad_id, side="right"):
    """Token-id lists -> (input_ids, attention_mask), both (B, T) long; T is the longest row, the mask is 1 at tokens.

    Generation pads on the left, so that every row's next token is at the same place; training pads on the right.
    """
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        input_ids[index, span] = torch.as_tensor(row, dtype=torch.long)
        attention_mask[index, span] = 1
    return input_ids, attention_mask


# What a batch says besides where several processes share the work, a value a row:
IDLE = "idle"  # it stands in for a row that this process lacks, and counts for nothing
MEAN_LENGTH = "mean_length"  # tokens a row of the whole batch, all processes together


def rows_of(batch):
    """How many rows a batch has. batch: {name: tensor or list}, a row each in their first axis."""
    return max(map(len, batch.values()))


def split_batch(batch, rows):
    """The batch in parts of so many rows at most."""
    return [{name: v[i : i + rows] for name, v in batch.items()} for i in range(0, rows_of(batch), rows)]


def run_in_parts(run, items):
    """[run(part), ...]: of all items at once or, where memory runs out, of their halves, and so on, in order.

    items: a list, or a batch as in `rows_of`. Raises UserError where a single one does not fit.
    """
    try:
        return [run(items)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size = len(items) if isinstance(items, list) else rows_of(items)
        if size == 1:
            raise UserError("a single row does not fit into memory: take a smaller model, or shorter rows") from error
    _say_smaller()
    half = -(-size // 2)
    halves = [items[:half], items[half:]] if isinstance(items, list) else split_batch(items, half)
    return [outcome for part in halves for outcome in run_in_parts(run, part)]


@cache
def _say_smaller():
    say("out of memory: the batch goes in halves, with the same result; --eval_batch_size would save the attempts")


def some_rows(rows, number, seed):
    """So many of the rows, drawn by the seed, in their order; all of them where number is None or larger."""
    if number is None or number >= len(rows):
        return rows
    chosen = sorted(random.Random(f"rows-{seed}").sample(range(len(rows)), number))
    say(f"{number} of {len(rows)} training rows are used (--train_rows)")
    return [rows[place] for place in chosen]


class LengthGroupedBatches:
    """The batches of a dataset, grouped by length.

    dataset: has `lengths` (tokens of each row), `__getitem__` and `collate_fn`. shuffle: batches change from epoch to
    epoch, as a function of the seed and the epoch alone, so that a resumed run sees what it would have seen. Rows are
    shuffled, sorted by length within pools of POOL batches, cut into batches, and the batches are shuffled. Without
    shuffle the longest rows come first: if they fit into memory, all do.
    rank, world: this process and how many share the work; batch_size: rows of each of them. While training (shuffle)
    the batches are those of one process with world times the rows, and the rows of each are dealt out in turn, so that
    every step is the step of one process. Where the last batch has fewer rows than there are processes, those without
    one take its first row, marked IDLE. Without shuffle whole batches are dealt out.
    """

    POOL = 32

    def __init__(self, dataset, batch_size, shuffle=False, seed=0, rank=0, world=1):
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self):
        if self.shuffle:
            return -(-len(self.dataset) // (self.batch_size * self.world))
        return len(range(self.rank, -(-len(self.dataset) // self.batch_size), self.world))

    def epoch(self, number, start=0):
        """The batches of an epoch, one after the other, from batch `start` on."""
        if not self.shuffle:
            for rows in self._longest_first()[self.rank :: self.world][start:]:
                yield self._collated(rows)
            return
        for rows in self._drawn(number)[start:]:
            mine = rows[self.rank :: self.world]
            batch = self._collated(mine or rows[:1])
            yield batch if self.world == 1 else batch | self._of_all(rows, mine)

    def __iter__(self):
        return self.epoch(0)

    def _collated(self, rows):
        return self.dataset.collate_fn([self.dataset[row] for row in rows])

    def _of_all(self, rows, mine):
        mean = sum(self.dataset.lengths[row] for row in rows) / len(rows)
        return {MEAN_LENGTH: [mean] * max(1, len(mine))} | ({} if mine else {IDLE: [True]})

    def _longest_first(self):
        """The rows of every batch, in the order of their lengths."""
        lengths, size = self.dataset.lengths, self.batch_size
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _drawn(self, epoch):
        """The rows of every batch of an epoch, all processes together."""
        lengths, size = self.dataset.lengths, self.batch_size * self.world
        order = list(range(len(lengths)))
        shuffled = random.Random(f"{self.seed}-{epoch}")
        shuffled.shuffle(order)
        pool = self.POOL * size
        pools = [sorted(order[i : i + pool], key=lengths.__getitem__) for i in range(0, len(order), pool)]
        order = [row for rows in pools for row in rows]
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        shuffled.shuffle(batches)
        return batches
