"""The form of a Shakespearean sonnet: a constraint while it is written, and measures of what was written.

The constraint: the lines that are missing, each of a sane length, none blank; no end before the last one, an end after
it. Left to itself a model ends its text where it likes, and one that stops after ten lines cannot be mended.

The measures need a pronouncing dictionary (CMU's, through the optional package `pronouncing`): syllables a line, and
how many of the line ends that ABAB CDCD EFEF GG pairs do rhyme.

Legend: V vocabulary.
"""

import copy
import re
from typing import NamedTuple

import torch

from config import UserError
from datasets.sonnets import lines_of
from decoding.constraint import token_texts

RHYME_SCHEME = "ABABCDCDEFEFGG"
# The lines of Shakespeare's sonnets have 28 to 60 characters. A line cannot end before MIN_CHARS; from END_CHARS on no
# further word begins; at MAX_CHARS it ends even within a word.
MIN_CHARS, END_CHARS, MAX_CHARS = 25, 52, 66


class Line(NamedTuple):
    """Where a text stands: lines still to be written, this one included; characters of this one; tokens left."""

    lines: int
    chars: int
    line_tokens: int  # for this line, its end included
    tokens: int  # for all of them


class SonnetForm:
    """A Constraint, once `for_prompts` has said how many lines each prompt lacks.

    The tokens are shared out evenly among the lines to come, so that they always suffice. A line that has used up its
    share must end: then, and only then, it may be shorter than MIN_CHARS. Raises UserError (from start) if there are
    fewer than two tokens a line.
    """

    def __init__(self, tokenizer, vocab_size, end_of_text):
        texts = token_texts(tokenizer, vocab_size)
        self.newline = tokenizer.encode("\n").ids[0]
        self.end_of_text = end_of_text
        self.lengths = [len(text) for text in texts]
        self.is_text = torch.tensor([_is_text(text) for text in texts])
        self.starts_word = torch.tensor([text[:1].isspace() for text in texts])
        begins_line = re.compile(r"[\"'\u201c\u2018(]?\w|[\"'\u201c\u2018]$")
        self.starts_line = torch.tensor([bool(begins_line.match(text)) for text in texts])
        self.token_lengths = torch.tensor(self.lengths)
        self.masks = {}

    def for_prompts(self, lines, seeds=None):
        """The constraint under which prompt `index` gets exactly lines[index] further lines. Nothing needs a seed."""
        constraint = copy.copy(self)  # the tables and masks are shared
        constraint.lines = lines
        return constraint

    def start(self, index, budget):
        lines = self.lines[index]
        if budget < 2 * lines:
            raise UserError(
                f"{lines} lines do not fit into {budget} tokens: raise --max_new_tokens, or shorten prompts"
            )
        return Line(lines, 0, budget // lines, budget)

    def allowed(self, state):
        key = (state.chars, state.line_tokens == 1, state.lines == 1)
        if key not in self.masks:
            self.masks[key] = self._mask(*key)
        return self.masks[key]

    def _mask(self, chars, must_end, last_line):
        room = MAX_CHARS - chars
        mask = self.is_text & (self.token_lengths <= room)
        if chars == 0:
            return mask & self.starts_line
        if chars >= END_CHARS:
            mask &= ~self.starts_word
        if must_end or room <= 0:
            mask = torch.zeros_like(mask)
        if must_end or chars >= MIN_CHARS:
            mask[self.newline] = True
            if last_line and self.end_of_text is not None:
                mask[self.end_of_text] = True
        return mask

    def advance(self, state, token):
        tokens = state.tokens - 1
        if token not in (self.newline, self.end_of_text):
            return Line(state.lines, state.chars + self.lengths[token], state.line_tokens - 1, tokens)
        lines = state.lines - 1
        return Line(lines, 0, tokens // lines if lines else 0, tokens)

    def done(self, state):
        return state.lines == 0


def _is_text(text):
    """Not blank, no part of a character, no line break of any kind, at most one space before it."""
    one_line = len(text.splitlines()) == 1 and text[-1:].isprintable()
    return one_line and bool(text.strip()) and not text.startswith("  ")


# ---------------------------------------------------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------------------------------------------------


def load_pronouncing():
    """The optional package. Raises UserError where it is missing."""
    try:
        import pronouncing
    except ImportError as error:
        raise UserError(
            "syllables and rhymes need the package pronouncing: pip install -r requirements-extra.txt"
        ) from error
    return pronouncing


def syllables(line, pronouncing):
    """Syllables of a line. A word that the dictionary lacks is guessed by its groups of vowels."""
    total = 0
    for word in words_of(line):
        pronunciations = pronouncing.phones_for_word(word)
        if pronunciations:
            total += pronouncing.syllable_count(pronunciations[0])
        else:
            groups = len(re.findall(r"[aeiouy]+", word))
            silent_e = word.endswith("e") and not word.endswith("le")
            total += max(1, groups - (silent_e and groups > 1))
    return total


def rhymes(first, second, pronouncing):
    """Whether two words rhyme (from the last stressed vowel on, in any of their pronunciations); None: unknown word.

    A word is no rhyme of itself.
    """
    parts = [set(map(pronouncing.rhyming_part, pronouncing.phones_for_word(word))) for word in (first, second)]
    if not all(parts):
        return None
    return first != second and not parts[0].isdisjoint(parts[1])


def measure_form(texts, given_lines, pronouncing):
    """{"syllables a line", "10 syllables", "rhymes", "rhymes known"} over the lines of texts after the given ones.

    "10 syllables": the share of such lines. "rhymes": of the line ends that the rhyme scheme pairs, the share that do
    rhyme, pairs with an unknown word left out; "rhymes known": the share of pairs that were not. A pair counts if at
    least one of its lines was written.
    """
    counts, outcomes = [], []
    for text in texts:
        lines = lines_of(text)
        counts += [syllables(line, pronouncing) for line in lines[given_lines:]]
        for first, second in rhyming_pairs():
            if given_lines <= second < len(lines):
                ends = [words_of(lines[place])[-1:] for place in (first, second)]
                outcomes.append(rhymes(*ends[0], *ends[1], pronouncing) if all(ends) else None)
    known = [outcome for outcome in outcomes if outcome is not None]
    return {
        "syllables a line": sum(counts) / max(1, len(counts)),
        "10 syllables": sum(count == 10 for count in counts) / max(1, len(counts)),
        "rhymes": sum(known) / max(1, len(known)),
        "rhymes known": len(known) / max(1, len(outcomes)),
    }


def rhyming_pairs():
    """The pairs of line numbers, from 0, that the scheme lets rhyme: (0, 2), (1, 3), ..., (12, 13)."""
    return [
        tuple(place for place, letter in enumerate(RHYME_SCHEME) if letter == wanted)
        for wanted in sorted(set(RHYME_SCHEME))
    ]


def words_of(line):
    """The words of a line in lower case; an apostrophe within a word belongs to it."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", line.lower().replace("\u2019", "'"))
