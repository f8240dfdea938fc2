"""Padding and batches against loops: every row once, alike in length, the same for a seed."""

import itertools
import random

import pytest
import torch

from datasets import (
    LengthGroupedBatches,
    SonnetsDataset,
    pad,
)
from datasets.batching import IDLE
from tests.helpers import Rows


@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_against_a_loop(side):
    rows = [[5, 6], [7], torch.tensor([1, 2, 3, 4], dtype=torch.int32), [], [9, 9, 9]]
    input_ids, attention_mask = pad(rows, 50256, side)
    assert input_ids.shape == attention_mask.shape == (5, 4)
    assert input_ids.dtype == attention_mask.dtype == torch.long
    for row, ids, mask in zip(rows, input_ids.tolist(), attention_mask.tolist(), strict=True):
        pads = 4 - len(row)
        ids_here, mask_here = [int(i) for i in row], [1] * len(row)
        for _ in range(pads):
            ids_here = [50256, *ids_here] if side == "left" else [*ids_here, 50256]
            mask_here = [0, *mask_here] if side == "left" else [*mask_here, 0]
        assert ids == ids_here and mask == mask_here


def random_lengths(count, seed=0):
    draw = random.Random(seed)
    return [draw.randint(5, 120) for _ in range(count)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("count, size", [(1, 8), (8, 8), (61, 8), (700, 8), (130, 1)])
def test_every_row_comes_exactly_once_an_epoch(count, size, shuffle):
    batches = LengthGroupedBatches(Rows(random_lengths(count)), size, shuffle)
    for epoch in range(3):
        drawn = list(batches.epoch(epoch))
        assert sorted(itertools.chain(*drawn)) == list(range(count))
        assert len(drawn) == len(batches) and sorted(map(len, drawn))[1:] == [size] * (len(drawn) - 1)
    assert list(batches) == list(batches.epoch(0))


def test_an_epoch_is_a_function_of_seed_and_number_alone():
    def drawn(seed, *epochs):
        batches = LengthGroupedBatches(Rows(random_lengths(300)), 4, True, seed)
        return [list(batches.epoch(epoch)) for epoch in epochs]

    random.seed(1)
    first = drawn(11711, 1, 2, 3)
    random.seed(2)
    torch.manual_seed(3)
    assert drawn(11711, 3) == first[2:]  # as a resumed run would draw it
    assert drawn(11711, 1, 2, 3) == first
    assert first[0] != first[1] != first[2] != first[0]
    assert sorted(map(sorted, first[0])) != sorted(
        map(sorted, first[1])
    )  # other batches, not the same in another order
    assert drawn(11712, 1) != first[:1]


def test_without_shuffle_epochs_are_alike_and_the_longest_rows_come_first():
    lengths = random_lengths(100)
    batches = LengthGroupedBatches(Rows(lengths), 8)
    rows = list(itertools.chain(*batches.epoch(1)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    assert list(batches.epoch(1)) == list(batches.epoch(2))


def test_shuffled_batches_do_not_go_from_short_to_long():
    lengths = random_lengths(256)  # 32 batches: one pool
    means = [sum(lengths[row] for row in rows) for rows in LengthGroupedBatches(Rows(lengths), 8, True).epoch(1)]
    ranks = [sorted(means).index(mean) for mean in means]
    correlation = torch.corrcoef(torch.tensor([ranks, range(32)], dtype=torch.float))[0, 1]
    assert abs(correlation) < 0.5


def pads_in(batches, lengths):
    return sum(max(lengths[row] for row in rows) - lengths[row] for rows in batches for row in rows)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_grouped_by_length_need_few_pads(tokenizer, shuffle):
    lengths = random_lengths(2000)
    order = random.Random(1).sample(range(2000), 2000)
    by_chance = pads_in([order[i : i + 8] for i in range(0, 2000, 8)], lengths)
    grouped = pads_in(LengthGroupedBatches(Rows(lengths), 8, shuffle).epoch(1), lengths)
    assert by_chance > 80_000 and grouped < by_chance / 10

    texts = ["a" * length for length in lengths[:200]]
    batches = LengthGroupedBatches(SonnetsDataset(texts, tokenizer), 8, shuffle)
    counted = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches.epoch(1))
    assert counted == pads_in(LengthGroupedBatches(Rows(lengths[:200]), 8, shuffle).epoch(1), lengths)


class NamedRows(Rows):
    """Rows whose batches are dicts, as those of real data are."""

    def collate_fn(self, items):
        return {"rows": items}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 8, 9, 61, 100])
def test_training_batches_are_shared_out_evenly(count, world):
    """Together they are, step by step, the batches of one process with as many rows."""
    lengths, size = random_lengths(count), 4
    alone = list(LengthGroupedBatches(NamedRows(lengths), size * world, True, 7).epoch(2))
    ranks = [LengthGroupedBatches(NamedRows(lengths), size, True, 7, rank, world) for rank in range(world)]
    drawn = [list(rank.epoch(2)) for rank in ranks]
    assert [len(batches) for batches in drawn] == [len(rank) for rank in ranks] == [len(alone)] * world
    for whole, parts in zip(alone, zip(*drawn, strict=True), strict=True):
        counted = [row for part in parts if IDLE not in part for row in part["rows"]]
        assert sorted(counted) == sorted(whole["rows"]) and IDLE not in whole
        sizes = [0 if IDLE in part else len(part["rows"]) for part in parts]
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        assert all(part["rows"] == whole["rows"][:1] for part in parts if IDLE in part)
    later = list(LengthGroupedBatches(NamedRows(lengths), size, True, 7, world - 1, world).epoch(2, start=1))
    assert later == drawn[-1][1:]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 8, 9, 61, 100])
def test_evaluation_rows_go_to_exactly_one_process(count, world):
    ranks = [LengthGroupedBatches(Rows(random_lengths(count)), 4, rank=rank, world=world) for rank in range(world)]
    drawn = [list(rank.epoch(0)) for rank in ranks]
    assert [len(batches) for batches in drawn] == [len(rank) for rank in ranks]
    assert sorted(row for batches in drawn for rows in batches for row in rows) == list(range(count))
