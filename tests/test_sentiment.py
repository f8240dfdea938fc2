"""Reviews against the course's rules: loading (the hard cases of tables: tests/test_paraphrase.py), batches."""

import csv
import io

import pytest
import torch

from config import CLASSES
from datasets import SentimentDataset, SentimentTestDataset, load_sentiment_data
from errors import UserError

HEADER = "\tid\tsentence\tsentiment\n"
TEST_HEADER = "0\t\tid\tsentence\n"


@pytest.fixture
def reviews_file(tmp_path):
    """reviews_file(text or bytes) -> the path of a file with just that."""

    def write(content):
        path = tmp_path / "reviews.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


RECORDS = [  # as the course gives them
    ("AB12 ", " It 's a lovely Film , with Élan . ", "4"),
    ("7f EC", ' " """ Slow " paced', "0"),
    ("d4", "tab\there,\nnew line there", "2.0"),
    ("e5", '"', "1"),
]
CLEANED = [  # and as they come back
    ("it 's a lovely film , with élan .", 4, "ab12"),
    ('" """ slow " paced', 0, "7f ec"),
    ("tab here, new line there", 2, "d4"),
    ('"', 1, "e5"),
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("byte_order_mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_reviews_load_from_the_courses_layouts(reviews_file, line_end, byte_order_mark, split):
    if split == "test":
        table = [["0", "", "id", "sentence"], *([str(n + 1), f"{n}.0", *row[:2]] for n, row in enumerate(RECORDS))]
    else:
        table = [["", "id", "sentence", "sentiment"], *([str(n), *row] for n, row in enumerate(RECORDS))]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator=line_end).writerows(table)
    rows = load_sentiment_data(reviews_file(byte_order_mark + text.getvalue().encode()), 5, split)
    assert rows == ([(row[0], row[2]) for row in CLEANED] if split == "test" else CLEANED)


def test_what_was_read_is_told(reviews_file, capsys):
    path = reviews_file(HEADER + "0\ta\tone\t1\n1\tb\ttwo\n2\tc\tthree\t4\n3\td\ta\ttab\t0\n4\te\t\t1\n")
    assert load_sentiment_data(path, 5) == [("one", 1, "a"), ("three", 4, "c"), ("", 1, "e")]
    assert capsys.readouterr().out == (
        f"{path}: 3 reviews, 0 / 2 / 0 / 0 / 1 of class 0 to 4\n{path}: 2 malformed rows left out (lines 3, 5)\n"
    )


def test_every_id_of_the_test_file_is_there(reviews_file, capsys):
    path = reviews_file(TEST_HEADER + "1\t0.0\tA\tone\n2\t1.0\tB\n3\t2.0\tC\t\n4\t3.0\tD\ta\ttab\n")
    assert load_sentiment_data(path, 2, "test") == [("one", "a"), ("", "b"), ("", "c"), ("a", "d")]
    assert capsys.readouterr().out == (
        f"{path}: 4 reviews\n{path}: 2 malformed rows answered with what they have (lines 3, 5)\n"
    )


@pytest.mark.parametrize(
    "content, classes, message",
    [
        (None, 5, " does not exist: check the path"),
        ("", 5, " is empty: put the data there first"),
        (HEADER + "0\ta\tb\t5\n", 5, ", line 2: sentiment is '5', it must be 0, 1, 2, 3 or 4"),
        (HEADER + "0\ta\tb\t1\n1\tc\td\t2\n", 2, ", line 3: sentiment is '2', it must be 0 or 1"),
        (HEADER + "0\ta\tb\t-1\n", 5, ", line 2: sentiment is '-1', it must be 0, 1, 2, 3 or 4"),
        (HEADER + "0\ta\tb\t1.5\n", 5, ", line 2: sentiment is '1.5', it must be 0, 1, 2, 3 or 4"),
        (HEADER + "0\ta\tb\tgood\n", 2, ", line 2: sentiment is 'good', it must be 0 or 1"),
        (HEADER + "0\ta\tb\t1\n1\tA\tc\t0\n", 2, ": id a is on line 2 and again on line 3"),
        (HEADER + "0\ta\tb\n", 2, " has no usable row (1 malformed): check that it is tab-separated"),
        (
            TEST_HEADER + "1\t0.0\ta\tb\n",
            5,
            " has no column sentiment (found: 0, (unnamed), id, sentence): it must be tab-separated with a header line",
        ),
    ],
)
def test_a_wrong_file_is_one_exact_message(reviews_file, tmp_path, content, classes, message):
    path = tmp_path / "reviews.csv"
    if content is not None:
        reviews_file(content)
    with pytest.raises(UserError) as error:
        load_sentiment_data(path, classes, "dev")
    assert str(error.value) == f"{path}{message}"


def test_long_reviews_keep_their_end_and_empty_ones_are_a_token(tokenizer):
    rows = [("abcdefgh", "x"), ("ab", "y"), ("", "z")]
    dataset = SentimentTestDataset(rows, tokenizer, max_length=5)
    kept = [tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in dataset.token_ids]
    assert kept == ["defgh", "ab", "<|endoftext|>"] and dataset.lengths == [5, 2, 1] and dataset.num_shortened == 1


def test_items_and_batches_of_reviews(tokenizer):
    rows = [("abc", 3, "i d"), ("abcdef", 0, "x")]
    dataset = SentimentDataset(rows, tokenizer)
    batch = dataset.collate_fn([dataset[1], dataset[0]])
    short, long = (tokenizer.encode(row[0]).ids for row in rows)
    assert batch["token_ids"].tolist() == [long, [*short, 8599, 8599, 8599]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [0, 3] and batch["labels"].dtype == torch.long
    assert batch["sents"] == ["abcdef", "abc"] and batch["sent_ids"] == ["x", "i d"] and "vectors" not in batch
    dataset.vectors = torch.arange(4.0).view(2, 2)
    assert dataset.collate_fn([dataset[1], dataset[0]])["vectors"].tolist() == [[2, 3], [0, 1]]
    test = SentimentTestDataset([(row[0], row[2]) for row in rows], tokenizer)
    assert test.collate_fn([test[0]]).keys() == {"token_ids", "attention_mask", "sents", "sent_ids"}


@pytest.mark.parametrize("name, sizes", [("sst", (8544, 1101, 2210)), ("cfimdb", (1707, 245, 488))])
def test_real_reviews_are_what_pythons_csv_reads(real_data, capsys, name, sizes):
    for split, file, size in zip(("train", "dev", "test"), ("train", "dev", "test-student"), sizes, strict=True):
        path = real_data / f"ids-{name}-{file}.csv"
        with open(path, encoding="utf-8", newline="") as text:
            records = list(csv.DictReader(text, delimiter="\t"))
        expected = [
            (" ".join(r["sentence"].lower().split()), *([] if split == "test" else [int(r["sentiment"])]), r["id"])
            for r in records
        ]
        assert load_sentiment_data(path, CLASSES[name], split) == expected and len(expected) == size
    assert "malformed" not in capsys.readouterr().out
