"""Reading, cleaning, prompts, token ids, batches and output files."""

import csv
import io
import itertools
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

from datasets import (
    LengthGroupedBatches,
    ParaphraseDetectionDataset,
    ParaphraseDetectionTestDataset,
    SonnetsDataset,
    load_paraphrase_data,
    load_sonnets,
    load_tokenizer,
    pad,
)
from datasets.paraphrase import preprocess_string
from errors import UserError
from files import check_writable, read_text, write_text

HEADER = "id\tsentence1\tsentence2\tis_duplicate\n"
PROMPT_END = '"? Answer "yes" or "no": '


def prompt_of(first, second):
    """The contract's template, typed again."""
    return 'Is "' + first + '" a paraphrase of "' + second + PROMPT_END


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    """One token a byte, but for "no", "ye" and "yes": lengths can be counted by hand."""
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def pairs_file(tmp_path):
    """pairs_file(text or bytes) -> the path of a file with just that."""

    def write(content):
        path = tmp_path / "pairs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


# --- cleaning ---------------------------------------------------------------------------------------------------------


def clean_by_loop(text):
    marked = "".join(f" {c}" if c in ".?,'" else c for c in text.lower())
    return re.sub(r"\s+", " ", marked).strip()


def test_cleaning_is_the_courses_rule():
    assert preprocess_string("  What's  up, Doc?\tNo.") == "what 's up , doc ? no ."
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("aBÉ.?,'! \t\n\u00a0\"-{}0", k=draw.randrange(30)))
        assert preprocess_string(text) == clean_by_loop(text)


# --- loading of pairs -------------------------------------------------------------------------------------------------


RECORDS = [  # as the course gives them
    ("AB12 ", "What is it?", "Say what it is.", "0.0"),
    (" 7f EC", 'Is "this" a quote', "Tab\there,\nnew line there", "1.0"),
    ("d4", "  Who's  who ", "Él", "1"),
    ("e5", "{first}", '"', "0"),
]
CLEANED = [  # and as they come back
    ("what is it ?", "say what it is .", 0, "ab12"),
    ('is "this" a quote', "tab here , new line there", 1, "7f ec"),
    ("who 's who", "él", 1, "d4"),
    ("{first}", '"', 0, "e5"),
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("byte_order_mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("index_column", [False, True])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_pairs_load_from_every_layout(pairs_file, line_end, byte_order_mark, index_column, split):
    table = [["", "id", "sentence1", "sentence2", "is_duplicate"]]
    table += [[str(100 - index), *record] for index, record in enumerate(RECORDS)]
    columns = slice(0 if index_column else 1, 4 if split == "test" else 5)
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator=line_end).writerows(row[columns] for row in table)
    assert '"Is ""this"" a quote"' in text.getvalue() and "\nnew line there" in text.getvalue()
    rows = load_paraphrase_data(pairs_file(byte_order_mark + text.getvalue().encode()), split)
    assert rows == ([(*row[:2], row[3]) for row in CLEANED] if split == "test" else CLEANED)


def test_columns_are_found_by_name_in_any_order(pairs_file):
    rows = load_paraphrase_data(pairs_file("is_duplicate\tsentence2\tmore\tid\tsentence1\n1.0\tb\tx\tc\ta\n"))
    assert rows == [("a", "b", 1, "c")]


FIRST_QUESTIONS = {"a": "a", '"a\nb"': "a b", '"a\n\n""b"""': 'a "b"', "": ""}  # as written, as read


def random_table(draw, blank_lines):
    """(text, expected rows, lines of the malformed rows), the lines counted while the text is written."""
    text, rows, malformed = HEADER, [], []
    for number in range(40):
        if blank_lines and draw.random() < 0.2:
            text += "\n"
        first, label = draw.choice(list(FIRST_QUESTIONS)), draw.choice([0, 1])
        fields = [f"ID{number}", first, "c", f"{label}.0"]
        if draw.random() < 0.5:
            rows.append((FIRST_QUESTIONS[first], "c", label, f"id{number}"))
        else:
            cut = draw.choice([1, 2, 3])
            fields[cut:] = draw.choice([[], [""] * (4 - cut)])  # the line ends early, or only empty fields are left
            malformed.append(text.count("\n") + 1)
        text += "\t".join(fields) + "\n"
    return text, rows, malformed


@pytest.mark.parametrize("blank_lines", [False, True])
def test_malformed_rows_are_left_out_and_reported_with_their_lines(pairs_file, capsys, blank_lines):
    for seed in range(10):
        text, rows, malformed = random_table(random.Random(seed), blank_lines)
        path = pairs_file(text)
        assert load_paraphrase_data(path) == rows
        duplicates = sum(row[2] for row in rows)
        shown = ", ".join(map(str, malformed[:5]))
        assert len(malformed) > 5
        assert capsys.readouterr().out == (
            f"{path}: {len(rows)} pairs, {duplicates} of them paraphrases\n"
            f"{path}: {len(malformed)} malformed rows left out (lines {shown}, ...)\n"
        )


def test_all_lines_are_named_where_they_are_few(pairs_file, capsys):
    good = "{}\ta\tb\t1.0\n"
    path = pairs_file(HEADER + "x\ta\n" + good.format(1) + "\ta\tb\t1.0\n" + good.format(2) + "z\ta\tb\t\n")
    assert [row[3] for row in load_paraphrase_data(path, "dev")] == ["1", "2"]
    assert "3 malformed rows left out (lines 2, 4, 6)\n" in capsys.readouterr().out


def test_malformed_rows_of_the_test_file_are_answered_all_the_same(pairs_file, capsys):
    path = pairs_file("id\tsentence1\tsentence2\nA\tone\ttwo\nB\tone\nC\nD\tone\t\n")
    rows = load_paraphrase_data(path, split="test")
    assert rows == [("one", "two", "a"), ("one", "", "b"), ("", "", "c"), ("one", "", "d")]
    out = capsys.readouterr().out
    assert out == f"{path}: 4 pairs\n{path}: 2 malformed rows answered with what they have (lines 3, 4)\n"


TOO_LONG_FOR_CSV = "a\tb\tc\t0.0\n" + 'x\t"an unclosed quote\tc\t0.0\n' + "y\tb\tc\t0.0\n" * 20_000


@pytest.mark.parametrize(
    "content, message",
    [
        (None, " does not exist: check the path, or put the course's file there"),
        ("folder", " is a folder: give the file itself"),
        (b"", " is empty: put the data there first"),
        (b"\xef\xbb\xbf \r\n\n", " is empty: put the data there first"),
        (HEADER.encode() + b"a\tb\xff", " is not UTF-8 text (byte 39): save it as UTF-8"),
        (
            "\tid\tsentence1\tis_duplicate\n0\ta\tb\t1\n",
            " has no column sentence2 (found: (unnamed), id, sentence1, is_duplicate): "
            "it must be tab-separated with a header line",
        ),
        (
            HEADER.replace("\t", ",") + "a,b,c,0.0\n",
            " has no column id (found: id,sentence1,sentence2,is_duplicate): "
            "it must be tab-separated with a header line",
        ),
        (HEADER, " has no usable row (0 malformed): check that it is tab-separated"),
        (HEADER + "a\tb\nc,d,e,0.0\n", " has no usable row (2 malformed): check that it is tab-separated"),
        (HEADER + 'a\t"b\nb"\tc\t1.0\nd\te\tf\t2.0\n', ", line 4: is_duplicate is '2.0', it must be 0 or 1"),
        (HEADER + "a\tb\tc\tyes\n", ", line 2: is_duplicate is 'yes', it must be 0 or 1"),
        (HEADER + "a\tb\tc\tnan\n", ", line 2: is_duplicate is 'nan', it must be 0 or 1"),
        (
            HEADER + 'A\t"b\n\n"\tc\t1.0\nx\tb\tc\t0\n a \td\te\t0.0\n',
            ": id a is on line 2 and again on line 6",
        ),
    ],
)
def test_a_wrong_file_is_one_exact_message(pairs_file, tmp_path, content, message):
    path = tmp_path / "pairs.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        pairs_file(content)
    with pytest.raises(UserError) as error:
        load_paraphrase_data(path)
    assert str(error.value) == f"{path}{message}"


def test_lines_are_right_after_blank_ones(pairs_file):
    with pytest.raises(UserError, match="line 4: is_duplicate is '7'"):
        load_paraphrase_data(pairs_file(HEADER + "a\tb\tc\t1\n\nd\tb\tc\t7\n"))
    with pytest.raises(UserError, match="id a is on line 3 and again on line 6"):
        load_paraphrase_data(pairs_file(HEADER + "\na\tb\tc\t1\n\n\na\tb\tc\t0\n"))


def test_duplicate_ids_and_missing_columns_of_the_test_file(pairs_file):
    with pytest.raises(UserError, match="id q is on line 2 and again on line 3"):
        load_paraphrase_data(pairs_file("id\tsentence1\tsentence2\nq\ta\tb\nQ\tc\n"), "test")
    with pytest.raises(UserError, match="has no column is_duplicate"):
        load_paraphrase_data(pairs_file("id\tsentence1\tsentence2\nq\ta\tb\n"), "dev")


def test_a_quote_that_never_closes_is_a_user_error(pairs_file):
    """Python's csv reader gives up at a field of 131,072 characters: that must not be a traceback."""
    path = pairs_file(HEADER + TOO_LONG_FOR_CSV)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_paraphrase_data(path)


def test_a_path_that_goes_through_a_file_is_a_user_error(pairs_file):
    path = pairs_file("text") / "quora.csv"
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_text(path)


# --- the prompt and the datasets --------------------------------------------------------------------------------------


def text_of(dataset, tokenizer, row=0):
    return tokenizer.decode(dataset[row]["token_ids"].tolist(), skip_special_tokens=False)


def test_one_exact_prompt_for_all_splits(pairs_file, tokenizer):
    texts = {}
    for split, dataset_class in [
        ("train", ParaphraseDetectionDataset),
        ("dev", ParaphraseDetectionDataset),
        ("test", ParaphraseDetectionTestDataset),
    ]:
        header, label = (HEADER, "\t1.0") if split != "test" else ("id\tsentence1\tsentence2\n", "")
        rows = load_paraphrase_data(
            pairs_file(f"{header}a\tWhat's {{first}}, yes?\tÉl {{second}} {{0}}{label}\n"), split
        )
        dataset = dataset_class(rows, tokenizer)
        texts[split] = text_of(dataset, tokenizer)
        assert tokenizer.encode(texts[split]).ids == dataset[0]["token_ids"].tolist()
        assert dataset.num_shortened == 0
    expected = 'Is "what \'s {first} , yes ?" a paraphrase of "él {second} {0}"? Answer "yes" or "no": '
    assert texts == dict.fromkeys(("train", "dev", "test"), expected)


TEMPLATE_LENGTH = len(prompt_of("", "")) - 3  # one token a character, but "yes" has one for three and "no" one for two
QUESTIONS = [("abcdefghijkl", "opqrst"), ("opqrst", "abcdefghijkl"), ("abcdefgh", "opqrstuv"), ("abcdefgh", "")]


@pytest.mark.parametrize("first, second", QUESTIONS)
def test_too_long_pairs_lose_the_ends_of_their_questions_the_longer_first(tokenizer, first, second):
    whole = TEMPLATE_LENGTH + len(first) + len(second)
    for max_length in range(TEMPLATE_LENGTH + 1, whole + 3):
        kept = [first, second]
        while TEMPLATE_LENGTH + len(kept[0]) + len(kept[1]) > max_length:
            longer = 0 if len(kept[0]) >= len(kept[1]) else 1
            kept[longer] = kept[longer][:-1]
        dataset = ParaphraseDetectionTestDataset([("a", "", "short"), (first, second, "long")], tokenizer, max_length)
        assert [text_of(dataset, tokenizer, row) for row in (0, 1)] == [prompt_of("a", ""), prompt_of(*kept)]
        assert dataset.lengths == [TEMPLATE_LENGTH + 1, min(whole, max_length)]
        assert dataset.num_shortened == (whole > max_length)


def test_a_prompt_that_just_fits_without_its_questions_is_not_refused(tokenizer):
    rows = [("abc", "def", "id")]
    with pytest.raises(UserError, match=f"the prompt alone does not fit into {TEMPLATE_LENGTH - 1} tokens"):
        ParaphraseDetectionTestDataset(rows, tokenizer, TEMPLATE_LENGTH - 1)
    dataset = ParaphraseDetectionTestDataset(rows, tokenizer, TEMPLATE_LENGTH)
    assert text_of(dataset, tokenizer) == prompt_of("", "")


def test_letters_of_several_tokens_are_shortened_too(tokenizer):
    """A letter cut in two decodes to a replacement character, which has more bytes than it had."""
    for max_length in range(TEMPLATE_LENGTH + 4, TEMPLATE_LENGTH + 24):
        dataset = ParaphraseDetectionTestDataset([("é" * 20, "日本語 " * 5, "id")], tokenizer, max_length)
        assert dataset.lengths[0] <= max_length
        assert text_of(dataset, tokenizer).startswith('Is "') and text_of(dataset, tokenizer).endswith(PROMPT_END)


@pytest.mark.parametrize("word, token_id", [("no", 3919), ("yes", 8505)])
def test_a_tokenizer_with_other_answer_tokens_is_refused(tokenizer_folder, tmp_path, word, token_id):
    vocabulary = json.loads((tokenizer_folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary[word], vocabulary["<unused5000>"] = 5000, token_id
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_bytes((tokenizer_folder / "merges.txt").read_bytes())
    with pytest.raises(UserError) as error:
        ParaphraseDetectionDataset([("a", "b", 1, "id")], load_tokenizer(tmp_path))
    message = f'the tokenizer has no token "{word}" with id {token_id}: use one that shares GPT-2\'s'
    assert str(error.value) == message


def test_items_and_batches_of_pairs(tokenizer):
    rows = [("a", "bc", 1, "i d"), ("a" * 20, "b" * 9, 0, "x"), ("", "b", 1, "y")]
    dataset = ParaphraseDetectionDataset(rows, tokenizer)
    expected = [tokenizer.encode(prompt_of(*row[:2])).ids for row in rows]
    assert len(dataset) == 3 and dataset.labels == [1, 0, 1] and dataset.ids == ["i d", "x", "y"]
    assert dataset.lengths == [len(ids) for ids in expected]
    for item, ids, row in zip((dataset[i] for i in range(3)), expected, rows, strict=True):
        assert (item["token_ids"].tolist(), item["label"], item["id"]) == (ids, row[2], row[3])

    batch = dataset.collate_fn([dataset[2], dataset[1], dataset[0]])
    assert batch.keys() == {"token_ids", "attention_mask", "labels", "sent_ids"}
    assert batch["sent_ids"] == ["y", "x", "i d"] and batch["labels"].tolist() == [1, 0, 1]
    assert {batch[name].dtype for name in ("token_ids", "attention_mask", "labels")} == {torch.long}
    width = len(expected[1])
    assert batch["token_ids"].tolist() == [ids + [8599] * (width - len(ids)) for ids in reversed(expected)]
    assert batch["attention_mask"].tolist() == [[1] * len(ids) + [0] * (width - len(ids)) for ids in reversed(expected)]

    test = ParaphraseDetectionTestDataset([(*row[:2], row[3]) for row in rows], tokenizer)
    answerless = test.collate_fn([test[2], test[1], test[0]])
    assert answerless.keys() == {"token_ids", "attention_mask", "sent_ids"}
    assert torch.equal(answerless["token_ids"], batch["token_ids"]) and answerless["sent_ids"] == batch["sent_ids"]


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


# --- sonnets ----------------------------------------------------------------------------------------------------------


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
        ("Header\n\n1\n\nA line\n\n2\n\n", ": the sonnet at place 2 is empty"),
        ("Header\n\n1\n\n\n2\n\nA line\n\n3\n\nB line\n", ": the sonnet at place 1 is empty"),
        ("Header\n\n1\n\nA line\n\n2\n\n\n\n3\n\nB line\n", ": the sonnet at place 2 is empty"),
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


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_a_tokenizer_json_is_read_without_its_padding_and_truncation(tokenizer, tokenizer_folder, tmp_path):
    other = load_tokenizer(tokenizer_folder)
    other.enable_truncation(3)
    other.enable_padding(length=99)
    other.save(str(tmp_path / "tokenizer.json"))
    text = "yes and no, élan<|endoftext|>"
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(text).ids == tokenizer.encode(text).ids and loaded.encode(text).ids[-1] == 8599
    assert loaded.decode(loaded.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"),
        ("{", r"cannot be read \(.*\): download the model again"),
        (json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}), "has no token <|endoft"),
    ],
)
def test_a_wrong_tokenizer_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words.replace("|", r"\|")):
        load_tokenizer(tmp_path)


# --- batches ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 8, 9, 61, 100])
def test_training_batches_are_shared_out_evenly(count, world):
    lengths, size = random_lengths(count), 4
    alone = list(LengthGroupedBatches(Rows(lengths), size, True, 7).epoch(2))
    ranks = [LengthGroupedBatches(Rows(lengths), size, True, 7, rank, world) for rank in range(world)]
    drawn = [list(rank.epoch(2)) for rank in ranks]
    assert [len(batches) for batches in drawn] == [len(rank) for rank in ranks] == [-(-len(alone) // world)] * world
    everywhere = Counter(tuple(rows) for batches in drawn for rows in batches)
    assert everywhere.keys() == {tuple(rows) for rows in alone}  # the very batches of one process
    if len(alone) >= world:
        assert sum(everywhere.values()) - len(alone) < world and max(everywhere.values()) <= 2


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 8, 9, 61, 100])
def test_evaluation_rows_go_to_exactly_one_process(count, world):
    ranks = [LengthGroupedBatches(Rows(random_lengths(count)), 4, rank=rank, world=world) for rank in range(world)]
    drawn = [list(rank.epoch(0)) for rank in ranks]
    assert [len(batches) for batches in drawn] == [len(rank) for rank in ranks]
    assert sorted(row for batches in drawn for rows in batches for row in rows) == list(range(count))


# --- output files -----------------------------------------------------------------------------------------------------


def test_write_text_makes_the_folder_and_writes_utf_8_with_plain_line_ends(tmp_path):
    path = tmp_path / "a" / "b" / "out.txt"
    write_text(path, "é\nline\n")
    assert path.read_bytes() == b"\xc3\xa9\nline\n"
    write_text(str(path), "again")
    assert path.read_bytes() == b"again" and os.listdir(path.parent) == ["out.txt"]


@pytest.mark.parametrize("failing", ["write", "rename"])
@pytest.mark.parametrize("existing", [True, False])
def test_write_text_writes_whole_or_not_at_all(tmp_path, monkeypatch, failing, existing):
    path = tmp_path / "out.txt"
    if existing:
        path.write_text("old")

    def no_room(handle):
        raise OSError(28, "No space left on device")

    def no_rename(source, target):
        assert Path(source).read_text() == "a new text" and Path(target) == path
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(os, "fsync", no_room)
    else:
        monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(UserError) as error:
        write_text(path, "a new text")
    assert str(error.value) == (f"cannot write {path} (No space left on device): make room, or choose another place")
    assert os.listdir(tmp_path) == (["out.txt"] if existing else [])
    assert not existing or path.read_text() == "old"


@pytest.mark.parametrize("name", ["a_file/out.txt", "a_folder"])
def test_write_text_where_nothing_can_be_written_is_a_user_error(tmp_path, name):
    (tmp_path / "a_file").write_text("old")
    (tmp_path / "a_folder").mkdir()
    with pytest.raises(UserError, match=f"cannot write {re.escape(str(tmp_path / name))} "):
        write_text(tmp_path / name, "new")
    assert sorted(os.listdir(tmp_path)) == ["a_file", "a_folder"] and (tmp_path / "a_file").read_text() == "old"


def test_check_writable_says_so_before_the_work_and_makes_nothing(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("old")
    check_writable(tmp_path / "new" / "folder" / "out.txt")
    check_writable(tmp_path / "a_file")
    monkeypatch.chdir(tmp_path)
    check_writable("predictions/out.txt")
    assert os.listdir(tmp_path) == ["a_file"]

    with pytest.raises(UserError) as error:
        check_writable(tmp_path)
    assert str(error.value) == f"{tmp_path} is a folder: give the name of a file to write"
    refusals = [(tmp_path / "a_file" / "out.txt", tmp_path / "a_file"), (tmp_path / "new" / "out.txt", tmp_path)]
    for path, culprit in refusals:
        if culprit == tmp_path:  # root may write everywhere, so ask for the answer that another user would get
            monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
        with pytest.raises(UserError) as error:
            check_writable(path)
        assert str(error.value) == (
            f"cannot write {path}: {culprit} is not a folder that you may write to; choose another place"
        )


# --- the course's real files ------------------------------------------------------------------------------------------


def test_real_pairs(real_data, capsys):
    path = real_data / "quora-train.csv"
    raw = [line.rstrip("\r").split("\t") for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]
    cut_short = [number for number, fields in enumerate(raw, start=1) if len(fields) < 5 or not fields[4]]
    labels = Counter(fields[4] for fields in raw if len(fields) == 5)
    assert len(cut_short) == 2
    rows = load_paraphrase_data(path)
    assert len(rows) == 14_212 and sum(row[2] for row in rows) == labels["1.0"]
    assert "2 malformed rows left out (lines {}, {})".format(*cut_short) in capsys.readouterr().out
    for name, split in (("quora-dev.csv", "dev"), ("quora-test-student.csv", "test")):
        rows = load_paraphrase_data(real_data / name, split)
        assert len(rows) == 2000 == len({row[-1] for row in rows})
    assert "malformed" not in capsys.readouterr().out


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


def test_real_vocabulary_encodes_as_transformers_does(real_data):
    folder = real_data / "gpt2-vocab"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("yes").ids == [8505] and tokenizer.encode("no").ids == [3919]
    assert tokenizer.token_to_id("<|endoftext|>") == 50256 and tokenizer.get_vocab_size() == 50257
    oracle = transformers.GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    sonnets = [
        text
        for name in ("sonnets.txt", "TRUE_sonnets_held_out_dev.txt", "sonnets_held_out.txt")
        for text in load_sonnets(real_data / name)
    ]
    ids = SonnetsDataset(sonnets, tokenizer).rows
    assert ids == [[*row, 50256] for row in oracle(sonnets).input_ids]
    assert [tokenizer.decode(row[:-1]) for row in ids] == sonnets

    pairs = load_paraphrase_data(real_data / "quora-dev.csv", "dev")[:200]
    expected = oracle([prompt_of(*pair[:2]) for pair in pairs]).input_ids
    dataset = ParaphraseDetectionDataset(pairs, tokenizer)
    assert [row.tolist() for row in dataset.token_ids] == expected

    shortened = ParaphraseDetectionDataset(pairs, tokenizer, max_length=30)
    assert shortened.num_shortened == sum(len(row) > 30 for row in expected) > 100
    end = oracle(PROMPT_END).input_ids
    for row, whole in zip(shortened.token_ids, expected, strict=True):
        assert len(row) <= 30 and oracle.decode(row.tolist()).endswith(PROMPT_END)
        assert row[-9:].tolist() == whole[-9:] == end[-9:]
