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

    def moved(self, state):
        """(tokens, a boolean (V,) tensor; token): forbidden tokens whose probability an allowed one gets; or None.

        For what is forbidden here only because something has to come first: what the model would write next then says
        how likely that is. All else that is forbidden is struck.
        """
        return None

    def advance(self, state, token):
        """The state after the token, which must have been an allowed one."""

    def done(self, state):
        """Whether the text is complete."""


def constrain(scores, constraint, states, unfiltered=None, temperature=1.0):
    """(B, V) scores with -inf at every token that a row's state does not allow; a state of None allows all.

    scores: logits or log-probabilities. temperature: what they will be divided by (0: the best one will be taken);
    probabilities that a constraint moves add up as they are then.
    unfiltered: the scores before other filters; a row takes them where those left none of its allowed tokens.
    """
    constrained = _struck(scores, constraint, states, temperature)
    if unfiltered is not None:
        emptied = constrained.isneginf().all(dim=-1)
        if emptied.any():
            theirs = [state for state, empty in zip(states, emptied.tolist(), strict=True) if empty]
            constrained[emptied] = _struck(unfiltered[emptied].float(), constraint, theirs, temperature)
    return constrained


def _struck(scores, constraint, states, temperature):
    everything = torch.ones(scores.size(-1), dtype=torch.bool)
    masks = [everything if state is None else constraint.allowed(state) for state in states]
    struck = scores.masked_fill(~torch.stack(masks).to(scores.device), float("-inf"))
    for row, state in enumerate(states):
        if state is not None and (moved := constraint.moved(state)):
            tokens, target = moved
            together = torch.cat([scores[row, target : target + 1], scores[row, tokens.to(scores.device)]])
            total = temperature * (together / temperature).logsumexp(dim=0) if temperature else together.max()
            struck[row, target] = total
    return struck


def token_texts(tokenizer, vocab_size):
    """The text of every token, a list of V strings; "" for bytes that are no character alone, and special tokens."""
    texts = [tokenizer.decode([token]) for token in range(min(vocab_size, tokenizer.get_vocab_size()))]
    texts += [""] * (vocab_size - len(texts))
    return ["" if "\ufffd" in text else text for text in texts]
