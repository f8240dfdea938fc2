"""Parallel text: read as it was meant or refused with the line; batches within their budget; the same after a stop."""

import gzip

import pytest

from datasets.translation import (
    TokenBudgetBatches,
    TranslationDataset,
    dev_batches,
    load_pairs,
    load_sources,
    train_pair_tokenizer,
    warn_of_known,
)
from errors import UserError
from tests.helpers import Rows

PAIRS = [("a cat sleeps .", "eine Katze schläft ."), ("the dog barks .", "der Hund bellt ."), ("rain", "Regen")]


def write(folder, name, text):
    path = folder / name
    (path.write_bytes(gzip.compress(text.encode())) if name.endswith(".gz") else path.write_text(text, "utf-8"))
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_one_file_or_two_packed_or_not(tmp_path, suffix):
    tabbed = write(tmp_path, f"pairs.tsv{suffix}", "".join(f"{a}\t{b}\r\n" for a, b in PAIRS))
    source = write(tmp_path, f"en{suffix}", "\n".join(a for a, _ in PAIRS) + "\n\n")
    target = write(tmp_path, f"de{suffix}", "\n".join(f" {b} " for _, b in PAIRS))
    assert load_pairs(tabbed) == load_pairs(f"{source},{target}") == PAIRS
    assert load_pairs(tabbed, lowercase=True)[2] == ("rain", "regen")
    assert load_sources(source) == [(a, None) for a, _ in PAIRS] and load_sources(tabbed) == PAIRS


@pytest.mark.parametrize(
    "text, said",
    [
        ("a\tb\nno tab\n", "line 2: 1 fields"),
        ("a\tb\nc\td\te\n", "line 2: 3 fields"),
        ("a\tb\n\nc\td\n", "line 2: 1 fields"),
        ("a\tb\n\td\n", "pair 2: one of its sentences is empty"),
        ("", "is empty"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        load_pairs(write(tmp_path, "pairs.tsv", text))


def test_two_files_must_have_the_same_lines(tmp_path):
    one, other = write(tmp_path, "en", "a\nb\n"), write(tmp_path, "de", "a\nb\nc\n")
    with pytest.raises(UserError, match=r"en has 2 lines, .*de 3: they must be translations line by line"):
        load_pairs(f"{one},{other}")
    with pytest.raises(UserError, match="give one tab-separated file, or two files"):
        load_pairs(f"{one},{other},{one}x")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"<html>", lambda data: data[:30] + b"??" * 9])
def test_a_damaged_archive_is_one_line(tmp_path, damage):
    path = tmp_path / "pairs.tsv.gz"
    path.write_bytes(damage(gzip.compress(b"".join(b"%d\t%d\n" % (i * i, i) for i in range(300)))))
    with pytest.raises(UserError, match="cannot be unpacked"):
        load_pairs(str(path))


def test_known_sentences_are_told(capsys):
    warn_of_known([("rain", None), ("snow", None)], PAIRS, "test.tsv")
    assert "warning: 1 of 2 sentences of test.tsv are in the training data" in capsys.readouterr().out


@pytest.fixture(scope="module")
def pair_tokenizer():
    return train_pair_tokenizer(PAIRS * 3, 300)


def test_any_text_goes_through_the_tokenizer_and_back(pair_tokenizer):
    for text in ("eine Katze schläft .", "소네트 😀", "  two  blanks"):
        assert pair_tokenizer.decode(pair_tokenizer.encode(text).ids) == text
    assert pair_tokenizer.get_vocab_size() <= 300


def test_rows_of_a_batch(pair_tokenizer):
    dataset = TranslationDataset(PAIRS, pair_tokenizer, 100)
    batch, end = dataset.collate_fn([dataset[0], dataset[2]]), dataset.end
    source, target = (pair_tokenizer.encode(text).ids for text in PAIRS[2])
    assert batch["source_ids"][1][: len(source) + 1].tolist() == [*source, end]
    assert batch["target_ids"][1][: len(target) + 2].tolist() == [end, *target, end]
    assert batch["source_mask"][1].sum() == len(source) + 1 and batch["sent_ids"] == ["pair 1", "pair 3"]


def test_long_pairs_are_left_out_or_cut_and_told(pair_tokenizer, capsys):
    assert len(TranslationDataset(PAIRS, pair_tokenizer, 5)) == 1
    assert "2 of 3 pairs are longer than 5 tokens: left out" in capsys.readouterr().out
    cut = TranslationDataset(PAIRS, pair_tokenizer, 5, cut=True)
    assert len(cut) == 3 and max(cut.lengths) == 6
    with pytest.raises(UserError, match="raise --max_length"):
        TranslationDataset(PAIRS[:2], pair_tokenizer, 1)


LENGTHS = [1 + (7 * i) % 13 for i in range(50)]


def test_a_pass_takes_every_row_once_within_the_budget():
    batches = TokenBudgetBatches(Rows(LENGTHS), 30, 7, seed=3)
    size = batches.a_pass
    taken = [batches._rows(place) for place in range(3 * size)]
    for number in range(3):
        rows = [row for batch in taken[number * size : (number + 1) * size] for row in batch]
        assert sorted(rows) == list(range(50))
    assert all(max(LENGTHS[row] for row in batch) * len(batch) <= 30 for batch in taken)
    assert taken[:size] != taken[size : 2 * size]


def test_an_epoch_can_be_entered_anywhere_and_processes_share_it():
    whole = TokenBudgetBatches(Rows(LENGTHS), 30, 7, seed=3)
    everything = [batch for epoch in range(1, 9) for batch in whole.epoch(epoch)]
    later = list(TokenBudgetBatches(Rows(LENGTHS), 30, 7, seed=3).epoch(6, start=2))
    assert later == everything[5 * 7 + 2 : 6 * 7]
    halves = [list(TokenBudgetBatches(Rows(LENGTHS), 30, 7, 3, rank, 2).epoch(2)) for rank in (0, 1)]
    assert [batch for pair in zip(*halves, strict=True) for batch in pair] == everything[14:28]
    with pytest.raises(UserError, match="raise --batch_tokens"):
        TokenBudgetBatches(Rows(LENGTHS), 12, 7)


def test_dev_batches_take_every_row_once():
    batches = list(dev_batches(Rows(LENGTHS), 30))
    assert sorted(row for batch in batches for row in batch) == list(range(50))
    assert all(max(LENGTHS[row] for row in batch) * len(batch) <= 30 for batch in batches)
