"""What data files can be like: no row or sonnet disappears, splits or shifts without a word.

Each test builds a kind of fault and knows the right outcome: what was meant, or a line that names the place.
"""

import json
import random
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from config import ANSWERS
from datasets import ParaphraseDetectionDataset, eda, load_paraphrase_data, load_sonnets
from datasets import corpus as corpus_module
from datasets.back_translation import TranslationCache
from datasets.corpus import Corpus, TokenFile, prepare_corpus
from datasets.paraphrase import PROMPT
from datasets.sonnets import check_unfinished, format_sonnets, is_heading, verses, warn_of_known
from datasets.tsv import format_answers
from decoding.template import load_templates
from decoding.writer import tidy
from errors import UserError
from files import read_blocks
from tests.helpers import CONTEXT, VOCAB
from tests.inputs import sonnet

ROOT = Path(__file__).resolve().parents[1]
LABELLED, UNLABELLED = "id\tsentence1\tsentence2\tis_duplicate\n", "id\tsentence1\tsentence2\n"


def refusal(read, *arguments):
    """The text of the UserError of a call: one line."""
    with pytest.raises(UserError) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def file(tmp_path):
    """file(text) -> the path of a file that holds it."""

    def write(text, name="data"):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return tmp_path / name

    return write


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "read"),
    [
        ('"never closed', "b", ('"never closed', "b")),
        ("a", '"never closed', ("a", '"never closed')),
        ('"a', 'b"', ('"a', 'b"')),  # quoted it would be one field: too few
        ('in the "middle" of it', 'b "', ('in the "middle" of it', 'b "')),
        ('"all of it"', "b", ("all of it", "b")),
        ('"a ""quoted"" word"', '"b', ('a "quoted" word', '"b')),
        ('"closed" too early', '"b ""c"""', ('"closed" too early', 'b "c"')),
        ('"', '""', ('"', "")),
        ('"a\tb"', "c", ("a b", "c")),
        ('"a\nb\r\n\nc"', '"\t"', ("a b c", "")),
        ("nul \0 and \u2028 \x0c \x85 marks", "b", ("nul \0 and marks", "b")),
        ('"' + "long " * 50_000, "b", ('"' + "long " * 49_999 + "long", "b")),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_question_is_read_as_it_was_meant(file, first, second, read, line_end):
    rows = [("x", "before", "after", "0"), ("y", first, second, "1.0"), ("z", "why", "who", "0.0")]
    text = LABELLED + "\n".join(map("\t".join, rows))
    found = load_paraphrase_data(file(text.replace("\r\n", "\n").replace("\n", line_end)))
    assert found == [("before", "after", 0, "x"), (*read, 1, "y"), ("why", "who", 0, "z")]


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_between_two_stray_marks_are_never_swallowed(file, split):
    """Both readings are sound csv, with one row or with five: nobody can know."""
    end = "\tb\t1\n" if split == "train" else "\tb\n"
    marked = {2: '"question 2', 6: 'question 6"'}
    rows = "".join(f"r{n}\t{marked.get(n, 'question')}{end}" for n in range(9))
    message = refusal(load_paraphrase_data, file((LABELLED if split == "train" else UNLABELLED) + rows), split)
    assert re.search("line 4: a quotation mark opens a field here that takes in the row of line 5: ", message)


def test_every_id_of_a_test_file_is_answered_or_the_file_refused(file, capsys):
    path = file(UNLABELLED + "a\tone\ttwo\tthree\nb\tone\nc\n")
    assert [row[-1] for row in load_paraphrase_data(path, "test")] == ["a", "b", "c"]
    assert "3 malformed rows answered with what they have (lines 2, 3, 4)" in capsys.readouterr().out
    behind = file("sentence1\tsentence2\tid\none\ttwo\ta\none\ttwo\tthree\tb\n")
    assert "line 3: there are not 3 fields, so that its id is not certain" in refusal(
        load_paraphrase_data, behind, "test"
    )
    over_lines = file(UNLABELLED + 'a\t"one\ntwo"\nb\tx\ty\n')
    assert "line 2: there are not 3 fields" in refusal(load_paraphrase_data, over_lines, "test")


def test_rows_of_tabs_alone_are_reported(file, capsys):
    assert len(load_paraphrase_data(file(LABELLED + "a\tb\tc\t1\n\t\t\t\n\n"))) == 1
    assert "1 malformed rows left out (lines 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tid\tsentence1\tsentence2\nx\ty\ta\tb\n", "has 2 columns named id"),
        ("id\tsentence1\tsentence1\tsentence2\nx\ty\ta\tb\n", "has 2 columns named sentence1"),
        (UNLABELLED + "a,b\tx\ty\n", "line 2: the id 'a,b' has a comma or a control character"),
        (UNLABELLED + '"a\nb"\tx\ty\n', r"line 2: the id 'a\nb' has a comma or a control character"),
        (UNLABELLED + "A1\tx\ty\na1\tx\ty\n", "id a1 is on line 2 and again on line 3"),
        (UNLABELLED, "has no usable row"),
    ],
)
def test_what_the_answers_could_not_be_written_for_is_refused(file, text, message):
    assert message in refusal(load_paraphrase_data, file(text), "test")


@pytest.mark.parametrize("label", ["TRUE", "yes", "2", "0.5", "nan", "inf", "x" * 1000])
def test_a_label_is_0_or_1(file, label):
    message = refusal(load_paraphrase_data, file(LABELLED + f"a\tb\tc\t1\nd\te\tf\t{label}"))
    assert "line 3: is_duplicate is '" in message and len(message) < 300


@pytest.mark.parametrize("answers", [{"a": 3919}, {"a": 3919, "b": 8505, "c": 8505}, {"a": 3919, "b": 1}, {}])
def test_a_hand_in_without_one_answer_for_every_id_is_never_written(answers):
    with pytest.raises(RuntimeError, match="not one for each"):
        format_answers("", ["a", "b"], answers, ANSWERS.values())
    with pytest.raises(RuntimeError, match="not one for each"):
        format_answers("", ["a", "a"], {"a": 3919}, ANSWERS.values())


def shortened_one_by_one(first, second, tokenizer, max_length):
    """A token at a time off a list; half a letter at the end is none."""
    questions = [tokenizer.encode(first).ids, tokenizer.encode(second).ids]
    while True:
        texts = [tokenizer.decode(ids).rstrip("\ufffd") for ids in questions]
        ids = tokenizer.encode(PROMPT.format(first=texts[0], second=texts[1])).ids
        if len(ids) <= max_length:
            return ids
        for _ in range(len(ids) - max_length):
            longer = 0 if len(questions[0]) >= len(questions[1]) else 1
            questions[longer] = questions[longer][:-1]


def test_long_questions_are_cut_as_before_but_at_once(mini_tokenizer):
    draw = random.Random(0)
    words = ["how", " do", "yes", "🙂", "日本語", " é", "no ?", "\u200d", " xyzzy", '"']
    for _ in range(100):
        pair = ["".join(draw.choices(words, k=draw.choice([0, 3, 40, 90]))) for _ in range(2)]
        dataset = ParaphraseDetectionDataset([(*pair, 0, "a")], mini_tokenizer, 60)
        assert dataset[0]["token_ids"].tolist() == shortened_one_by_one(*pair, mini_tokenizer, 60)
    started = time.perf_counter()
    ParaphraseDetectionDataset([("🙂" * 60_000, "x" * 200_000, 0, "a")], mini_tokenizer, 256)
    assert time.perf_counter() - started < 10


# --- sonnets ----------------------------------------------------------------------------------------------------------


def book(headings, lines=14, title="A header\nby nobody"):
    return title + "".join(f"\n\n{heading}\n\n{sonnet(n, lines)}" for n, heading in enumerate(headings)) + "\n"


@pytest.mark.parametrize("style", ["###{}###", "{}.", "\u200b{}", "{}\ufeff", "[{}]", "_{}_", "No. {}", "sonnet {}:"])
@pytest.mark.parametrize("lines", [3, 14])
def test_headings_in_other_styles_number_sonnets(file, style, lines):
    path = file(book([1, style.format(2), 3, style.format(4)], lines))
    assert load_sonnets(path) == [sonnet(n, lines) for n in range(4)]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r", "\u2028", "\x85", "\x0b", "\x0c"])
def test_lines_may_end_in_other_ways(file, separator):
    path = file(book(["I", "II", "IV", "XII", "XL"]).replace("\n", separator))
    assert load_sonnets(path) == [sonnet(n) for n in range(5)]


@pytest.mark.parametrize("heading", ["zwei", "ii.", "Sonnet the Second", "12. Title", "2a", "* * *", "二", "Page 5"])
@pytest.mark.parametrize("lines", [3, 14])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_heading_that_is_none_is_told_by_its_line(file, heading, lines, place):
    headings = [1, 2, 3]
    headings[place] = heading
    text = book(headings, lines)
    message = refusal(load_sonnets, file(text))
    wanted = text.splitlines().index(heading) + 1
    if place:  # within a sonnet; without blank lines, or where there are too many, it is told by the sonnet's own
        assert f"line {wanted}: " in message or f"begins at line {wanted - lines - 3} has 29 lines" in message
    else:
        assert f"line {wanted + 2}: these lines follow no number" in message


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_prompt_without_a_heading_is_not_part_of_the_one_before(file, missing):
    text = book([30, 31, 32, 33, 34], 3).replace(f"\n\n{30 + missing}\n\n", "\n\n")
    message = refusal(load_sonnets, file(text))
    assert f"the number {31 + missing} comes after {29 + missing}, and between them are 6 lines" in message


@pytest.mark.parametrize("cut", [1, 5, 13])
def test_a_verse_that_is_a_number_does_not_cut_a_sonnet(file, cut):
    lines = sonnet(1).splitlines()
    lines[cut] = "12"
    text = book([4, 5, 6]).replace(sonnet(1), "\n".join(lines))
    found = text.splitlines().index("12") + 1
    message = refusal(load_sonnets, file(text))
    assert f"line {found}: the number 12 cuts a sonnet into parts" in message or "is empty" in message


def test_words_that_could_be_roman_numbers_are_none():
    assert not any(map(is_heading, ["CIVIL", "ILL", "MIX", "I am", "VIVI", "IIII", "LL"]))
    assert all(map(is_heading, ["I", "XC.", "CXXVI", "IV", "- V -"]))


def test_prompts_and_gold_are_what_they_should_be(tmp_path, capsys):
    check_unfinished([sonnet(1, 3), sonnet(2, 13)], "prompts.txt")
    message = refusal(check_unfinished, [sonnet(1, 3), sonnet(2, 14)], "prompts.txt")
    assert message.startswith("prompts.txt: the prompt at place 2 has 14 lines")
    warn_of_known([sonnet(1, 3), sonnet(2)], [sonnet(5)], "gold.txt")
    assert capsys.readouterr().out == ""
    warn_of_known([sonnet(1, 3), sonnet(2)], [sonnet(2), sonnet(3)], "gold.txt")
    assert "gold.txt: 1 of 2 are training sonnets, too" in capsys.readouterr().out


def test_ordinary_sonnets_are_handed_in_as_ever():
    texts = [tidy(sonnet(n)) for n in range(3)]
    expected = "--Generated Sonnets-- \n\n" + "".join(f"\n{i}\n{text}\n\n" for i, text in enumerate(texts))
    assert format_sonnets(texts) == expected and texts == [sonnet(n) for n in range(3)]


def test_what_is_handed_in_reads_back_as_the_same_sonnets(file):
    """By `load_sonnets` and by the course's own rule; what a writer tidies is written unchanged."""
    draw = random.Random(1)
    lines = [
        "A thing of beauty",
        "12",
        "XII",
        "no,",
        "7",
        "I",
        "  9",
        "\u200b3",
        "",
        "a\u20285\u2028b",
        "###",
        "-- 4",
        "is",
    ]
    for _ in range(500):
        texts = ["\n".join(["First", *draw.choices(lines, k=draw.randint(1, 20))]) for _ in range(draw.randint(1, 4))]
        tidied = [tidy(text) for text in texts]
        handed_in = format_sonnets(tidied)
        assert load_sonnets(file(handed_in)) == tidied
        assert [block.strip() for block in re.split(r"\n\s*\d+\s*\n", handed_in)[1:]] == tidied
        assert all("".join(verses(text)).split() for text in texts)
    assert load_sonnets(file(format_sonnets(["12\nwords", "no\n5\nwords"]))) == ["12 words", "no 5 words"]
    for text in ("", "12", "\n 3 \n", "no\n4"):
        assert "cannot be handed in" in refusal(format_sonnets, ["words", text])


def test_template_files(file):
    assert load_templates(file("# a note\n3\tDT NN\n1\tDT  JJ +,\n")) == {"DT NN": 3, "DT JJ +,": 1}
    for line in ("²\tDT", "9" * 5000 + "\tDT", "0\tDT", "3 DT", "3\t "):
        assert "line 2: must be a count" in refusal(load_templates, file("1\tDT NN\n" + line))
    assert "line 3: this template came before" in refusal(load_templates, file("1\tDT NN\n2\tDT\n3\tDT  NN\n"))


# --- corpora ----------------------------------------------------------------------------------------------------------

CORPORA = {  # kind: {name: text}
    "one file of lines": {"a.txt": "a line of several words\n" * 4000},
    "one file without any line end": {"a.txt": "word and more " * 8000},
    "one without any space": {"a.txt": "x" * 100_000},
    "long lines": {"a.txt": ("a long line " * 2000 + "\n") * 5},
    "twenty notes": {f"{n:02}.txt": f"a note of few words, number {n}\n" for n in range(20)},
    "poems": {f"{n:04}.txt": "a poem of some words\n" * (5 + n % 20) for n in range(600)},
    "essays": {f"{n:02}.txt": f"an essay about {n}\n" * 900 for n in range(12)},
    "all of it": {"a.txt": "a line of several words\n" * 4000, "b.txt": "word " * 20_000}
    | {f"{n:02}.txt": f"a note of few words, number {n}" for n in range(20)},
}


@pytest.mark.parametrize("kind", CORPORA)
def test_a_hundredth_of_any_corpus_is_held_out_and_nothing_lost(tmp_path, kind):
    texts = CORPORA[kind]
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    parts = {
        part: {name: "".join(pieces) for name, pieces in Corpus(tmp_path).documents(part)}
        for part in ("train", "held_out")
    }
    assert {n: parts["train"].get(n, "") + parts["held_out"].get(n, "") for n in texts} == texts
    share = sum(map(len, parts["held_out"].values())) / sum(map(len, texts.values()))
    assert 0.005 <= share <= 0.015
    if kind != "poems":
        assert parts["train"].keys() == texts.keys()
    else:  # whole ones
        assert not parts["train"].keys() & parts["held_out"].keys()


def test_pieces_are_cut_where_no_token_is(tmp_path, monkeypatch, mini_tokenizer):
    """Blocks and pieces of any size give the tokens of the whole text."""
    draw = random.Random(0)
    words = ["word", " ", "  ", "\n", "\n\n \t", "don't", "…!?", " 12", "日本", "\u3000", "\x1c", "é", "'s"]
    text = "".join(draw.choices(words, k=4000))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    whole = mini_tokenizer.encode(text).ids
    for block, piece in ((1, 1), (7, 20), (64, 3), (1000, 300)):
        monkeypatch.setattr(corpus_module, "_BLOCK", block)
        monkeypatch.setattr(corpus_module, "_PIECE", piece)
        pieces = list(corpus_module._pieces(corpus_module._characters(path, 0, len(text))))
        assert "".join(pieces) == text and len(pieces) > 10
        assert [i for piece in pieces for i in mini_tokenizer.encode(piece, add_special_tokens=False).ids] == whole


def test_text_without_any_white_space_comes_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(corpus_module, "_PIECE", 10)
    monkeypatch.setattr(corpus_module, "_LONGEST_PIECE", 50)
    pieces = list(corpus_module._pieces(["x" * 7] * 100))
    assert "".join(pieces) == "x" * 700 and max(map(len, pieces)) == 50


def test_a_fault_in_a_file_read_in_blocks_is_told_with_its_place(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "é\r\n".encode() * 30_000 + b"\xff more")
    assert f"(byte {3 + 4 * 30_000})" in refusal(list, read_blocks(path, 1000))


def test_which_files_are_read_is_said(tmp_path, capsys):
    (tmp_path / "folder.txt").mkdir()
    for name in ("folder.txt/a.TXT", "b.txt", "c.md", "d.pdf"):
        (tmp_path / name).write_text("text")
    assert list(Corpus(tmp_path).paths) == ["b.txt", "folder.txt/a.TXT"]
    assert "2 .txt files are read, 2 other files are not" in capsys.readouterr().out


def damaged_records(record):
    yield from ([], {}, record | {"dtype": "object"}, record | {"dtype": 3}, record | {"train": 1})
    yield from (record | {"train": []}, record | {"held_out": []}, record | {"crc32": {"train": 1}})
    for name, value in (("tokens", "7"), ("tokens", -1), ("tokens", True), ("bytes", None), ("name", 3)):
        yield record | {"train": [record["train"][0] | {name: value}, *record["train"][1:]]}


def test_a_damaged_corpus_is_one_line(tmp_path, tokens_folder):
    names = ("train.bin", "held_out.bin", "corpus.json", "tokenizer.json")
    good = {name: (tokens_folder / name).read_bytes() for name in names}

    def put(**changes):
        for name, data in good.items():
            (tmp_path / name).write_bytes(changes.get(name.split(".")[0], data))

    put()
    TokenFile(tmp_path)
    record = json.loads(good["corpus.json"])
    for changed in damaged_records(record):
        put(corpus=json.dumps(changed).encode())
        assert "made again" in refusal(TokenFile, tmp_path)
    for part in ("train", "held_out"):
        tokens = np.frombuffer(good[f"{part}.bin"], np.uint16).copy()
        tokens[5] ^= 1
        for data in (b"", good[f"{part}.bin"][:-2], good[f"{part}.bin"][:-1], tokens.tobytes()):
            put(**{part: data})
            assert "made again" in refusal(TokenFile, tmp_path)
    older = {name: value for name, value in record.items() if name != "crc32"}
    put(corpus=json.dumps(older).encode())  # as this project wrote it before
    assert len(TokenFile(tmp_path).train)
    put(corpus=json.dumps(older).encode(), train=b"\xff\xff" * (len(good["train.bin"]) // 2))
    assert "holds other tokens" in refusal(TokenFile, tmp_path)


MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from datasets.corpus import Corpus, prepare_corpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_corpus(Corpus(sys.argv[2]), Path(sys.argv[3]), 8600, 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", " "])
def test_a_large_file_is_prepared_in_bounded_memory(tmp_path, end):
    """40 MB as one document, with line ends and without: tokenizer, split and tokens (it took 90 MB for every MB)."""
    (tmp_path / "corpus").mkdir()
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 5))) for _ in range(20_000)]
    with open(tmp_path / "corpus" / "large.txt", "w") as file:
        for _ in range(2500):
            file.write(" ".join(draw.choices(words, k=2200)) + end)
    command = [sys.executable, "-c", MEASURE, str(ROOT), str(tmp_path / "corpus"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700, f"{done.stdout} MiB"


# --- caches and archives ----------------------------------------------------------------------------------------------


def test_a_cache_of_an_older_version_is_read_and_goes_on(tmp_path):
    import sqlite3

    path = tmp_path / "cache.sqlite"
    with sqlite3.connect(path) as file:
        file.execute(
            "CREATE TABLE translations (model, source, translation, PRIMARY KEY (model, source)) WITHOUT ROWID"
        )
        file.execute("INSERT INTO translations VALUES ('m', 'one', 'un')")
    cache = TranslationCache(path)
    cache.add("m", {"two": "deux"})
    assert TranslationCache(path).known("m") == {"one": "un", "two": "deux"}


def test_a_changed_letter_in_a_cache_is_noticed(tmp_path):
    path = tmp_path / "cache.sqlite"
    cache = TranslationCache(path)
    cache.add("m", {"a question": "eine Frage"})
    cache.file.close()
    path.write_bytes(path.read_bytes().replace(b"eine Frage", b"eine Frase"))
    assert "it holds other texts" in refusal(TranslationCache(path).known, "m")


def test_places_that_hold_no_cache(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert TranslationCache(tmp_path / "empty").known("m") == {}
    (tmp_path / "page").write_text("<html>" * 1000)
    for name in (".", "page", "page/cache"):
        assert "cannot be opened" in refusal(TranslationCache, tmp_path / name)


def test_a_wordnet_archive_that_is_none(tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(eda, "DEBIANS", tmp_path)
    archive = tmp_path / "corpora" / "wordnet.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("wordnet/index.noun", "car n 1 0 1 0 00000000\n" * 50)
    whole = archive.read_bytes()
    for data in (b"<html>not found</html>", b"", whole[:100], whole, whole[:40] + b"\0" * 20 + whole[60:]):
        archive.write_bytes(data)
        message = refusal(eda.load_synonyms.__wrapped__)
        assert "python -m nltk.downloader wordnet" in message


def test_prepared_tokens_do_not_depend_on_how_they_were_read(tmp_path, corpus_folder, tokens_folder, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BLOCK", 777)
    monkeypatch.setattr(corpus_module, "_LOT", 2)
    prepare_corpus(Corpus(corpus_folder, ["b.txt"]), tmp_path / "again", VOCAB, CONTEXT)
    for name in ("train.bin", "held_out.bin", "corpus.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tokens_folder / name).read_bytes()
