"""Lines to templates against enumeration of all texts that fit."""

import itertools

import pytest

from config import DecodingSettings
from decoding.template_constraint import TemplateConstraint, TemplateWords, build_trie
from errors import UserError
from tests.helpers import MINI_END, MINI_VOCABULARY, mostly_slow
from tests.writing import write


def test_tries():
    trie = build_trie([(1, 2, 3), (1,), (4, 5)])
    assert set(trie.children) == {1, 4} and trie.tail == 1 and not trie.terminal
    assert trie.children[1].terminal and trie.children[1].tail == 0 and trie.children[1].children[2].tail == 1
    assert trie.children[4].tail == 1


LETTERS = " \nabcdA"


class Words:
    """A lexicon of given words, and a tokenizer of letters for it."""

    def __init__(self, **words):
        self.words, self.seen, self.tags = words, {w for some in words.values() for w in some}, {}

    def fitting(self, tag):
        return self.words.get(tag, [tag])

    def encode(self, text):
        return type("Encoding", (), {"ids": [LETTERS.index(letter) for letter in text]})

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(LETTERS[token] for token in ids)


@pytest.mark.parametrize("budget", [6, 7, 8, 9, 12])
def test_exactly_the_texts_of_a_template_are_allowed(budget):
    """All texts over a six-letter vocabulary, against a search by hand. A glued word can be read in two ways."""
    words = Words(X=["a", "ab", "abc"], Y=["b", "bc", "cd"])
    constraint = TemplateConstraint(TemplateWords(words, 7, None, words, {"X +Y X": 1}), [1], ["s"])
    texts = [
        f"{a}{b} {c}\n".capitalize()
        for a, b, c in itertools.product(words.words["X"], words.words["Y"], words.words["X"])
    ]
    found, stack = set(), [(constraint.start(0, budget), "")]
    while stack:
        state, text = stack.pop()
        if constraint.done(state):
            found.add(text)
            continue
        tokens = constraint.allowed(state).nonzero().flatten().tolist()
        assert tokens, f"nothing may follow {text!r}"
        stack += [(constraint.advance(state, token), text + LETTERS[token]) for token in tokens]
    assert found == {text for text in texts if len(text) <= budget}


@pytest.mark.parametrize("rows", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tag_set", mostly_slow(["penn", "universal", "content", "word"]))
def test_sampled_lines_fit_their_templates(writer_model, mini_tokenizer, lexicon, tag_set, rows):
    prompt = mini_tokenizer.encode("Shall I compare thee to a summer's day?\n").ids
    lines = [11] * rows
    seeds = [f"5-{row}" for row in range(rows)]
    tables = TemplateWords(mini_tokenizer, MINI_VOCABULARY, MINI_END, lexicon, lexicon.templates[tag_set])
    constraint = TemplateConstraint(tables, lines, seeds)
    found = write(writer_model, [prompt] * rows, DecodingSettings(), 5, end_of_text=MINI_END, constraint=constraint)
    for index, ids in enumerate(found):
        written = mini_tokenizer.decode(ids).removesuffix("\n").split("\n")
        assert len(written) == 11
        for template, line in zip(constraint.chosen[index], written, strict=True):
            assert lexicon.admits(template, line), (template, line)


def test_templates_that_do_not_fit_are_shortened_or_refused(writer_model, mini_tokenizer, lexicon):
    templates = {"DT NN": 1, " ".join(["NN"] * 40): 1000}

    constraint = TemplateConstraint(
        TemplateWords(mini_tokenizer, MINI_VOCABULARY, MINI_END, lexicon, templates), [5], ["s"]
    )
    constraint.start(0, 60)
    assert constraint.chosen[0].count("DT NN") == 4
    constraint.start(0, 15)
    assert constraint.chosen[0] == ["DT NN"] * 5
    with pytest.raises(UserError, match="need 15 tokens, there is room for 14"):
        constraint.start(0, 14)
