"""What a word that nobody knows was perhaps meant to be."""

import difflib
import re

NEAR = 0.7  # of difflib's ratio: "loara" and "lora" have 0.89, "top_p" and "top_k" 0.8


def nearest(word, known, elsewhere=None):
    """The known word that is most like this one, or None. elsewhere: {what others call it: the known word}.

    Capitals, hyphens and underscores make no difference. An abbreviation (attn, full) is near where it is one of a
    single word, and so is a word that begins with a whole known one (lr_rate).
    """
    plain, mine = {_plain(name): name for name in [*(elsewhere or {}), *known]}, _plain(word)
    found = difflib.get_close_matches(mine, plain, n=1, cutoff=NEAR)
    if not found:
        longer = [name for name in plain if len(mine) > 2 and _is_short_for(mine, name)]
        first = _plain(re.split(r"[-_]", word)[0])
        found = longer if len(longer) == 1 else [first] if first in plain else []
    name = plain[found[0]] if found else None
    return (elsewhere or {}).get(name, name)


def did_you_mean(word, known, elsewhere=None, prefix=""):
    """A question for the end of a message, or nothing. prefix: of the known words, "--"."""
    name = nearest(word, known, elsewhere)
    return "" if name is None else f"; did you mean {prefix}{name}?"


def _is_short_for(short, long):
    """Whether the letters of a word are letters of another one, in order, the first one being the same."""
    letters = iter(long)
    return short[0] == long[:1] and all(letter in letters for letter in short)


def _plain(word):
    return re.sub(r"[-_\s]", "", word).lower()
