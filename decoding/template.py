"""Part-of-speech templates: every line is written to the word classes of a real line.

The idea is that of "The Mechanical Bard" (Agnew et al. 2023): a template such as

    PRP VBP DT JJ NN +, CC DT NN

has a tag or a mark a word; + stands where no space comes before it. Templates are taken from the lines of a training
file. (How a line is written to one: decoding/template_constraint.py.)

The tagger and its lexicon are those of TextBlob (the optional package `textblob`, which needs nothing but its wheel). A
word has the tags of the lexicon and those with which the training file shows it. Tags can be made coarser: the
universal tag set (Petrov, Das & McDonald 2012), content and function words, or only words and marks. A place that no
word fits (a tag of one's own in an edited file) takes the words of its universal tag, and if there are none any word.
"""

import re
from collections import Counter, defaultdict
from typing import NamedTuple

from config import TAG_SETS
from errors import UserError
from files import read_text

WORD = "WORD"
UNIVERSAL = {  # Penn Treebank tag: universal tag
    **dict.fromkeys(("CC",), "CONJ"),
    **dict.fromkeys(("CD",), "NUM"),
    **dict.fromkeys(("DT", "EX", "PDT", "WDT"), "DET"),
    **dict.fromkeys(("IN",), "ADP"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "ADJ"),
    **dict.fromkeys(("NN", "NNS", "NNP", "NNPS"), "NOUN"),
    **dict.fromkeys(("POS", "RP", "TO"), "PRT"),
    **dict.fromkeys(("PRP", "PRP$", "WP", "WP$"), "PRON"),
    **dict.fromkeys(("RB", "RBR", "RBS", "WRB"), "ADV"),
    **dict.fromkeys(("MD", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ"), "VERB"),
}


class Place(NamedTuple):
    """One place of a template: a tag or a mark; glued: no space before it; capital: begins a line or a sentence."""

    tag: str
    glued: bool
    capital: bool


LINE_END, TEXT_END = (Place(mark, True, False) for mark in ("<line end>", "<text end>"))


def coarser(tag, tag_set):
    """A Penn tag in one of TAG_SETS. Marks stay what they are."""
    if tag_set == "penn" or not tag[0].isalpha():
        return tag
    universal = UNIVERSAL.get(tag, "X")
    if tag_set == "universal":
        return universal
    return WORD if tag_set == "word" else "CONTENT" if universal in ("NOUN", "VERB", "ADJ", "ADV") else "FUNCTION"


def split_words(line):
    """[(text, glued)]: words and marks. A possessive 's is a mark; other apostrophes stay in their word."""
    pieces = []
    for match in re.finditer(r"'s\b|\w+(?:(?!'s\b)['-]\w+)*|[^\w\s]", line.replace("\u2019", "'")):
        pieces.append((match[0], match.start() > 0 and not line[match.start() - 1].isspace()))
    return pieces


def load_tagger():
    """(tag, lexicon) of TextBlob: tag(words) -> Penn tags; {word: tag}. Raises UserError where it is missing."""
    try:
        from textblob.en import parser, tag
    except ImportError as error:
        raise UserError(
            "--decode template needs the package textblob: pip install -r requirements-extra.txt"
        ) from error

    def tag_words(words):
        tags = [found for _, found in tag(" ".join(words), tokenize=False)]
        return [re.split(r"[-|]", found)[0] for found in tags]

    return tag_words, {word: found for word, found in parser.lexicon.items() if isinstance(found, str)}


def tag_line(line, tag_words):
    """[(text, glued, Penn tag or mark)] of a line."""
    pieces = split_words(line)
    tags = tag_words([text for text, _ in pieces]) if pieces else []
    if len(tags) != len(pieces):
        raise UserError(f"the tagger gives {len(tags)} tags for the {len(pieces)} words of the line {line!r}")
    return [(text, glued, tag if text[0].isalnum() else text) for (text, glued), tag in zip(pieces, tags, strict=True)]


def template_of(tagged, tag_set="penn"):
    """The template of a tagged line, as text."""
    return " ".join("+" * glued + coarser(tag, tag_set) for _, glued, tag in tagged)


def format_templates(templates):
    """The text of a template file. templates: {template: count}."""
    lines = [
        "# Part-of-speech templates: how often, then the line. A + means: no space before. Edit at will; the count is",
        "# the weight with which a template is drawn.",
    ]
    lines += [
        f"{count}\t{template}" for template, count in sorted(templates.items(), key=lambda item: (-item[1], item[0]))
    ]
    return "\n".join(lines) + "\n"


def load_templates(path):
    """{template: count} of such a file. Raises UserError."""
    templates = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            count, _, template = line.partition("\t")
            if not (re.fullmatch("[0-9]{1,9}", count) and int(count) and template.split()):
                raise UserError(f'{path}, line {number}: must be a count, a tab and tags ("3<tab>DT NN +,")')
            template = " ".join(template.split())
            if template in templates:
                raise UserError(f"{path}, line {number}: this template came before: add its count to that of the other")
            templates[template] = int(count)
    if not templates:
        raise UserError(f"{path} holds no template")
    return templates


def parse_template(template):
    """The Places of a template's text."""
    places, capital = [], True
    for number, text in enumerate(template.split()):
        tag = text[1:] if text[0] == "+" and len(text) > 1 else text
        is_word = tag[0].isalpha()
        places.append(Place(tag, number == 0 or tag != text, capital and is_word))
        capital = tag in ".?!" if is_word or tag in ".?!" else capital
    return places


class Lexicon:
    """Which words have which tags, in all tag sets."""

    def __init__(self, sonnets, tag_words, words):
        """sonnets: training texts; words: {word: Penn tag}, the tagger's own."""
        self.tags = defaultdict(set)  # word -> tags
        self.seen = set()  # the words of the training texts
        self.templates = {tag_set: Counter() for tag_set in TAG_SETS}
        for word, tag in words.items():
            if re.fullmatch(r"[a-z]+|I", word) and tag in UNIVERSAL:
                self._add(word, tag)
        for line in (line for sonnet in sonnets for line in sonnet.splitlines() if line.strip()):
            tagged = tag_line(line.strip(), tag_words)
            for text, _, tag in tagged:
                word = text if tag.startswith("NNP") or text == "I" else text.lower()
                self._add(word, tag)
                self.seen.add(word)
            for tag_set, templates in self.templates.items():
                templates[template_of(tagged, tag_set)] += 1
        self.words = defaultdict(set)  # tag -> words
        for word, tags in self.tags.items():
            for tag in tags:
                self.words[tag].add(word)

    def _add(self, word, tag):
        self.tags[word].update(coarser(tag, tag_set) for tag_set in self.templates)

    def fitting(self, tag):
        """The words for a place: of its tag, or where there are none of a coarser one; a mark stands for itself."""
        if not tag[0].isalpha():
            return {tag}
        return self.words.get(tag) or self.words.get(UNIVERSAL.get(tag, "X")) or self.words[WORD]

    def admits(self, template, line):
        """Whether every word of a line has the tag of its place, and the marks and spaces are the template's."""
        places, pieces = parse_template(template), split_words(line)
        if len(places) != len(pieces):
            return False
        for number, (place, (text, glued)) in enumerate(zip(places, pieces, strict=True)):
            fitting = self.fitting(place.tag)
            forms = {text, text.lower()} | ({text[:1].lower() + text[1:]} if place.capital else set())
            if (number > 0 and glued != place.glued) or not forms & fitting:
                return False
        return True
