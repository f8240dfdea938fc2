"""Question pairs against the course's rules: cleaning, loading, prompts, batches."""

import csv
import io
import json
import random
import re
import time
from collections import Counter

import pytest
import torch

from datasets import (
    ParaphraseDetectionDataset,
    ParaphraseDetectionTestDataset,
    load_paraphrase_data,
    load_tokenizer,
)
from datasets.paraphrase import preprocess_string
from errors import UserError
from files import read_text
from tests.helpers import PROMPT_END, prompt_of

HEADER = "id\tsentence1\tsentence2\tis_duplicate\n"


@pytest.fixture
def pairs_file(tmp_path):
    """pairs_file(text or bytes) -> the path of a file with just that."""

    def write(content):
        path = tmp_path / "pairs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def clean_by_loop(text):
    marked = "".join(f" {c}" if c in ".?,'" else c for c in text.lower())
    return re.sub(r"\s+", " ", marked).strip()


def test_cleaning_is_the_courses_rule():
    assert preprocess_string("  What's  up, Doc?\tNo.") == "what 's up , doc ? no ."
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("aBÉ.?,'! \t\n\u00a0\"-{}0", k=draw.randrange(30)))
        assert preprocess_string(text) == clean_by_loop(text)


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


@pytest.mark.parametrize(
    "content, message",
    [
        (None, " does not exist: check the path"),
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


MARKS = [("", ""), ('"', ""), ("", ""), ('"', '"'), ("", '"'), ('""', ""), ('"', ""), ("~", '"x')]


def test_a_quotation_mark_that_is_never_closed_is_what_somebody_wrote(pairs_file, capsys):
    """Every row is there, whatever its marks; python's csv reader would swallow the rows up to the next one."""
    rows = [f"id{n}\t{mark}what is {n} ?\tand{end} {n} ?\t0.0" for n, (mark, end) in enumerate(MARKS)]
    found = load_paraphrase_data(pairs_file(HEADER + "\n".join(rows) + "\n"))
    assert [row[3] for row in found] == [f"id{n}" for n in range(len(MARKS))]
    assert [row[0] for row in found] == [f"{mark}what is {n} ?" for n, (mark, _) in enumerate(MARKS)]
    assert "malformed" not in capsys.readouterr().out


def test_a_quoted_field_may_hold_tabs_line_breaks_and_doubled_marks(pairs_file):
    text = HEADER + 'a\t"one\ttwo ?"\t"three\n\nfour ""five"""\t1\nb\tx\ty\t0\n'
    first, second = load_paraphrase_data(pairs_file(text))
    assert first == ("one two ?", 'three four "five"', 1, "a") and second == ("x", "y", 0, "b")


def test_a_tab_inside_a_question_never_shifts_the_label(pairs_file, capsys):
    """Five fields where the header has four: which tab is the extra one nobody knows."""
    rows = "a\tone\ttwo\t1\nb\tthis\tis 1\t0\t1\nc\tthree\tfour\t0\n"
    assert [row[3] for row in load_paraphrase_data(pairs_file(HEADER + rows))] == ["a", "c"]
    assert "1 malformed rows left out (lines 3)" in capsys.readouterr().out


def test_an_endless_question_is_cut_at_once(tokenizer):
    """60,000 signs of several tokens each: linear, where it took 43 seconds."""
    started = time.perf_counter()
    dataset = ParaphraseDetectionDataset([("🙂" * 60_000, "short ?", 0, "a")], tokenizer, 256)
    assert time.perf_counter() - started < 10 and len(dataset[0]["token_ids"]) <= 256
    assert text_of(dataset, tokenizer).endswith(PROMPT_END)


def test_a_path_that_goes_through_a_file_is_a_user_error(pairs_file):
    path = pairs_file("text") / "quora.csv"
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_text(path)


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


@pytest.mark.parametrize("max_length", [1024, TEMPLATE_LENGTH + 9])
@pytest.mark.parametrize(
    "first, second", [*QUESTIONS, ("", ""), ("?", "?"), ("a b ?", 'c "d" ?'), ("d\u00e9j\u00e0", "\u65e5\u672c ?")]
)
def test_token_types_say_whose_token_it_is(mini_tokenizer, tokenizer, first, second, max_length):
    """A letter's question is found again, whatever marks beside it its token takes in."""
    for one in (tokenizer, mini_tokenizer):
        dataset = ParaphraseDetectionTestDataset([(first, second, "id")], one, max_length, token_types=True)
        batch = dataset.collate_fn([dataset[0]])
        ids, types = batch["token_ids"][0], batch["token_type_ids"][0]
        assert len(ids) == len(types) and types.dtype == torch.long
        seen = [one.decode(ids[types == text].tolist()).strip(' "') for text in (1, 2)]
        whole = [text.strip(' "') for text in (first, second)]
        assert seen == whole if max_length == 1024 else all(a.startswith(b) for a, b in zip(whole, seen, strict=True))
    assert "token_type_ids" not in ParaphraseDetectionTestDataset([(first, second, "id")], tokenizer)[0]


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
