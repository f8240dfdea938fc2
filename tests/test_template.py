"""Templates of lines against templates by hand, and their files."""

import pytest

from decoding.template import (
    TAG_SETS,
    format_templates,
    load_tagger,
    load_templates,
    parse_template,
    split_words,
    tag_line,
    template_of,
)
from errors import UserError
from tests.helpers import LINES


def test_splitting_keeps_every_character():
    for line in LINES:
        pieces = split_words(line)
        joined = "".join(("" if glued or not place else " ") + text for place, (text, glued) in enumerate(pieces))
        assert joined == line
    assert split_words("o'er the night's self-same") == [
        ("o'er", False),
        ("the", False),
        ("night", False),
        ("'s", True),
        ("self-same", False),
    ]


def test_templates_of_lines(lexicon):
    tag_words, _ = load_tagger()
    tagged = tag_line("The night's long, sweet sun.", tag_words)
    assert template_of(tagged) == "DT NN +'s JJ +, JJ NN +."
    assert template_of(tagged, "universal") == "DET NOUN +'s ADJ +, ADJ NOUN +."
    assert template_of(tagged, "content") == "FUNCTION CONTENT +'s CONTENT +, CONTENT CONTENT +."
    assert template_of(tagged, "word") == "WORD WORD +'s WORD +, WORD WORD +."
    assert sum(lexicon.templates["penn"].values()) == len(LINES)
    for line in LINES:
        for tag_set in TAG_SETS:
            assert lexicon.admits(template_of(tag_line(line, tag_words), tag_set), line)
    assert not lexicon.admits("DT NN", "the of") and not lexicon.admits("DT NN +,", "the sun")


def test_template_files_round_trip_and_say_what_is_wrong(tmp_path):
    templates = {"DT NN +,": 3, "PRP VBZ": 1}
    path = tmp_path / "templates.txt"
    path.write_text(format_templates(templates), encoding="utf-8")
    assert load_templates(path) == templates
    for text, message in (("DT NN\n", "line 1"), ("# nothing\n", "no template"), ("0\tDT\n", "line 1")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_templates(path)


def test_capitals_begin_lines_and_sentences():
    places = parse_template("DT NN +. PRP VBZ +, CC VBZ")
    assert [place.capital for place in places] == [True, False, False, True, False, False, False, False]
    assert [place.glued for place in places] == [True, False, True, False, False, True, False, False]


def test_a_tag_without_words_backs_off(lexicon):
    assert lexicon.fitting("NNPS") and lexicon.fitting("XYZ")  # no such word: any noun, any word
    assert "sun" in lexicon.fitting("NN") and "of" not in lexicon.fitting("NN") and lexicon.fitting(";") == {";"}
