"""Aligned pooling: two texts within one sequence, compared word by word (Parikh et al. 2016, arXiv 1606.01933).

    attend     each token of one text is looked for in the other: softmax over the other's tokens of t cos(e_i, e_j),
               e the word embeddings; what is found is the weighted sum of their vectors
    compare    relu(W [x; |x - found|; x * found; c] + b) for each token: x its vector, c the cosine of what was found
    aggregate  over the tokens of each text the weighted mean and the maximum, added for both texts
    answer     the last token's state + U of the aggregate

The paper has a feed-forward net for each of the first three, on fixed word vectors, and sums. Here a token's vector is
its word embedding beside GPT-2's last hidden state, each after a LayerNorm: a word is found again whatever stands
around it, and is compared as part of what was said. U begins at zero, so that the answer begins as that of `last`.

What it is for: a small GPT-2 has hardly an attention head that looks words up, and some thousand pairs do not teach it
one.

Legend: B batch, T time, D width, C width of the comparison.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modules.pooling import last_token, masked_softmax

FIRST_TEMPERATURE = 10.0  # t: a word that comes back (cosine 1) outweighs a thousand at a cosine of .3


class AlignedPooling(nn.Module):
    """settings: PairPoolingSettings; of these, pooling_hidden is C."""

    heads = 1

    def __init__(self, width, settings):
        super().__init__()
        compared = settings.pooling_hidden
        self.temperature = nn.Parameter(torch.tensor([FIRST_TEMPERATURE]))
        self.word_norm, self.state_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.compare = nn.Linear(3 * 2 * width + 1, compared)
        self.importance = nn.Linear(2 * width, 1)
        self.answer = nn.Linear(2 * compared, width)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def forward(self, hidden_states, mask, words, token_types):
        """-> vectors (B, D) and a penalty, which is none.

        hidden_states, words: (B, T, D), the last layer's states and the word embeddings. mask: (B, T), 1 at real
        tokens. token_types: (B, T), 1 in the first text, 2 in the second, 0 elsewhere. Texts that are empty, both or
        one of them, give finite numbers.
        """
        words = self.word_norm(words)
        tokens = torch.cat([words, self.state_norm(hidden_states)], dim=-1)  # (B, T, 2 D)
        weights, cosines = self.align(words, token_types)
        found, cosine = torch.bmm(weights, tokens), (weights * cosines).sum(dim=-1, keepdim=True)
        compared = self.compare(torch.cat([tokens, (tokens - found).abs(), tokens * found, cosine], dim=-1)).relu()
        importance = self.importance(tokens).squeeze(-1)
        aggregate = sum(_aggregate(compared, importance, token_types == text) for text in (1, 2))
        return last_token(hidden_states, mask) + self.answer(aggregate), 0.0

    def align(self, words, token_types):
        """What each token takes of each of the other text's, and the cosines of their vectors, both (B, T, T).

        Weights of a token that is in no text, or whose other text is empty, are 0.
        """
        directions = F.normalize(words, dim=-1)
        cosines = torch.bmm(directions, directions.transpose(1, 2))
        own, other = token_types.unsqueeze(2), token_types.unsqueeze(1)
        across = (own * other) == 2  # one of them 1, the other 2
        scores = (self.temperature * cosines).masked_fill(~across, torch.finfo(cosines.dtype).min)
        return scores.softmax(dim=-1) * across, cosines


def _aggregate(compared, importance, of_text):
    """(B, T, C), (B, T), (B, T) boolean -> (B, 2 C): the mean by importance, and the maximum, over a text's tokens."""
    weights = masked_softmax(importance, of_text) * of_text  # an empty text has no mean
    mean = torch.bmm(weights.unsqueeze(1), compared).squeeze(1)
    return torch.cat([mean, (compared * of_text.unsqueeze(-1)).amax(dim=1)], dim=-1)  # what is compared is >= 0
