"""Part-of-speech templates: every line is written to the word classes of a real line.

The idea is that of "The Mechanical Bard" (Agnew et al. 2023): a template such as

    PRP VBP DT JJ NN +, CC DT NN

has a tag or a mark a word; + stands where no space comes before it. Templates are taken from the lines of a training
file. While a line is written, a word may come only where the template wants one of its tags. Words are several tokens
long, so the words of a tag are a trie over their tokens: at every node its children may come and, where a word is
complete, whatever begins the next place. A token can be both; then both ways are followed.

The tagger and its lexicon are those of TextBlob (the optional package `textblob`, which needs nothing but its wheel). A
word has the tags of the lexicon and those with which the training file shows it. Tags can be made coarser: the
universal tag set (Petrov, Das & McDonald 2012), content and function words, or only words and marks. A place that no
word fits (a tag of one's own in an edited file) takes the words of its universal tag, and if there are none any word.

Legend: V vocabulary.
"""

import copy
import random
import re
from collections import Counter, defaultdict
from functools import cache
from typing import NamedTuple

import torch

from config import TAG_SETS, UserError
from datasets.files import read_text

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
LONGEST_WORD = 32  # tokens; with that much room every word fits
MAX_WORD_TOKENS = 4  # of a training file's words; of the tagger's own only those are taken that are one token


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
            if not (count.isdigit() and int(count) and template.split()):
                raise UserError(f'{path}, line {number}: must be a count, a tab and tags ("3<tab>DT NN +,")')
            templates[" ".join(template.split())] = int(count)
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


# ---------------------------------------------------------------------------------------------------------------------
# The constraint
# ---------------------------------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """Of a trie: children {token: Node}; terminal: a word ends here; tail: tokens to the nearest end of a word."""

    children: dict
    terminal: bool
    tail: int


LEAF = Node({}, True, 0)


def build_trie(words):
    """A trie of token sequences (tuples)."""
    groups, terminal = defaultdict(list), False
    for tokens in words:
        if tokens:
            groups[tokens[0]].append(tokens[1:])
        else:
            terminal = True
    if not groups:
        return LEAF
    children = {token: build_trie(rest) for token, rest in groups.items()}
    return Node(children, terminal, 0 if terminal else 1 + min(child.tail for child in children.values()))


class State(NamedTuple):
    """plan: the prompt's index; spots: ((place, node), ...), more than one where the tokens can be read in two ways."""

    plan: int
    spots: tuple
    tokens: int


class TemplateConstraint:
    """A Constraint, once `for_prompts` has said how many lines each prompt lacks.

    templates: {template: weight}. Words are chosen so that all lines fit into the tokens there are; UserError (from
    start) if even the shortest words and templates do not.
    """

    def __init__(self, tokenizer, vocab_size, end_of_text, lexicon, templates):
        self.tokenizer, self.vocab_size, self.lexicon = tokenizer, vocab_size, lexicon
        self.texts, self.weights = list(templates), list(templates.values())
        newline = tokenizer.encode("\n").ids[0]
        ends = {newline} if end_of_text is None else {newline, end_of_text}
        self.ends = {LINE_END: build_trie([(newline,)]), TEXT_END: build_trie([(token,) for token in ends])}
        self.root, self.root_mask = cache(self._root), cache(self._root_mask)
        self.next_tokens = {}  # (id of a node, room): its children that fit

    def for_prompts(self, lines, seeds):
        """The constraint under which prompt `index` gets lines[index] lines, each to a template of its own.

        seeds: for each prompt what its templates are drawn with; `chosen` will tell which they were.
        """
        constraint = copy.copy(self)  # the tries and masks are shared
        constraint.lines, constraint.seeds = lines, seeds
        constraint.chosen, constraint.plans, constraint.needed = {}, {}, {}
        return constraint

    def _root(self, place):
        """The trie of the words that fit into a place."""
        if place in self.ends:
            return self.ends[place]
        words = sorted(self.lexicon.fitting(place.tag))
        before = "" if place.glued else " "
        texts = [before + (word[:1].upper() + word[1:] if place.capital else word) for word in words]
        encodings = [tuple(encoding.ids) for encoding in self.tokenizer.encode_batch(texts)]
        usable = [ids for word, ids in zip(words, encodings, strict=True) if self._is_usable(word, ids, place.tag)]
        return build_trie(usable or encodings)

    def _is_usable(self, word, ids, tag):
        """A word whose first token is a word of another class ("the" in "theft") would catch what is meant for that."""
        if len(ids) == 1:
            return True
        first = self.tokenizer.decode(ids[:1]).strip().lower()
        caught = first in self.lexicon.tags and tag not in self.lexicon.tags[first]
        return word in self.lexicon.seen and len(ids) <= MAX_WORD_TOKENS and not caught

    def _tail(self, text):
        """How many tokens a template's line needs at least, its end included."""
        return 1 + sum(self.root(place).tail for place in parse_template(text))

    def _root_mask(self, place, room):
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[self._fitting_children(self.root(place), room)] = True
        return mask

    def _fitting_children(self, node, room):
        """A LongTensor of the tokens after which the word can be ended within `room` tokens, this one included."""
        room = min(room, LONGEST_WORD)
        if (id(node), room) not in self.next_tokens:
            fitting = [token for token, child in node.children.items() if child.tail < room]
            self.next_tokens[id(node), room] = torch.tensor(fitting, dtype=torch.long)
        return self.next_tokens[id(node), room]

    def start(self, index, budget):
        drawn = random.Random(self.seeds[index]).choices(self.texts, self.weights, k=self.lines[index])
        if sum(map(self._tail, drawn)) > budget:  # shorter ones, then, in place of the longest
            shortest = min(self.texts, key=self._tail)
            for place in sorted(range(len(drawn)), key=lambda place: -self._tail(drawn[place])):
                drawn[place] = shortest
                if sum(map(self._tail, drawn)) <= budget:
                    break
        plan = [place for text in drawn for place in (*parse_template(text), LINE_END)]
        plan[-1] = TEXT_END
        needed = [0]
        for place in reversed(plan):
            needed.insert(0, needed[0] + self.root(place).tail)
        if needed[0] > budget:
            raise UserError(
                f"{len(drawn)} lines to templates need {needed[0]} tokens, there is room for {budget}: "
                "raise --max_new_tokens, or give shorter templates"
            )
        self.chosen[index], self.plans[index], self.needed[index] = drawn, plan, needed
        return State(index, ((-1, LEAF),), budget)  # before the first place, as after a word

    def allowed(self, state):
        plan, needed = self.plans[state.plan], self.needed[state.plan]
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        for number, node in state.spots:
            if node.children:
                mask[self._fitting_children(node, state.tokens - needed[number + 1])] = True
            if node.terminal and number + 1 < len(plan):
                mask |= self.root_mask(plan[number + 1], min(state.tokens - needed[number + 2], LONGEST_WORD))
        return mask

    def advance(self, state, token):
        plan, needed, tokens = self.plans[state.plan], self.needed[state.plan], state.tokens - 1
        spots = []
        for number, node in state.spots:
            if token in node.children:
                spots.append((number, node.children[token]))
            if node.terminal and number + 1 < len(plan) and token in self.root(plan[number + 1]).children:
                spots.append((number + 1, self.root(plan[number + 1]).children[token]))
        spots = [(number, node) for number, node in spots if node.tail <= tokens - needed[number + 1]]
        return State(state.plan, tuple(spots), tokens)

    def done(self, state):
        return any(number == len(self.plans[state.plan]) - 1 and node.terminal for number, node in state.spots)
