"""What a constraint on the written text is: an automaton over tokens.

`generate` and `beam_search` ask it before every token what may come, so the text keeps to it by construction instead of
being thrown away afterwards. States are values that are never changed, so that beams can share them.

Legend: B rows in the batch, V vocabulary.
"""

from typing import Protocol

import torch


class Constraint(Protocol):
    def start(self, index, budget):
        """The state before the first new token of prompt `index`, which can have `budget` tokens at most."""

    def allowed(self, state):
        """A boolean (V,) tensor, on the CPU: the tokens that may come next. Never empty, unless the text is done."""

    def advance(self, state, token):
        """The state after the token, which must have been an allowed one."""

    def done(self, state):
        """Whether the text is complete."""


def constrain(scores, constraint, states, unfiltered=None):
    """(B, V) scores with -inf at every token that a row's state does not allow; a state of None allows all.

    unfiltered: the scores before other filters; a row takes them where those left none of its allowed tokens.
    """
    everything = torch.ones(scores.size(-1), dtype=torch.bool)
    masks = [everything if state is None else constraint.allowed(state) for state in states]
    allowed = torch.stack(masks).to(scores.device)
    constrained = scores.masked_fill(~allowed, float("-inf"))
    if unfiltered is not None:
        emptied = constrained.isneginf().all(dim=-1)
        if emptied.any():
            constrained[emptied] = unfiltered[emptied].float().masked_fill(~allowed[emptied], float("-inf"))
    return constrained


def token_texts(tokenizer, vocab_size):
    """The text of every token, a list of V strings; "" for bytes that are no character alone, and special tokens."""
    texts = [tokenizer.decode([token]) for token in range(min(vocab_size, tokenizer.get_vocab_size()))]
    texts += [""] * (vocab_size - len(texts))
    return ["" if "\ufffd" in text else text for text in texts]
