"""Part-of-speech templates as a constraint: a word may come only where the template wants one of its tags.

Words are several tokens long, so the words of a tag are a trie over their tokens: at every node its children may come
and, where a word is complete, whatever begins the next place. A token can be both; then both ways are followed.

Legend: V vocabulary.
"""

import random
from collections import defaultdict
from functools import cache
from typing import NamedTuple

import torch

from decoding.constraint import Constraint
from decoding.template import LINE_END, TEXT_END, parse_template
from errors import UserError

LONGEST_WORD = 32  # tokens; with that much room every word fits
MAX_WORD_TOKENS = 4  # of a training file's words; of the tagger's own only those are taken that are one token


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


class TemplateWords:
    """Which tokens a template's places admit: tries and masks that every `TemplateConstraint` shares.

    templates: {template: weight}.
    """

    def __init__(self, tokenizer, vocab_size, end_of_text, lexicon, templates):
        self.tokenizer, self.vocab_size, self.lexicon = tokenizer, vocab_size, lexicon
        self.texts, self.weights = list(templates), list(templates.values())
        newline = tokenizer.encode("\n").ids[0]
        ends = {newline} if end_of_text is None else {newline, end_of_text}
        self.ends = {LINE_END: build_trie([(newline,)]), TEXT_END: build_trie([(token,) for token in ends])}
        self.root, self.root_mask = cache(self._root), cache(self._root_mask)
        self.next_tokens = {}  # (id of a node, room): its children that fit

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

    def tail(self, text):
        """How many tokens a template's line needs at least, its end included."""
        return 1 + sum(self.root(place).tail for place in parse_template(text))

    def _root_mask(self, place, room):
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[self.fitting_children(self.root(place), room)] = True
        return mask

    def fitting_children(self, node, room):
        """A LongTensor of the tokens after which the word can be ended within `room` tokens, this one included."""
        room = min(room, LONGEST_WORD)
        if (id(node), room) not in self.next_tokens:
            fitting = [token for token, child in node.children.items() if child.tail < room]
            self.next_tokens[id(node), room] = torch.tensor(fitting, dtype=torch.long)
        return self.next_tokens[id(node), room]


class TemplateConstraint(Constraint):
    """A Constraint under which prompt `index` gets lines[index] lines, each to a template of its own.

    words: TemplateWords. seeds: for each prompt what its templates are drawn with; `chosen` tells which they were.
    Words are chosen so that all lines fit into the tokens there are; UserError (from start) if even the shortest words
    and templates do not.
    """

    def __init__(self, words, lines, seeds):
        self.words, self.lines, self.seeds = words, lines, seeds
        self.chosen, self.plans, self.needed = {}, {}, {}

    def start(self, index, budget):
        drawn = random.Random(self.seeds[index]).choices(self.words.texts, self.words.weights, k=self.lines[index])
        if sum(map(self.words.tail, drawn)) > budget:  # shorter ones, then, in place of the longest
            shortest = min(self.words.texts, key=self.words.tail)
            for place in sorted(range(len(drawn)), key=lambda place: -self.words.tail(drawn[place])):
                drawn[place] = shortest
                if sum(map(self.words.tail, drawn)) <= budget:
                    break
        plan = [place for text in drawn for place in (*parse_template(text), LINE_END)]
        plan[-1] = TEXT_END
        needed = [0]
        for place in reversed(plan):
            needed.insert(0, needed[0] + self.words.root(place).tail)
        if needed[0] > budget:
            raise UserError(
                f"{len(drawn)} lines to templates need {needed[0]} tokens, there is room for {budget}: "
                "raise --max_new_tokens, or give shorter templates"
            )
        self.chosen[index], self.plans[index], self.needed[index] = drawn, plan, needed
        return State(index, ((-1, LEAF),), budget)  # before the first place, as after a word

    def allowed(self, state):
        plan, needed = self.plans[state.plan], self.needed[state.plan]
        mask = torch.zeros(self.words.vocab_size, dtype=torch.bool)
        for number, node in state.spots:
            if node.children:
                mask[self.words.fitting_children(node, state.tokens - needed[number + 1])] = True
            if node.terminal and number + 1 < len(plan):
                mask |= self.words.root_mask(plan[number + 1], min(state.tokens - needed[number + 2], LONGEST_WORD))
        return mask

    def advance(self, state, token):
        plan, needed, tokens = self.plans[state.plan], self.needed[state.plan], state.tokens - 1
        spots = []
        for number, node in state.spots:
            if token in node.children:
                spots.append((number, node.children[token]))
            if node.terminal and number + 1 < len(plan) and token in self.words.root(plan[number + 1]).children:
                spots.append((number + 1, self.words.root(plan[number + 1]).children[token]))
        spots = [(number, node) for number, node in spots if node.tail <= tokens - needed[number + 1]]
        return State(state.plan, tuple(spots), tokens)

    def done(self, state):
        return any(number == len(self.plans[state.plan]) - 1 and node.terminal for number, node in state.spots)
