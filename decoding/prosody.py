"""Measures of a sonnet's form: syllables a line, and how many of the line ends that ABAB CDCD EFEF GG pairs do rhyme.

They need a pronouncing dictionary (CMU's, through the optional package `pronouncing`).
"""

import re

from datasets.sonnets import lines_of, tail_of
from errors import UserError

RHYME_SCHEME = "ABABCDCDEFEFGG"


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


def distinct_ngrams(texts, n):
    """The share of different n-grams of words among all in the lines written, marks left out (Li et al. 2016)."""
    grams = []
    for text in texts:
        words = words_of(tail_of(text).replace("\n", " "))
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def rhyming_pairs():
    """The pairs of line numbers, from 0, that the scheme lets rhyme: (0, 2), (1, 3), ..., (12, 13)."""
    return [
        tuple(place for place, letter in enumerate(RHYME_SCHEME) if letter == wanted)
        for wanted in sorted(set(RHYME_SCHEME))
    ]


def words_of(line):
    """The words of a line in lower case; an apostrophe within a word belongs to it."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", line.lower().replace("\u2019", "'"))
