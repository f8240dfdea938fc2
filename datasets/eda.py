"""EDA, "easy data augmentation" (Wei & Zou 2019, arXiv 1901.11196, section 2): a sentence with a few words changed.

One of four operations, each on n = max(1, alpha * number of words) words:

    synonyms     n words give way to a synonym (the paper's replacement)
    insertion    n times a synonym of one of the words is put in somewhere
    swap         n times two words change places
    deletion     each word is left out with probability alpha; one at least stays

Stop words are neither replaced nor looked up. Synonyms are WordNet's, read by nltk. Punctuation stays where it is.
"""

import contextlib
import io
import os
import re
import warnings
import zipfile
import zlib
from functools import cache
from pathlib import Path

from config import EDA_OPERATIONS
from errors import UserError

STOP_WORDS = frozenset(
    """a about above after again against all also am an and any are aren't as at be because been before being below
    between both but by can can't could couldn't did didn't do does doesn't doing don't down during each else ever few
    for from further had hadn't has hasn't have haven't having he her here hers herself him himself his how i if in into
    is isn't it its itself just let me more most must mustn't my myself no nor not of off on once one only or other
    ought our ours ourselves out over own same shall she should shouldn't so some such than that the their theirs them
    themselves then there these they this those through to too under until up upon us very was wasn't we were weren't
    what when where which while who whom whose why will with won't would wouldn't you your yours yourself""".split()  # noqa: SIM905
)
LEXICOGRAPHER_FILES = 45  # of WordNet 3.0; nltk wants their names, which Debian's package leaves out and nobody needs
DEBIANS = Path("/usr/share/wordnet")
HOW_TO_GET_WORDNET = (
    "get it with `python -m nltk.downloader wordnet` or, on Debian and Ubuntu, `apt install wordnet-base`, "
    "or name its folder with --wordnet"
)


@cache
def load_synonyms(folder=None):
    """synonyms(word) -> sorted list of other words, from WordNet in a folder, or wherever nltk or Debian keep it.

    Read once: the script looks for what is missing before the run, and uses it later.
    Raises UserError where nltk or WordNet's files are missing.
    """
    try:
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError as error:
        raise UserError("--augment eda needs the package nltk: pip install -r requirements-extra.txt") from error

    class Reader(WordNetCorpusReader):
        def open(self, file):
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d}\t{number:02d}\t0\n" for number in range(LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version="wordnet"):  # to another version's numbers, for other languages: not wanted here
            return {}

    try:
        root = _find_wordnet(nltk, folder)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError) as error:
        raise UserError(f"nltk's wordnet.zip is damaged or no zip file ({error}): {HOW_TO_GET_WORDNET}") from error
    if isinstance(root, str):
        nltk.data.path.append(root)  # nltk reads only from folders that it was told of
    try:
        with warnings.catch_warnings(action="ignore"):  # that there are no other languages
            wordnet = Reader(root, None)
    except Exception as error:  # nltk raises whatever its parser meets in a damaged file
        raise _unreadable(root, error) from error
    return _synonyms_of(wordnet, root)


def _synonyms_of(wordnet, root):
    """synonyms(word) as above, of an nltk reader."""

    @cache
    def synonyms(word):
        try:
            # nltk only warns of a word whose entry is not there
            with warnings.catch_warnings(action="error", category=UserWarning):
                found = [name for synset in wordnet.synsets(word) for name in synset.lemma_names()]
        except Exception as error:
            raise _unreadable(root, error) from error
        names = {name.replace("_", " ").replace("-", " ").lower() for name in found}
        return sorted(name for name in names if name != word and re.fullmatch("[a-z ]+", name))

    return synonyms


def _unreadable(root, error):
    fault = str(error)[:80] or type(error).__name__
    return UserError(f"WordNet in {root} cannot be read ({fault}): {HOW_TO_GET_WORDNET}")


def _find_wordnet(nltk, folder):
    """The folder with WordNet's files, a string, or nltk's pointer to them within a zip file. Raises UserError."""
    places = [Path(folder)] if folder else [Path(path, "corpora", "wordnet") for path in nltk.data.path]
    places += [] if folder else [DEBIANS]
    for place in places:
        if (place / "index.noun").is_file() and os.access(place / "data.noun", os.R_OK):
            return str(place.resolve())
    where = f"--wordnet: {folder} has no"
    if not folder:
        where = "no"
        with contextlib.suppress(LookupError):  # as the downloader leaves it
            return nltk.data.find("corpora/wordnet.zip/wordnet/")
    raise UserError(f"{where} WordNet (index.noun, data.noun): {HOW_TO_GET_WORDNET}")


def change(text, draw, synonyms, alpha=0.1, operations=EDA_OPERATIONS):
    """The text after one of the operations, drawn by draw (a random.Random); it can come out unchanged.

    operations: names out of OPERATIONS. Words: by spaces.
    """
    tokens = text.split()
    places = [place for place, token in enumerate(tokens) if token[0].isalnum()]
    if not places:
        return text
    operation = OPERATIONS[draw.choice(operations)]
    return " ".join(operation(tokens, places, alpha, draw, synonyms))


def replace(tokens, places, alpha, draw, synonyms):
    found = [place for place in places if tokens[place] not in STOP_WORDS and synonyms(tokens[place])]
    chosen = set(draw.sample(found, min(len(found), _times(places, alpha))))
    return [draw.choice(synonyms(token)) if place in chosen else token for place, token in enumerate(tokens)]


def insert(tokens, places, alpha, draw, synonyms):
    found = [tokens[place] for place in places if tokens[place] not in STOP_WORDS and synonyms(tokens[place])]
    tokens = list(tokens)
    for _ in range(_times(places, alpha) if found else 0):
        tokens.insert(draw.choice(places), draw.choice(synonyms(draw.choice(found))))
    return tokens


def swap(tokens, places, alpha, draw, synonyms):
    tokens = list(tokens)
    for _ in range(_times(places, alpha) if len(places) > 1 else 0):
        first, second = draw.sample(places, 2)
        tokens[first], tokens[second] = tokens[second], tokens[first]
    return tokens


def delete(tokens, places, alpha, draw, synonyms):
    gone = {place for place in places if draw.random() < alpha}
    if len(gone) == len(places):
        gone.remove(draw.choice(places))
    return [token for place, token in enumerate(tokens) if place not in gone]


def _times(places, alpha):
    return max(1, int(alpha * len(places)))


OPERATIONS = dict(zip(EDA_OPERATIONS, (replace, insert, swap, delete), strict=True))
NEED_SYNONYMS = {"synonyms", "insertion"}
