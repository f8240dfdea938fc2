"""Sonnets in tables against the same sonnets in the course's layout, and against tables that nobody can be sure of."""

import csv
import io
import random

import pytest

import sonnet_generation
from datasets import load_sonnets
from datasets.sonnet_tables import is_table
from errors import UserError
from tests.inputs import run, sonnet, without

SONNETS = [sonnet(number) for number in range(1, 6)]
SONNETS[2] = 'One said, "no";\n' + SONNETS[2].split("\n", 1)[1]  # quotation marks and semicolons are verse, too


@pytest.fixture
def table(tmp_path):
    """table(header, rows, name, **csv options) -> the path of a file that csv.writer made."""

    def write(header, rows, name="sonnets.csv", **options):
        text = io.StringIO()
        writer = csv.writer(text, **options)
        writer.writerows([header, *rows] if header else rows)
        path = tmp_path / name
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
        return path

    return write


@pytest.mark.parametrize("number", [(), ("number",), ("", "title")])
@pytest.mark.parametrize("text", ["text", "Sonnet", "the lines"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sonnets.csv", {}),
        ("sonnets.csv", {"delimiter": ";", "lineterminator": "\n"}),
        ("Sonnets.CSV", {"quoting": csv.QUOTE_ALL}),
        ("sonnets.tsv", {"delimiter": "\t"}),
        ("sonnets.csv", {"delimiter": "\t", "lineterminator": "\n"}),
    ],
)
def test_a_column_of_verse_is_found_whatever_stands_beside_it(table, capsys, number, text, name, options):
    beside = [(f"{n}", f"On {n}, and more")[: len(number)] for n in range(5)]
    rows = [[*others, verse] for others, verse in zip(beside, SONNETS, strict=True)]
    path = table([*number, text], rows, name, **options)
    assert load_sonnets(path) == SONNETS
    assert f"a table, whose column {text!r} holds 5 sonnets" in capsys.readouterr().out
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")  # Excel's mark, blank lines at the end
    assert load_sonnets(path) == SONNETS


def test_the_columns_may_stand_in_any_order_and_the_header_be_missing(table, capsys):
    rows = [[verse, n] for n, verse in enumerate(SONNETS)]
    assert load_sonnets(table(["text", "n"], rows)) == load_sonnets(table(None, rows)) == SONNETS
    assert "whose column 1 holds 5 sonnets" in capsys.readouterr().out


def test_a_table_is_told_by_its_header_too(table):
    path = table(["number", "text"], enumerate(SONNETS), "sonnets.txt")
    assert load_sonnets(path) == SONNETS


HEADINGS = ("{n}", "{n}.", "Sonnet {n}", "SONNET {n}", "{r}", "{r}.", "SONNET {r}", "Sonnet {r}:", "# {n}", "{l}")
ROMAN = ["I", "II", "III", "IV", "V"]


@pytest.mark.parametrize("gap", ["\n", "\n\n", "  \n \n"])
@pytest.mark.parametrize("style", HEADINGS)
def test_headings_in_the_usual_styles_are_no_verse(table, style, gap):
    heads = [style.format(n=n, r=roman, l=roman.lower()) for n, roman in enumerate(ROMAN, start=1)]
    rows = [[f"{head}{gap}{verse}\n"] for head, verse in zip(heads, SONNETS, strict=True)]
    assert load_sonnets(table(["text"], rows)) == SONNETS


def test_a_heading_that_goes_on_with_a_title_is_left_out_and_said(table, capsys):
    rows = [[f"Sonnet {n}: {verse.splitlines()[0]}\n\n{verse}"] for n, verse in enumerate(SONNETS, start=1)]
    assert load_sonnets(table(["text"], rows)) == SONNETS
    assert "5 titles left out, the first 'Sonnet 1: " in capsys.readouterr().out


OTHER = "\n".join(line.upper() for line in SONNETS[0].splitlines())


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["n", "text"], [[1, SONNETS[0]], [2, ""]], "line 16: the sonnet of this row is empty"),
        (["n", "text"], [[1, SONNETS[0]], [2, "II"]], "line 16: the sonnet of this row has 1 lines where most have 14"),
        (["n", "text"], [[1, SONNETS[0]], [2, SONNETS[1], 3]], "line 16: 3 fields where the first row has 2"),
        (["n", "text"], [[1, f"{SONNETS[0]}\n{SONNETS[1]}"]], "line 2: the sonnet of this row has 28 lines"),
        (
            ["n", "text"],
            [[1, f"A one\nB\nA two\n\n2\n\n{SONNETS[1]}"]],
            "line 2: the sonnet of this row has a line '2'",
        ),
        (["n", "text"], [[1, f"A Title\n\n{SONNETS[1]}"]], "has a line 'A Title', which stands there as a heading"),
        (["n", "text"], [[1, f"A title of more than four words\n\n{SONNETS[1]}"]], "has a line 'A title of more"),
        (["n", "text"], [[1, f"Sonnet the First\n{SONNETS[1]}"]], "has a line 'Sonnet the First'"),
        (["n", "text"], [[1, f"18. On time\n{SONNETS[1]}"]], "has a line '18. On time'"),
        (["a", "b"], [[OTHER, verse] for verse in SONNETS], "columns 'a' and 'b' hold lines of verse: leave one"),
        (
            ["n", "text"],
            [[1, 'a "line"'], [2, "b"]],
            "no column holds lines of verse: a sonnet is one field in quotation",
        ),
    ],
)
def test_what_nobody_can_be_sure_of_is_one_line_with_its_place(table, header, rows, message):
    with pytest.raises(UserError) as error:
        load_sonnets(table(header, rows))
    assert message in str(error.value) and "sonnets.csv" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'text"{SONNETS[0]}"\n"{SONNETS[1]}"\n', "the columns|no csv|quotation mark"),
        (
            f'"text""{SONNETS[0]}"\n"{SONNETS[1]}"\n',
            "line 1: the sonnet of this row has a quotation mark within a word",
        ),
        (
            'text\n"A b,\nC d,\nE f."" G h,\nI j,\nK l."\n"A b,\nC d,\nE f."\n"A,\nB,\nC."\n',
            "has 5 lines where most have 3",
        ),
        (
            f'n,text\n1,"{SONNETS[0]}"\n2,"{SONNETS[1]}\n3,{SONNETS[2]}"\n'.replace('"no"', "no"),
            "line 16: the sonnet of",
        ),
    ],
)
def test_line_breaks_and_marks_that_are_lost(tmp_path, text, message):
    path = tmp_path / "sonnets.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_sonnets(path)


def test_of_two_columns_of_verse_a_name_tells(table):
    rows = [[OTHER, verse] for verse in SONNETS]
    assert load_sonnets(table(["modern", "text"], rows)) == SONNETS
    with pytest.raises(UserError, match="the columns 'poem' and 'text' hold lines of verse: leave one of them"):
        load_sonnets(table(["poem", "text"], rows))


@pytest.mark.parametrize("lines", [3, 14])
@pytest.mark.parametrize("mark", range(12))
def test_a_quotation_mark_that_is_missing_swallows_no_sonnet(tmp_path, lines, mark):
    """Any one of the marks, and any two that follow one another, are taken away: refused, never fewer sonnets."""
    for removed in ({mark}, {mark, mark + 1}):
        parts = [f'{n},"{sonnet(n, lines)}"\n' for n in range(6)]
        text, seen = "n,text\n", 0
        for letter in "".join(parts):
            text += "" if letter == '"' and seen in removed else letter
            seen += letter == '"'
        path = tmp_path / "sonnets.csv"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"sonnets\.csv"):
            load_sonnets(path)


def test_a_table_without_quotation_marks_says_what_is_missing(tmp_path):
    path = tmp_path / "sonnets.csv"
    path.write_text("n,text\n" + "".join(f"{n},{line}\n" for n, line in enumerate(SONNETS[0].splitlines())))
    with pytest.raises(UserError, match=r"holds no sonnet: .*; in a table a sonnet is one field in quotation marks"):
        load_sonnets(path)


def test_the_courses_layout_is_no_table(tmp_path):
    for name, header in (("sonnets.txt", 'Sonnets, "text"'), ("sonnets.csv", "Sonnets"), ("s.txt", "text")):
        text = f"{header}\nby somebody\n\n1\n\n{SONNETS[0]}\n\n2\n\n{SONNETS[1]}\n"
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert not is_table(path, text) and load_sonnets(path) == SONNETS[:2]


def test_no_damage_makes_sonnets_disappear_split_or_shift(table):
    """Oracle: how the file was made. A byte of structure lost or doubled: the same sonnets in order, or a refusal."""
    draw, read = random.Random(0), 0
    whole = table(["n", "title", "text"], [[n, f"On {n}", verse] for n, verse in enumerate(SONNETS)])
    original = whole.read_text(encoding="utf-8")
    places = [place for place, letter in enumerate(original) if letter in '",\n']
    for _ in range(300):
        place = draw.choice(places)
        text = original[:place] + draw.choice(["", 2 * original[place], "\n", '"', ","]) + original[place + 1 :]
        whole.write_text(text, encoding="utf-8", newline="")
        try:
            found = load_sonnets(whole)
        except UserError:
            continue
        read += 1
        words = [verse.replace(",", " ").replace('"', " ").split() for verse in SONNETS]
        again = [verse.replace(",", " ").replace('"', " ").split() for verse in found]
        joined = [["".join(sonnet) for sonnet in texts] for texts in (words, again)]
        assert joined[0] == joined[1], text
    assert read > 50


def test_real_sonnets_come_out_of_a_table_as_out_of_the_courses_file(real_data, table):
    expected = load_sonnets(real_data / "sonnets.txt")
    rows = [[n, f"Sonnet {n}", f"SONNET {n}\n\n{verse}"] for n, verse in enumerate(expected, start=1)]
    assert load_sonnets(table(["", "title", "sonnet"], rows, "Shakespeare_Sonnets_train.csv")) == expected


@pytest.mark.slow
def test_a_run_on_tables_equals_one_on_the_courses_layout(sonnet_flags, tmp_path, table):
    run(sonnet_generation, [*sonnet_flags, "--lora", "--precision", "fp32"])
    first = (tmp_path / "out/sonnets.txt").read_text()
    changes = []
    for flag, name in (
        ("--sonnet_path", "train"),
        ("--held_out_sonnet_path", "prompts"),
        ("--gold_sonnet_path", "gold"),
    ):
        path = table(["n", "text"], list(enumerate(load_sonnets(f"{name}.txt"))), f"{name}.csv")
        changes += [flag, str(path)]
    flags = without(sonnet_flags, "--sonnet_path", "--held_out_sonnet_path", "--gold_sonnet_path")
    run(sonnet_generation, [*flags, *changes, "--lora", "--precision", "fp32"])
    assert (tmp_path / "out/sonnets.txt").read_text() == first
