"""What may come next and what ends a text: the same for every decoder.

Legend: B rows in the batch, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

from config import DecodingSettings
from decoding.constraint import Constraint, constrain
from decoding.filters import filter_logits, needs_history


@dataclass(frozen=True)
class Rules:
    """settings: DecodingSettings. end_of_text: the token id that ends a text; it is left out of what is returned.

    stop(index, ids): called with a prompt's place and its new ids after each token; True ends the text.
    constraint: what may come where (see decoding/constraint.py); its end is the text's end, too.
    """

    settings: DecodingSettings
    end_of_text: int | None = None
    stop: Callable | None = None
    constraint: Constraint | None = None

    def start(self, index, budget):
        """The state of the constraint before the first of at most `budget` new tokens of prompt `index`."""
        return None if self.constraint is None else self.constraint.start(index, budget)

    def admissible(self, scores, histories, states, temperature=1.0):
        """(B, V) logits or log-probabilities after all that depends on the text so far: filters, then constraint.

        histories: the rows' token ids, iterated over only if a filter wants them. states: the rows' states; None allows
        everything. temperature: as for `constrain`.
        """
        filtered = filter_logits(scores, histories, self.settings) if needs_history(self.settings) else scores
        if self.constraint is None:
            return filtered
        return constrain(filtered, self.constraint, states, scores, temperature)

    def advance(self, index, ids, state):
        """(the state after the last of the new ids of prompt `index`, whether the text ends with it)."""
        if self.constraint is not None:
            state = self.constraint.advance(state, ids[-1])
        over = (
            ids[-1] == self.end_of_text
            or (self.constraint is not None and self.constraint.done(state))
            or (self.stop is not None and self.stop(index, ids))
        )
        return state, over

    def text(self, ids):
        """The new ids without the end-of-text token."""
        return ids[:-1] if ids and ids[-1] == self.end_of_text else ids
