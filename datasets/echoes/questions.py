"""Pairs of questions that ask the same, or do not: lists of phrasings (questions.toml) over phrases of the corpus."""

import re
import tomllib
from collections import Counter
from itertools import accumulate
from pathlib import Path

from errors import check

PHRASINGS = Path(__file__).with_name("questions.toml")
SAME = 0.42  # share of pairs that ask the same
NARROWED = 0.28  # share of pairs whose questions end with a place, a year or the like
_ACTION = re.compile(r"\bto ([a-z]+(?: [a-z]+){1,6})(?=[.,;?!])")
_PERSONS = re.compile(r"\b(him|her|his|she|he|thee|thy|it|them|they|me|us|we|i)\b")
_NAME = re.compile(r"(?<=[a-z,] )([A-Z][a-z]+(?: [A-Z][a-z]+){0,2})(?= [a-z])")
_PAIR_OF_NOUNS = re.compile(r"\b(?:the|of|a|an|and) ([a-z]{4,} [a-z]{4,})(?=[.,;]| of| is| and| are)")


class Phrases:
    """What questions can be about: `action()` and `thing()`, drawn from what the sentences of a corpus say.

    modern: sentences whose names and compounds are taken. others: sentences whose actions are, too.
    """

    def __init__(self, modern, others, rewriter):
        self.random, counts, wordnet = rewriter.random, rewriter.counts, rewriter.wordnet
        self._actions = [
            action
            for sentence in [*modern, *modern, *others]
            for action in _ACTION.findall(sentence)
            if wordnet.is_a(verb := action.split()[0], "verb") and counts[verb] >= 8 and not _PERSONS.search(action)
        ]
        nouns = [word for word in wordnet.words("noun") if len(word) > 3 and word not in rewriter.stopwords]
        self._nouns = [noun for noun in nouns if noun.replace(" ", "").isalpha() and counts[noun.split()[0]] >= 4]
        frequent = ((8 if " " in noun else counts[noun]) ** 0.5 + 0.5 for noun in self._nouns)
        self._weights = list(accumulate(frequent))
        names = Counter(name.lower() for sentence in modern for name in _NAME.findall(sentence))
        self._names = sorted(name for name, count in names.items() if count >= 3)
        pairs = sorted({pair for sentence in modern for pair in _PAIR_OF_NOUNS.findall(sentence)})
        self._compounds = [
            pair
            for pair in pairs
            if wordnet.is_a(pair.split()[1], "noun") and pair.split()[0] not in rewriter.stopwords
        ]
        check(self._actions and self._nouns, "the texts are too few to make questions of: give more books")

    def action(self):
        return self.random.choice(self._actions)

    def thing(self):
        chance = self.random.random()
        if chance < 0.2 and self._names:
            return self.random.choice(self._names)
        if chance < 0.55 and self._compounds:
            return self.random.choice(self._compounds)
        return self.random.choices(self._nouns, cum_weights=self._weights)[0]


class QuestionPairs:
    """draw() -> (first, second, whether they ask the same)."""

    def __init__(self, phrases, rewriter):
        self.phrases, self.rewriter, self.random = phrases, rewriter, rewriter.random
        self.phrasings = tomllib.loads(PHRASINGS.read_text(encoding="utf-8"))

    def draw(self):
        random = self.random
        kind = random.choices(("actions", "things", "two", "ordered"), (42, 45, 8, 5))[0]
        asked = random.choice(self.phrasings[kind])
        about = self._about(kind)
        first = self._ask(asked, about)
        narrowed = self._narrowing() if random.random() < NARROWED else ""
        if random.random() < SAME:
            second = self._ask(asked, self._reworded(about))
            return self._finish(first, narrowed), self._finish(second, narrowed), True
        chance = random.random()
        if chance < 0.38:  # something else is asked about it
            others = [phrasing for phrasing in self.phrasings[kind] if phrasing is not asked]
            second = self._ask(random.choice(others), self._reworded(about))
        elif chance < 0.8:  # the same is asked about something else
            second = self._ask(asked, self._replaced(kind, about))
        elif chance < 0.92:  # it is narrowed to something else
            narrowed = self._narrowing()
            other = self._narrowing() if random.random() < 0.5 else ""
            second = self._ask(asked, self._reworded(about))
            return self._finish(first, narrowed), self._finish(second, "" if other == narrowed else other), False
        else:
            second = self._ask(random.choice(self.phrasings[kind]), self._about(kind))
        return self._finish(first, narrowed), self._finish(second, narrowed), False

    def _about(self, kind):
        if kind == "actions":
            return {"x": self.phrases.action()}
        if kind == "things":
            return {"x": self.phrases.thing()}
        return {"a": self.phrases.thing(), "b": self.phrases.thing()}

    def _ask(self, phrasing, about):
        return self.random.choice(phrasing).format(**about)

    def _reworded(self, about):
        return {slot: self.rewriter.same(text) if self.random.random() < 0.35 else text for slot, text in about.items()}

    def _replaced(self, kind, about):
        """Something like it: a word is another, or the last word's sibling, or all is; where order counts, turned."""
        random, chance = self.random, self.random.random()
        if kind == "ordered" and chance < 0.5:
            return {"a": about["b"], "b": about["a"]}
        slot = random.choice(list(about))
        text, chance = about[slot], random.random()
        *before, last = text.split()
        new = None
        if chance < 0.5 and before:
            new = self.rewriter.other(text, number=1)
        elif chance < 0.8 and (sibling := self.rewriter.sibling(last)):
            new = " ".join([*before, sibling])
        return about | {slot: new or self._about("actions" if kind == "actions" else "things")["x"]}

    def _narrowing(self):
        chance = self.random.random()
        if chance < 0.5:
            return f" in {self.random.choice(self.phrasings['places'])}"
        if chance < 0.75:
            return f" in {self.random.choice(self.phrasings['years'])}"
        return f" {self.random.choice(('with', 'without', 'for', 'after', 'from'))} {self.phrases.thing()}"

    def _finish(self, question, narrowed):
        return f"{question}{narrowed} ?" if self.random.random() < 0.96 else f"{question}{narrowed}"
