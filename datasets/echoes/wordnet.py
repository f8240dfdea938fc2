"""The English words of WordNet (Miller 1995), read from the files of its `dict` folder (version 3.x)."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from errors import check
from files import read_text

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


@dataclass
class Sense:
    """One meaning: its words, its definition, examples, and the place of the next wider meaning or None."""

    words: list
    definition: str
    examples: list
    wider: str | None


class WordNet:
    """senses: {part of speech: {place: Sense}}. Raises UserError where the folder holds no WordNet."""

    def __init__(self, folder):
        folder = Path(folder)
        names = [f"{kind}.{part}" for kind in ("data", "index") for part in PARTS_OF_SPEECH]
        lacking = [name for name in names if not (folder / name).is_file()]
        check(not lacking, f"{folder} has no {', '.join(lacking)}: give the `dict` folder of WordNet 3")
        self.senses = {part: dict(_senses(folder / f"data.{part}")) for part in PARTS_OF_SPEECH}
        self._places = {part: dict(_places(folder / f"index.{part}")) for part in PARTS_OF_SPEECH}
        self._narrower = {part: defaultdict(list) for part in ("noun", "verb")}
        for part, narrower in self._narrower.items():
            for place, sense in self.senses[part].items():
                narrower[sense.wider].append(place)

    def words(self, part):
        """All words and phrases of a part of speech."""
        return self._places[part].keys()

    def is_a(self, word, part):
        return word in self._places[part]

    def synonyms(self, word):
        """The other words of the commonest meaning of a word, in each part of speech."""
        found = [self.senses[part][places[word][0]] for part, places in self._places.items() if word in places]
        return [other.lower() for sense in found for other in sense.words if other.lower() != word]

    def siblings(self, word):
        """Words whose commonest neighbour in meaning is the same wider one: cat for dog. Nouns, else verbs."""
        for part, narrower in self._narrower.items():
            if word not in self._places[part]:
                continue
            own = self._places[part][word][0]
            wider = self.senses[part][own].wider
            if wider is not None:
                places = [place for place in narrower[wider] if place != own]
                return [other.lower() for place in places for other in self.senses[part][place].words]
        return []

    def sibling_senses(self, part, place):
        """Other meanings below the same wider one."""
        wider = self.senses[part][place].wider
        places = self._narrower.get(part, {}).get(wider, []) if wider is not None else []
        return [self.senses[part][other] for other in places if other != place]


def _entries(path):
    return (line for line in read_text(path).splitlines() if not line.startswith("  "))  # the licence comes first


def _senses(path):
    """(place, Sense) of every line of a data file; wndb(5WN) says what is where."""
    for line in _entries(path):
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = [re.sub(r"\(.*?\)", "", fields[4 + 2 * number]).replace("_", " ") for number in range(count)]
        first = 5 + 2 * count
        pointers = [fields[place : place + 2] for place in range(first, first + 4 * int(fields[first - 1]), 4)]
        wider = next((place for symbol, place in pointers if symbol in ("@", "@i")), None)
        parts = [part.strip() for part in gloss.strip().split("; ")]
        examples = [part.strip('" ') for part in parts if part.startswith('"')]
        yield fields[0], Sense(words, "; ".join(part for part in parts if part[:1] != '"'), examples, wider)


def _places(path):
    """(word, the places of its meanings, commonest first) of every line of an index file."""
    for line in _entries(path):
        fields = line.split()
        yield fields[0].replace("_", " "), fields[6 + int(fields[3]) :]
