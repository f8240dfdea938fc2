"""The form of a sonnet, as a constraint while it is written.

The lines that are missing, each of a sane length, none blank; no end before the last one, an end after it. Left to
itself a model ends its text where it likes, and one that stops after ten lines cannot be mended.

Legend: V vocabulary.
"""

import re
from typing import NamedTuple

import torch

from decoding.constraint import Constraint, token_texts
from errors import UserError

# The lines of Shakespeare's sonnets have 28 to 60 characters. A line cannot end before MIN_CHARS; from END_CHARS on no
# further word begins, the next one begins the next line; at MAX_CHARS a line ends even within a word.
MIN_CHARS, END_CHARS, MAX_CHARS = 25, 52, 66


class Line(NamedTuple):
    """Where a text stands: lines still to be written, this one included; characters of this one; tokens left."""

    lines: int
    chars: int
    line_tokens: int  # for this line, its end included
    tokens: int  # for all of them


class LineTokens:
    """What a tokenizer's tokens are to a line of verse: tables that every `SonnetForm` shares."""

    def __init__(self, tokenizer, vocab_size, end_of_text):
        texts = token_texts(tokenizer, vocab_size)
        self.newline = tokenizer.encode("\n").ids[0]
        self.end_of_text = end_of_text
        self.lengths = [len(text) for text in texts]
        self.is_text = torch.tensor([_is_text(text) for text in texts])
        self.ends_word = torch.tensor([text[:1].isspace() for text in texts])  # begins another, or ends the line
        if end_of_text is not None:
            self.ends_word[end_of_text] = True
        begins_line = re.compile(r"[\"'\u201c\u2018(]?\w|[\"'\u201c\u2018]$")
        self.starts_line = torch.tensor([bool(begins_line.match(text)) for text in texts])
        self.token_lengths = torch.tensor(self.lengths)
        self.masks = {}

    def mask(self, chars, must_end, last_line):
        """The tokens that may come in a line of so many characters, a boolean (V,) tensor; computed once."""
        key = (chars, must_end, last_line)
        if key not in self.masks:
            self.masks[key] = self._mask(*key)
        return self.masks[key]

    def _mask(self, chars, must_end, last_line):
        room = MAX_CHARS - chars
        mask = self.is_text & (self.token_lengths <= room)
        if chars == 0:
            return mask & self.starts_line
        if chars >= END_CHARS:
            mask &= ~self.ends_word
        if must_end or room <= 0:
            mask = torch.zeros_like(mask)
        if must_end or chars >= MIN_CHARS:
            mask[self.newline] = True
            if last_line and self.end_of_text is not None:
                mask[self.end_of_text] = True
        return mask


class SonnetForm(Constraint):
    """A Constraint under which prompt `index` gets exactly lines[index] further lines. tokens: LineTokens.

    The tokens are shared out evenly among the lines to come, so that they always suffice. A line that has used up its
    share must end: then, and only then, it may be shorter than MIN_CHARS. Where no further word may begin, a line ends
    with the probability that one would: struck alone, those words would leave it to pieces of words, which are rare
    there, to be glued to the last one. Raises UserError (from start) if there are fewer than two tokens a line.
    """

    def __init__(self, tokens, lines):
        self.tokens, self.lines = tokens, lines

    def start(self, index, budget):
        lines = self.lines[index]
        if budget < 2 * lines:
            raise UserError(
                f"{lines} lines do not fit into {budget} tokens: raise --max_new_tokens, or shorten prompts"
            )
        return Line(lines, 0, budget // lines, budget)

    def allowed(self, state):
        return self.tokens.mask(state.chars, state.line_tokens == 1, state.lines == 1)

    def moved(self, state):
        if state.chars < END_CHARS or state.line_tokens == 1:
            return None
        return self.tokens.ends_word & ~self.allowed(state), self.tokens.newline

    def advance(self, state, token):
        tokens = state.tokens - 1
        if token not in (self.tokens.newline, self.tokens.end_of_text):
            return Line(state.lines, state.chars + self.tokens.lengths[token], state.line_tokens - 1, tokens)
        lines = state.lines - 1
        return Line(lines, 0, tokens // lines if lines else 0, tokens)

    def done(self, state):
        return state.lines == 0


def _is_text(text):
    """Not blank, no part of a character, no line break of any kind, at most one space before it."""
    one_line = len(text.splitlines()) == 1 and text[-1:].isprintable()
    return one_line and bool(text.strip()) and not text.startswith("  ")
