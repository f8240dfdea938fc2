"""Sonnets of exactly 14 sane lines, whatever the model and however few tokens."""

import pytest
import torch

from config import DecodingSettings
from decoding.constraint import constrain
from decoding.form import END_CHARS, MAX_CHARS, MIN_CHARS, Line, LineTokens, SonnetForm
from errors import UserError
from tests.helpers import MINI_END, MINI_VOCABULARY
from tests.writing import search, write


@pytest.mark.parametrize("rows", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_sampled_sonnets_have_their_form(writer_model, mini_tokenizer, rows):
    prompt = "Shall I compare thee to a summer's day?\nThou art\nRough winds do shake\n"
    ids, lines = mini_tokenizer.encode(prompt).ids, ([11, 1, 2, 5, 14] * rows)[:rows]
    form = SonnetForm(LineTokens(mini_tokenizer, MINI_VOCABULARY, MINI_END), lines)
    settings = DecodingSettings(max_new_tokens=400)
    found = write(writer_model, [ids] * rows, settings, 1, end_of_text=MINI_END, constraint=form)
    for wanted, new_ids in zip(lines, found, strict=True):
        written = mini_tokenizer.decode(new_ids).removesuffix("\n").split("\n")
        assert len(written) == wanted
        share = (256 - len(ids)) // wanted
        for line in written:
            assert line.strip() and len(line.splitlines()) == 1 and len(line) <= MAX_CHARS
            assert len(line) >= MIN_CHARS or len(mini_tokenizer.encode(line).ids) >= share - 4  # cut: no tokens left
            assert " " not in line[END_CHARS:].lstrip()
    assert len({tuple(new_ids) for new_ids in found}) == rows


def test_a_long_line_ends_as_probably_as_another_word_would_begin(mini_tokenizer):
    """Token by token: what follows a word (a space, a line break, the end) ends the line, what goes on with it may."""
    form = SonnetForm(LineTokens(mini_tokenizer, MINI_VOCABULARY, MINI_END), [2])
    texts = [mini_tokenizer.decode([token]) for token in range(MINI_VOCABULARY)]
    newline, scores = mini_tokenizer.encode("\n").ids[0], torch.randn(1, MINI_VOCABULARY).double()
    for lines in (2, 1):
        expected = scores[0].exp()
        for token, text in enumerate(texts):
            if token == newline:
                continue
            if text[:1].isspace() or (token == MINI_END and lines == 2):
                expected[newline] += expected[token]
                expected[token] = 0
            fits = len(text) <= MAX_CHARS - END_CHARS and text.isprintable()
            if not (fits and text.strip() and "\ufffd" not in text) and token != MINI_END:
                expected[token] = 0
        found = constrain(scores, form, [Line(lines, END_CHARS, 9, 9 * lines)])
        torch.testing.assert_close(found[0].exp().double(), expected, atol=1e-9, rtol=1e-9)
    for line in (Line(2, END_CHARS - 1, 9, 18), Line(2, END_CHARS, 1, 10)):  # words may begin; the line must end
        allowed = form.allowed(line)
        torch.testing.assert_close(constrain(scores, form, [line])[0, allowed], scores[0, allowed])


def test_the_form_holds_however_few_tokens_there_are(writer_model, mini_tokenizer):
    ids = mini_tokenizer.encode("O\n").ids
    form = SonnetForm(LineTokens(mini_tokenizer, MINI_VOCABULARY, MINI_END), [11] * 20)
    found = write(writer_model, [ids] * 20, DecodingSettings(max_new_tokens=22), 1, MINI_END, constraint=form)
    for new_ids in found:
        assert len(mini_tokenizer.decode(new_ids).split()) >= 11 and mini_tokenizer.decode(new_ids).count("\n") >= 10
    with pytest.raises(UserError, match="11 lines do not fit into 21 tokens"):
        write(writer_model, [ids], DecodingSettings(max_new_tokens=21), 1, MINI_END, constraint=form)


def test_the_form_holds_in_beams_and_with_filters(writer_model, mini_tokenizer):
    ids = mini_tokenizer.encode("O\n").ids
    form = SonnetForm(LineTokens(mini_tokenizer, MINI_VOCABULARY, MINI_END), [3, 4])
    settings = DecodingSettings(max_new_tokens=90, beams=3, no_repeat_ngram=1)
    for lines, texts in zip((3, 4), search(writer_model, [ids] * 2, settings, MINI_END, constraint=form), strict=True):
        for new_ids, _ in texts:
            assert len(mini_tokenizer.decode(new_ids).removesuffix("\n").split("\n")) == lines
