"""Every reader of data against inputs that a seeded generator damages: no traceback, no hang, no silent change.

What a reader may do with a damaged file is give what the file says, or refuse it by a UserError of one line that names
the file. What it says is known from a slow, obvious oracle, described in each test. About 1,400 inputs; the slow part
tries ten times as many.
"""

import contextlib
import csv
import gzip
import io
import json
import random
import re
import signal
import tomllib
import unicodedata

import pytest

from cli.flags import parse_flags
from config import SonnetSettings
from datasets import corpus as corpus_module
from datasets import eda, load_paraphrase_data, load_sonnets
from datasets.back_translation import TranslationCache
from datasets.corpus import Corpus, TokenFile
from datasets.paraphrase import preprocess_string
from datasets.sonnets import is_heading
from datasets.translation import load_pairs
from decoding.template import load_templates
from errors import UserError

ROUNDS = [1, pytest.param(10, marks=pytest.mark.slow)]
PIECES = [  # of bytes that mean something to one reader or another
    *(b'"', b'""', b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b" ", b",", b"0", b"1", b"\n12\n", b"\nI\n", b"\n#\n"),
    *(b"\xff", b"\xc3", b"\xef\xbb\xbf", "\u2028".encode(), "\u200b".encode(), "\x85".encode(), b"\x0c", b"\x1c"),
    *(b"[", b"{", b"}", b"null", b"-1", b"1e999", "²".encode(), "٣".encode(), "🙂".encode(), b"9" * 5000),
]


def damaged(draw, data):
    """The bytes after one to three small changes."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data) + 1)
        end = min(len(data), place + draw.choice([1, 1, 5, 40]))
        kind = draw.randrange(6)
        if kind == 0:
            data[place:place] = draw.choice(PIECES)
        elif kind == 1:
            data[place:end] = draw.choice(PIECES)
        elif kind == 2:
            del data[place:end]
        elif kind == 3:
            data[place:place] = data[place:end]
        elif kind == 4:
            data[place:end] = draw.randbytes(end - place)
        elif draw.random() < 0.2:
            del data[place:]
    return bytes(data)


def outcome(read, *arguments):
    """What a call returns, or None for a UserError of one line. Longer than ten seconds is a hang."""

    def hang(number, frame):
        raise TimeoutError("a reader hangs")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(10)
    try:
        return read(*arguments)
    except UserError as error:
        assert len(str(error)) < 1000 and str(error).isprintable(), repr(str(error))
        return None
    finally:
        signal.alarm(0)


def as_text(data):
    """What a text editor shows of a file, or None where it is no UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


# --- pairs ------------------------------------------------------------------------------------------------------------

HEADER = "id\tsentence1\tsentence2\tis_duplicate"


def plain_rows(text):
    """{id: row} of the lines that are rows however quotation marks are read: four fields, a label, no mark."""
    rows, (header, *lines) = {}, text.split("\n")
    for line in lines if header == HEADER else ():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) == 4 and fields[0] and fields[3] in ("0", "1") and '"' not in line:
            rows[fields[0].lower()] = (preprocess_string(fields[1]), preprocess_string(fields[2]), int(fields[3]))
    return rows


@pytest.mark.parametrize("rounds", ROUNDS)
def test_pairs(tmp_path, capsys, rounds):
    """Oracle: a line that is a row however one reads it comes out as that row, or stands word for word in the question
    of a quoted field; and rows and reported rows are as many as a file of lines can have."""
    draw, path, read = random.Random(1), tmp_path / "pairs.csv", 0
    for _ in range(300 * rounds):
        lines = [HEADER]
        for number in range(draw.randint(2, 12)):
            mark, end = (draw.choice(["", "", "", '"']) for _ in range(2))
            lines.append(f"id{number}\t{mark}what is {number}{end}\tand {number} ?\t{number % 2}")
        data = "\n".join(lines).encode()
        data = damaged(draw, data) if draw.random() < 0.8 else data
        path.write_bytes(data)
        rows = outcome(load_paraphrase_data, path)
        reported = sum(map(int, re.findall(r"(\d+) malformed rows", capsys.readouterr().out)))
        if rows is not None:
            read += 1
            found = {row[3]: row[:3] for row in rows}
            for identifier, row in plain_rows(as_text(data)).items():
                hidden = any(f"{identifier} {row[0]} {row[1]}".strip() in " ".join(r[:2]) for r in rows)
                assert found.get(identifier) == row or hidden, (data, identifier)
            filled = sum(bool(line.strip()) for line in as_text(data).split("\n")[1:])
            assert len(rows) + reported <= filled
            if b'"' not in data:
                assert len(rows) + reported == sum(bool(line) for line in as_text(data).split("\n")[1:])
    assert read > 100 * rounds


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_pairs_that_python_wrote(tmp_path, split, rounds):
    """Oracle: csv.writer. Its fields come back, with tabs, line breaks and marks, or (test files alone, where no label
    tells a row) the file is refused."""
    draw, path, read = random.Random(2), tmp_path / "pairs.csv", 0
    for _ in range(150 * rounds):
        texts = [["".join(draw.choices("ab \"\t\n'?", k=draw.randint(0, 9))) for _ in range(2)] for _ in range(5)]
        table = [[f"id{n}", *pair, str(n % 2)] for n, pair in enumerate(texts)]
        file = io.StringIO(newline="")
        line_end, last = draw.choice(["\n", "\r\n"]), 4 if split == "train" else 3
        csv.writer(file, delimiter="\t", lineterminator=line_end).writerows(
            row[:last] for row in [HEADER.split("\t"), *table]
        )
        path.write_text(file.getvalue().removesuffix(draw.choice(["", line_end])), newline="")
        rows = outcome(load_paraphrase_data, path, split)
        expected = [(*map(preprocess_string, row[1:3]), *([int(row[3])] if last == 4 else []), row[0]) for row in table]
        assert rows == expected or (rows is None and split == "test")
        read += rows is not None
    assert read > 100 * rounds


# --- sonnets ----------------------------------------------------------------------------------------------------------


def visible_lines(text):
    """The lines that hold something which can be seen."""
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_sonnets_with_damaged_bytes(tmp_path, rounds):
    """Oracle: the lines from the first number on, but for the numbers: all in the sonnets, in order, none else."""
    draw, path, read = random.Random(3), tmp_path / "sonnets.txt", 0
    for _ in range(200 * rounds):
        size = draw.choice([3, 14])
        blocks = [f"{n}\n\n" + "\n".join(f"verse {n}-{k} of it," for k in range(size)) for n in range(1, 6)]
        data = damaged(draw, ("A header\n\n" + "\n\n".join(blocks)).encode())
        path.write_bytes(data)
        texts = outcome(load_sonnets, path)
        if texts is not None:
            lines = visible_lines(as_text(data))
            first = next(place for place, line in enumerate(lines) if is_heading(line))
            verses = [line for line in lines[first:] if not is_heading(line)]
            assert [line for text in texts for line in visible_lines(text)] == verses
            assert len(texts) == sum(map(is_heading, lines))
            read += 1
    assert read > 50 * rounds


STYLES = ["{}", "{}.", "# {}", "###{}###", "\u200b{}", "Sonnet {}", "({})", "{}\ufeff", " {} ", "No. {}"]
UNREAD = ["zwei", "ii", "Sonnet Two", "* * *", "12a", "2nd", "Chapter 2"]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_sonnets_with_other_headings(tmp_path, rounds):
    """Oracle: how the file was made. Its sonnets come back; where a heading is no number, or a verse is one, it is
    refused."""
    draw, path = random.Random(4), tmp_path / "sonnets.txt"
    for _ in range(200 * rounds):
        size, count, first = draw.choice([3, 14]), draw.randint(3, 7), draw.choice([1, 145])
        sonnets = [[f"verse {n}-{k} of a sonnet," for k in range(size)] for n in range(count)]
        headings = [draw.choice(STYLES).format(first + n) for n in range(count)]
        fault = draw.choice(["none", "none", "heading", "verse"])
        hurt = draw.randrange(1, count)
        if fault == "heading":
            headings[hurt] = draw.choice(UNREAD)
        elif fault == "verse":
            sonnets[hurt][draw.randrange(size)] = str(draw.randint(500, 999))
        gap = draw.choice(["\n\n", "\n\n\n", "\n \n"])
        blocks = [gap + heading + gap + "\n".join(lines) for heading, lines in zip(headings, sonnets, strict=True)]
        text = "A header" + "".join(blocks) + "\n"
        path.write_text(text.replace("\n", draw.choice(["\n", "\r\n", "\u2028"])), newline="", encoding="utf-8")
        texts = outcome(load_sonnets, path)
        assert texts == (["\n".join(lines) for lines in sonnets] if fault == "none" else None), text


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("form", ["one file", "two files", "packed"])
def test_parallel_text(tmp_path, form, rounds):
    """Oracle: a text editor's lines. Each is a sentence, one tab and its translation, or line by line the same of two
    files; where one is not, the file is refused. Nothing is left out."""
    draw, read = random.Random(8), 0
    for _ in range(120 * rounds):
        lines = [(f"the {n} .", f"das {n} ,") for n in range(draw.randint(1, 6))]
        sides = ["\n".join("\t".join(pair) for pair in lines)]
        if form == "two files":
            sides = ["\n".join(side) for side in zip(*lines, strict=True)]
        data = [damaged(draw, side.encode()) if draw.random() < 0.7 else side.encode() for side in sides]
        paths = [tmp_path / f"{number}.{'gz' if form == 'packed' else 'txt'}" for number in range(len(data))]
        for path, side in zip(paths, data, strict=True):
            path.write_bytes(gzip.compress(side) if form == "packed" else side)
        pairs = outcome(load_pairs, ",".join(map(str, paths)))
        if pairs is not None:
            read += 1
            texts = [as_text(side).rstrip("\n").split("\n") for side in data]
            expected = [line.split("\t") for line in texts[0]] if len(texts) == 1 else list(zip(*texts, strict=True))
            assert pairs == [tuple(half.strip() for half in pair) for pair in expected], data
            assert all(len(pair) == 2 and all(pair) for pair in pairs)
    assert read > 25 * rounds


@pytest.mark.parametrize("rounds", ROUNDS)
def test_files_of_settings(tmp_path, rounds):
    """Oracle: Python's own TOML. Every name in it is a flag, with that value; or the file is refused."""
    draw, path, read = random.Random(9), tmp_path / "recipe.toml", 0
    for _ in range(150 * rounds):
        lines = ["lora = true", "lora_rank = 4", "lr = 1e-3", "epochs = 3"]
        lines += ['schedule = "cosine"', 'tuning = ["bitfit"]']
        data = "\n".join(draw.sample(lines, draw.randint(1, 6))).encode()
        path.write_bytes(damaged(draw, data) if draw.random() < 0.8 else data)
        found = outcome(parse_flags, SonnetSettings, ["--settings", str(path)])
        if found is not None:
            read += 1
            values = {name: value for group in vars(found[0]).values() for name, value in vars(group).items()}
            said = tomllib.loads(path.read_text(encoding="utf-8"))
            for name, value in said.items():
                assert values[name] == (tuple(value) if isinstance(value, list) else value), path.read_bytes()
            assert set(found[1]) == set(said)
    assert read > 25 * rounds


@pytest.mark.parametrize("rounds", ROUNDS)
def test_template_files(tmp_path, rounds):
    """Oracle: a loop over the lines. All templates with their counts, or a refusal."""
    draw, path, read = random.Random(5), tmp_path / "templates.txt", 0
    good = "# counts and tags\n" + "".join(f"{n + 1}\tDT NN{' JJ' * n} +,\n" for n in range(6))
    for _ in range(150 * rounds):
        data = damaged(draw, good.encode())
        path.write_bytes(data)
        templates = outcome(load_templates, path)
        if templates is not None:
            lines = [line for line in as_text(data).splitlines() if line.strip() and not line.startswith("#")]
            expected = [(" ".join(line.split("\t", 1)[1].split()), int(line.split("\t")[0])) for line in lines]
            assert list(templates.items()) == expected
            read += 1
    assert read > 30 * rounds


# --- corpora ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_folder_of_texts(tmp_path, monkeypatch, rounds):
    """Oracle: the files' own text. Both parts together are all of it; or the folder is refused."""
    monkeypatch.setattr(corpus_module, "_BLOCK", 97)
    draw, read = random.Random(6), 0
    for number in range(60 * rounds):
        folder, texts = tmp_path / str(number), {}
        folder.mkdir()
        for n in range(draw.randint(1, 5)):
            data = draw.choice([b"a line of words\n", b"word ", "日本\r\n".encode(), b"x"]) * draw.choice([1, 40, 3000])
            data = damaged(draw, data) if draw.random() < 0.3 else data
            (folder / f"{n}.txt").write_bytes(data)
            texts[f"{n}.txt"] = as_text(data)
        parts = outcome(lambda corpus: {p: dict(both(corpus, p)) for p in ("train", "held_out")}, Corpus(folder))
        if parts is not None:
            found = {name: parts["train"].get(name, "") + parts["held_out"].get(name, "") for name in texts}
            assert found == texts
            read += 1
        else:
            assert any(text is None or not text.strip() for text in texts.values())
    assert read > 20 * rounds


def both(corpus, part):
    return ((name, "".join(pieces)) for name, pieces in corpus.documents(part))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_prepared_tokens(tmp_path, tokens_folder, monkeypatch, tokenizer, rounds):
    """Oracle: what was written. The same tokens under the same names, or a refusal."""
    monkeypatch.setattr(corpus_module, "load_tokenizer", lambda folder: tokenizer)  # 0.1 s each; it is not damaged here
    draw, names, same = random.Random(7), ("corpus.json", "train.bin", "held_out.bin"), 0
    good = {name: (tokens_folder / name).read_bytes() for name in names}
    whole = TokenFile(tokens_folder)
    expected = (whole.train.tolist(), {name: ids.tolist() for name, ids in whole.held_out.items()}, whole.record)
    for _ in range(150 * rounds):
        hurt = draw.choice(["corpus.json", *names])
        for name in names:
            (tmp_path / name).write_bytes(damaged(draw, good[name]) if name == hurt else good[name])
        read = outcome(TokenFile, tmp_path)
        if read is not None:
            same += 1
            got = (read.train.tolist(), {name: ids.tolist() for name, ids in read.held_out.items()})
            assert got == expected[:2] and all(read.record[p] == expected[2][p] for p in ("train", "held_out"))
    assert same < 100 * rounds and json.loads(good["corpus.json"])


# --- caches and word lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_cache_of_translations(tmp_path, rounds):
    """Oracle: what was written. Nothing else is ever given for a text; what is missing is translated again."""
    draw, path = random.Random(8), tmp_path / "cache.sqlite"
    written = {f"question {n} " * 9: f"Frage {n} " * 9 for n in range(60)}
    cache = TranslationCache(path)
    cache.add("model", written)
    cache.file.close()
    whole, refused = path.read_bytes(), 0

    def read():
        cache = TranslationCache(path)
        try:
            return cache.known("model")
        finally:
            cache.file.close()

    for _ in range(150 * rounds):
        path.write_bytes(damaged(draw, whole))
        known = outcome(read)
        refused += known is None
        assert known is None or known.items() <= written.items()
        for leftover in tmp_path.glob("cache.sqlite-*"):
            leftover.unlink()
    assert refused > 60 * rounds


@pytest.mark.filterwarnings("ignore")  # nltk leaves the files open that it could not read
@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_files_of_wordnet(tmp_path, tiny_wordnet, rounds):
    """No oracle but this: words or a refusal (a letter that another took the place of is still a word)."""
    pytest.importorskip("nltk")
    draw, good = random.Random(9), {path.name: path.read_bytes() for path in tiny_wordnet.iterdir()}
    for _ in range(40 * rounds):
        hurt = draw.choice(["data.noun", "index.noun"])
        for name, data in good.items():
            (tmp_path / name).write_bytes(damaged(draw, data) if name == hurt else data)
        synonyms = outcome(eda.load_synonyms.__wrapped__, tmp_path)
        for word in ("car", "eye", "auto") if synonyms else ():
            names = outcome(synonyms, word)
            assert names is None or all(unicodedata.category(letter) in ("Ll", "Zs") for n in names for letter in n)
