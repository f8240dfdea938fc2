"""Make a corpus in which passages, definitions and questions come back in other words, for pretrain.py.

    python -m datasets.echoes --books FOLDER --modern FOLDER --wordnet FOLDER --out corpus

A small model that has read each text once has no use for looking back: it never learns to compare. Here part of the
text comes twice. The folder OUT gets, besides copies of the books and of the modern texts (whose last part becomes a
file of its own, to be held out):

    glosses.txt     words with their definitions and examples
    passages.txt    passages, then the same again in other words, or their sentences one by one
    questions.txt   questions that ask the same, one under the other
    pairs.csv       pairs of questions and of sentences that say the same or not, in the course's format

Nothing comes from the question pairs of the course. The same seed makes the same files.
"""

import argparse
import random
import re
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from cli.script import run_script, say
from datasets.echoes.questions import SAME, Phrases, QuestionPairs
from datasets.echoes.rewording import Rewriter
from datasets.echoes.wordnet import PARTS_OF_SPEECH, WordNet
from datasets.paraphrase import format_rows, preprocess_string
from errors import UserError, check
from files import read_text, write_text

HELD_OUT = 0.02  # the end of every modern text
_PARAGRAPHS = re.compile(r"\n\s*\n|\n(?=[A-Z])")
_MARKS = str.maketrans({"\u2019": "'", "\u2014": " , ", '"': "", "\u201c": "", "\u201d": ""})
_SENTENCES = re.compile(r"(?<=[.?!])[\"”]?\s+")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", required=True, help="folder of .txt files, verse and prose")
    parser.add_argument("--modern", required=True, help="folder of .txt files in today's English")
    parser.add_argument("--held_out", default="", help="comma-separated books that nothing is made of, to measure on")
    parser.add_argument("--wordnet", required=True, help="the `dict` folder of WordNet 3")
    parser.add_argument("--out", default="corpus", help="the new folder (default: corpus)")
    parser.add_argument("--glosses", type=int, default=60_000, help="definitions (default: 60000)")
    parser.add_argument("--passages", type=int, default=30_000, help="passages (default: 30000)")
    parser.add_argument("--questions", type=int, default=50_000, help="questions with a twin (default: 50000)")
    parser.add_argument("--pairs", type=int, default=80_000, help="pairs with an answer (default: 80000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    out = Path(options.out)
    check(not out.exists(), f"--out: there is {out} already: name another folder, or move that one away")
    books, modern = (read_folder(folder) for folder in (options.books, options.modern))
    held_out = [name for name in options.held_out.split(",") if name]
    unknown = [name for name in held_out if name not in books]
    check(not unknown, f"--held_out: there is no {', '.join(unknown)} in {options.books}; give names of files in it")
    texts = {f"{'held-out' if name in held_out else 'books'}/{name}": text for name, text in books.items()}
    for name, text in modern.items():
        cut = text.rfind("\n", 0, int(len(text) * (1 - HELD_OUT))) + 1
        texts |= {f"modern/{name}": text[:cut], f"held-out/{name}": text[cut:]}
    read = {part: [text for name, text in texts.items() if name.startswith(part)] for part in ("books/", "modern/")}
    maker = Echoes(*read.values(), WordNet(options.wordnet), random.Random(options.seed))
    texts["glosses.txt"] = "\n".join(maker.gloss() for _ in progress(options.glosses, "definitions"))
    texts["passages.txt"] = "\n\n".join(maker.passage() for _ in progress(options.passages, "passages"))
    texts["questions.txt"] = "\n\n".join(maker.twins() for _ in progress(options.questions // 3, "questions"))
    pairs = ((*maker.pair(), f"echo{number}") for number in progress(options.pairs, "pairs"))
    texts["pairs.csv"] = format_rows(pairs)
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(out / name, text)
    held = ",".join(name for name in texts if name.startswith("held-out/"))
    say(f"{out}: {len(texts)} files, {sum(map(len, texts.values())) / 1e6:.1f} million characters; --held_out {held}")


def read_folder(folder):
    texts = {path.name: read_text(path) for path in sorted(Path(folder).glob("*.txt"))}
    if not texts:
        raise UserError(f"{folder} holds no .txt file")
    return texts


def progress(number, what):
    return tqdm(range(number), what, disable=None)


def sentences(text):
    """Those of 4 to 28 words, each a line."""
    found = []
    for paragraph in _PARAGRAPHS.split(text):
        found += _SENTENCES.split(" ".join(paragraph.split()))
    return [one for one in found if 4 <= len(one.split()) <= 28 and one[-1:] in '.?!"”']


def clean(text):
    """As the course's questions are cleaned; quotation marks would end the question in the prompt."""
    return preprocess_string(text.translate(_MARKS))


class Echoes:
    """The documents. books, modern: texts without what is held out. Every method makes one, by the random generator."""

    def __init__(self, books, modern, wordnet, random):
        self.random, self.wordnet = random, wordnet
        self.modern = [one for text in modern for one in sentences(text)]
        self.old = [one for text in books for one in sentences(text)]
        senses = (sense for part in PARTS_OF_SPEECH for sense in wordnet.senses[part].values())
        self.examples = [f"{one} ." for sense in senses for one in sense.examples if 4 <= len(one.split()) <= 25]
        texts = [*self.modern, *self.examples, *self.old]
        counts = Counter(word for one in texts for word in clean(one).split())
        self.rewriter = Rewriter(counts, wordnet, random)
        self.places = {
            part: [place for place, sense in senses.items() if counts[sense.words[0].lower().split()[0]] >= 2]
            for part, senses in wordnet.senses.items()
        }
        self.asked = [clean(one) for one in [*self.modern, *self.old] if one.endswith("?") and len(one.split()) <= 22]
        phrases = Phrases(self.modern, [*self.examples, *self.old], self.rewriter)
        self.question_pairs = QuestionPairs(phrases, self.rewriter)

    def pair(self):
        """(first, second, whether they say the same)"""
        make = self.random.choices((self.question_pairs.draw, self._sentences, self._definitions), (66, 22, 12))[0]
        first, second, same = make()
        return (second, first, same) if self.random.random() < 0.5 else (first, second, same)

    def twins(self):
        """Three questions, each with one that asks the same."""
        lines = []
        while len(lines) < 6:
            first, second, same = self.pair()
            lines += [first, second] if same else []
        return "\n".join(lines)

    def passage(self):
        """One to four sentences, then the same in other words, in order or not; or each with its own twin."""
        random, source = self.random, self.modern if self.random.random() < 0.6 else self.old
        number = random.randint(1, 4)
        start = random.randrange(len(source) - number)
        lines = source[start : start + number]
        if random.random() < 0.5:
            lines = [clean(line) for line in lines]
        again = [self.rewriter.same(line, random.choice((0, 0.5, 1))) for line in lines]
        if random.random() < 0.5:
            return "\n".join(line for both in zip(lines, again, strict=True) for line in both)
        if random.random() < 0.4:
            random.shuffle(again)
        between = random.choice(("\n", "\n", " "))
        return between.join([*lines, *again])

    def gloss(self):
        """A word with its definition."""
        part = self.random.choices(PARTS_OF_SPEECH, (66, 17, 14, 3))[0]
        sense = self.wordnet.senses[part][self.random.choice(self.places[part])]
        word, chance = self.random.choice(sense.words), self.random.random()
        if part == "noun" and chance < 0.3:
            line = f"What is {word}? It is {sense.definition}."
        elif chance < 0.7:
            line = f"{word}: {sense.definition}"
        else:
            line = f"{', '.join(sense.words)} ({part}): {sense.definition}"
        return f'{line} "{self.random.choice(sense.examples)}"' if sense.examples else line

    def _sentences(self):
        random = self.random
        source = self.asked if random.random() < 0.6 else self.modern if random.random() < 0.7 else self.examples
        first = clean(random.choice(source))
        if random.random() < SAME:
            return first, self.rewriter.same(first, 1.6), True
        second = self.rewriter.other(first) or self.rewriter.any_word()
        return first, self.rewriter.same(second) if random.random() < 0.5 else second, False

    def _definitions(self):
        """Questions about a word, or for one."""
        random, part = self.random, self.random.choices(("noun", "verb", "adj"), (70, 15, 15))[0]
        place = random.choice(self.places[part])
        sense = self.wordnet.senses[part][place]
        other = random.choice(
            self.wordnet.sibling_senses(part, place) or [self.wordnet.senses[part][random.choice(self.places[part])]]
        )
        about = ("what is {} ?", "what does {} mean ?", "what is the meaning of {} ?")
        wanted = ("what is the word for {} ?", "what do you call {} ?", "what is {} called ?")
        word, definition = random.choice(sense.words).lower(), clean(sense.definition.split(";")[0])
        phrasings, asked, same = about, word, [name.lower() for name in sense.words if name.lower() != word]
        if random.random() < 0.5 or not same:
            phrasings, asked, same = wanted, definition, [self.rewriter.same(definition)]
        different = other.words[0].lower() if phrasings is about else clean(other.definition.split(";")[0])
        is_same = random.random() < SAME
        second = random.choice(same) if is_same else different
        return random.choice(phrasings).format(asked), random.choice(phrasings).format(second), is_same


if __name__ == "__main__":
    run_script(main)
