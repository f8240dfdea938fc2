"""Text in other words, and text that says something else: by words, with WordNet and a list of word counts.

Texts are in the course's cleaned form (datasets/paraphrase.py): lower case, marks set apart.
"""

from itertools import accumulate

from errors import check

STOPWORDS = 140  # so many of the commonest words carry no content
KNOWN = 3  # a word that the corpus has at least so often
RARE = 5  # a word drawn at random is in the corpus at least so often
FLATTER = 0.6  # random words are drawn by their counts to this power
FILLERS = ("really", "actually", "just", "exactly", "also", "still")


class Rewriter:
    """counts: Counter of the corpus' words. wordnet: WordNet. random: random.Random."""

    def __init__(self, counts, wordnet, random):
        self.counts, self.wordnet, self.random = counts, wordnet, random
        self.stopwords = {word for word, _ in counts.most_common(STOPWORDS)}
        self._drawn = [word for word, count in counts.items() if count >= RARE and self.has_content(word)]
        check(len(self._drawn) > 1, "the texts are too few: no two words of content come often")
        self._weights = list(accumulate(counts[word] ** FLATTER for word in self._drawn))
        self._synonyms, self._siblings = {}, {}

    def has_content(self, word):
        return word.isalpha() and len(word) > 2 and word not in self.stopwords

    def same(self, text, strength=1.0):
        """The text in other words: synonyms, function words left out, fillers put in."""
        draw, words = self.random.random, []
        for word in text.split():
            chance = draw()
            if self.has_content(word):
                synonym = self.synonym(word) if chance < 0.22 * strength else None
                words.append(synonym or word)
            elif not word.isalpha() or chance >= 0.1 * strength:
                words.append(word)
            if draw() < 0.02 * strength:
                words.append(self.random.choice(FILLERS))
        return " ".join(words) or text

    def other(self, text, number=None):
        """The text with so many (one to three) words of content replaced by siblings or by any others; None: it has
        none."""
        words = text.split()
        places = [place for place, word in enumerate(words) if self.has_content(word)]
        if not places:
            return None
        number = min(number or self.random.choice((1, 1, 1, 2, 2, 3)), len(places))
        for place in self.random.sample(places, number):
            sibling = self.sibling(words[place]) if self.random.random() < 0.6 else None
            words[place] = sibling or self.another_than(words[place])
        return " ".join(words)

    def any_word(self):
        return self.random.choices(self._drawn, cum_weights=self._weights)[0]

    def another_than(self, word):
        while (drawn := self.any_word()) == word:
            pass
        return drawn

    def synonym(self, word):
        """One, or None. A plural gets the plural of its singular's."""
        if found := self._found(self._synonyms, word, self.wordnet.synonyms):
            return self.random.choice(found)
        if word.endswith("s") and len(word) > 3:
            found = self._found(self._synonyms, word[:-1], self.wordnet.synonyms)
            plurals = [f"{other}s" for other in found if " " not in other and not other.endswith("s")]
            return self.random.choice(plurals) if plurals else None
        return None

    def sibling(self, word):
        found = self._found(self._siblings, word, self.wordnet.siblings)
        return self.random.choice(found) if found else None

    def _found(self, kept, word, look_up):
        """What WordNet has for a word, as far as the corpus knows it."""
        if word not in kept:
            kept[word] = [other for other in look_up(word) if other != word and self.counts[other.split()[0]] >= KNOWN]
        return kept[word]
