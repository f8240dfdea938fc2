"""Sonnet files against what they hold."""

import random
import re
from collections import Counter

import pytest

from datasets import (
    SonnetsDataset,
    load_sonnets,
)
from datasets.sonnets import format_sonnets, is_heading
from errors import UserError

SONNET_FILE = "Sonnets\nby William Shakespeare\n\n\n1\n\nFirst line,\n  second 12 line\n\n\n  22  \n\nOther\n\nline\n\n"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_sonnets_lose_header_and_numbers(tmp_path, tokenizer, line_end):
    path = tmp_path / "sonnets.txt"
    path.write_bytes(b"\xef\xbb\xbf" + SONNET_FILE.replace("\n", line_end).encode())
    texts = ["First line,\n  second 12 line", "Other\n\nline"]
    assert load_sonnets(path) == texts
    assert SonnetsDataset(path, tokenizer).texts == SonnetsDataset(texts, tokenizer).texts == texts


@pytest.mark.parametrize(
    "text, message",
    [
        ("Header\nand no number\n", " holds no sonnet: each must follow a line with its number"),
        ("Header\n\n1\n\n", " holds no sonnet: each must follow a line with its number"),
        ("Header\n\n1\n\nA line\n\n2\n\n", ": the sonnet at place 2 is empty (line 7 numbers it)"),
        ("Header\n\n1\n\n\n2\n\nA line\n\n3\n\nB line\n", ": the sonnet at place 1 is empty (line 3 numbers it)"),
        ("Header\n\n1\n\nA line\n\n2\n\n\n\n3\n\nB line\n", ": the sonnet at place 2 is empty (line 7 numbers it)"),
    ],
)
def test_a_sonnet_file_with_an_empty_sonnet_is_refused(tmp_path, text, message):
    path = tmp_path / "sonnets.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_sonnets(path)
    assert str(error.value) == f"{path}{message}"


def test_items_and_batches_of_sonnets(tokenizer):
    texts = ["yes, or no\nA", "a longer sonnet\nB\nC"]
    dataset = SonnetsDataset(texts, tokenizer)
    expected = [[*tokenizer.encode(text).ids, 8599] for text in texts]
    assert [dataset[i] for i in range(len(dataset))] == [(0, expected[0]), (1, expected[1])]
    assert dataset.lengths == [len(ids) for ids in expected]
    batch = dataset.collate_fn([dataset[1], dataset[0]])
    pads = len(expected[1]) - len(expected[0])
    assert batch["token_ids"].tolist() == [expected[1], expected[0] + [8599] * pads]
    # the text's own end is attended, so it gets loss; the pads, which have the same id, are not
    assert batch["attention_mask"].tolist() == [[1] * len(expected[1]), [1] * len(expected[0]) + [0] * pads]
    assert batch["sent_ids"] == [1, 0]


def test_a_sonnet_that_is_too_long_is_named(tokenizer):
    texts = ["abc", "first line\nsecond"]
    assert SonnetsDataset(texts, tokenizer, max_length=18).lengths == [4, 18]
    with pytest.raises(UserError) as error:
        SonnetsDataset(texts, tokenizer, max_length=17)
    assert str(error.value) == 'the sonnet "first line" has 18 tokens, the model takes 17: shorten it'


def test_real_sonnets(real_data):
    training = load_sonnets(real_data / "sonnets.txt")
    gold = load_sonnets(real_data / "TRUE_sonnets_held_out_dev.txt")
    prompts = load_sonnets(real_data / "sonnets_held_out.txt")
    assert (len(training), len(gold), len(prompts)) == (131, 12, 12)
    lines = [
        Counter(len([line for line in text.splitlines() if line.strip()]) for text in texts)
        for texts in (training, gold, prompts)
    ]
    assert lines == [{14: 129, 15: 1, 12: 1}, {14: 12}, {3: 12}]
    assert training[0].startswith("From fairest creatures we desire increase,\n")
    assert not any(re.search(r"\d", text) for text in training + gold + prompts)
    dev_prompts = load_sonnets(real_data / "sonnets_held_out_dev.txt")
    assert [text.splitlines() for text in dev_prompts] == [text.splitlines()[:3] for text in gold]


VERSES = "\n".join(f"A line of verse, the {name}," for name in ("first", "second", "third", "fourth", "fifth"))
STYLES = (
    "2",
    " 2 ",
    "2.",
    "(2)",
    "###2###",
    "# 2",
    "\u200b2",
    "2\ufeff",
    "Sonnet 2",
    "SONNET 2.",
    "No. 2",
    "II",
    "I.",
    "-- 2 --",
    "소네트 2",
    "소네트 제2번",
    "제 2 번",
    "[2번]",
)


@pytest.mark.parametrize("heading", [*STYLES, "Sonnet II"])
def test_headings_in_other_styles_are_headings(tmp_path, heading):
    path = tmp_path / "sonnets.txt"
    path.write_text(f"A header\n\n1\n\n{VERSES}\n\n{heading}\n\n{VERSES}\n", encoding="utf-8")
    assert load_sonnets(path) == [VERSES, VERSES]


NO_HEADINGS = ["O 1 am but two", "12 times the moon", "I am", "No, I will not", "mix", "a", "", "!"]


@pytest.mark.parametrize("line", [*NO_HEADINGS, "번", "2번 만나", "제비"])
def test_verses_are_no_headings(line):
    assert not is_heading(line)


def test_a_heading_that_is_not_seen_is_told_by_its_line(tmp_path):
    path = tmp_path / "sonnets.txt"
    path.write_text(f"A header\n\n1\n\n{VERSES}\n\nzwei\n\n" + 3 * f"{VERSES}\n", encoding="utf-8")
    with pytest.raises(UserError, match="the sonnet that begins at line 3 has 21 lines: is a heading in it no number"):
        load_sonnets(path)


def test_what_is_handed_in_is_read_back_as_it_was(tmp_path):
    """Lines that are numbers join the line before them, so that no reader of the format splits a sonnet there."""
    draw, path = random.Random(0), tmp_path / "out.txt"
    lines = ["a thing of beauty", "12", "XII", "### 3", "no, 7", "7", "is a joy,", "\u200b9"]
    for _ in range(200):
        texts = ["\n".join(["First", *draw.choices(lines, k=draw.randint(1, 13))]) for _ in range(draw.randint(1, 4))]
        path.write_text(format_sonnets(texts), encoding="utf-8")
        again = load_sonnets(path)
        assert [text.split() for text in again] == [text.split() for text in texts]
        by_the_courses_rule = re.split(r"\n\s*\d+\s*\n", path.read_text(encoding="utf-8"))
        assert len(by_the_courses_rule) == len(texts) + 1
