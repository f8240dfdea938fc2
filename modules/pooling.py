"""Pooling: from the hidden states of a sequence to one vector.

    last        the last real token (it alone has seen the whole sequence, since attention is causal)
    mean, max   over the real tokens
    attention   softmax over time of tanh(w . h + b), then the weighted sum; a weight a token. Often called
                "generalized pooling", which it is not: it is attention pooling
    generalized A = softmax over time of W2 relu(W1 H^T + b1) + b2: a weight for every token *and* hidden dimension,
                v = sum over time of A * H, several heads side by side (Chen, Ling & Zhu 2018, arXiv 1806.09828, 3.2)

A penalty may keep the heads of generalized pooling apart (their section 3.3): mu * sum over pairs of heads i < j of
max(lambda - ||X_i - X_j||^2, 0), where X is W1 ("parameters"), the attention A ("attention") or the vector v
("embeddings"); the last two are averaged over the batch.

Padding is masked before every softmax, mean and maximum; a fully padded row gives finite numbers.

Legend: B batch, T time, D width, N heads of the pooling.
"""

import itertools

import torch
from torch import nn


def masked_softmax(scores, mask):
    """Softmax over time (axis 1) of (B, T, ...), zero at padding. mask: (B, T), boolean."""
    mask = mask.view(*mask.shape, *[1] * (scores.dim() - 2))
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=1)


def last_token(hidden_states, attention_mask=None):
    """(B, T, D) -> (B, D): the last real token, whichever side the padding is on. The mask may be longer than T."""
    if attention_mask is None:
        return hidden_states[:, -1]
    real = attention_mask[:, -hidden_states.size(1) :].long()
    last = real.size(1) - 1 - real.flip(1).argmax(dim=1)
    return hidden_states[torch.arange(len(last), device=last.device), last]


class SimplePooling(nn.Module):
    """kind: last, mean or max. Like every pooling: (B, T, D), (B, T) -> vectors (B, N D) and a penalty (scalar)."""

    heads = 1

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, hidden_states, mask):
        real = mask.bool()
        if self.kind == "last":
            return last_token(hidden_states, mask), 0.0
        if self.kind == "mean":
            total = (hidden_states * real.unsqueeze(-1)).float().sum(dim=1)  # in fp16 it could overflow
            return (total / real.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden_states.dtype), 0.0
        lowest = torch.finfo(hidden_states.dtype).min
        highest = hidden_states.masked_fill(~real.unsqueeze(-1), lowest).amax(dim=1)
        return highest * real.any(dim=1, keepdim=True), 0.0


class AttentionPooling(nn.Module):
    heads = 1

    def __init__(self, width):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, hidden_states, mask):
        (weights,) = self.weights(hidden_states, mask)
        return torch.bmm(weights.unsqueeze(1), hidden_states).squeeze(1), 0.0

    def weights(self, hidden_states, mask):
        """What each token gets: one (B, T)."""
        return [masked_softmax(torch.tanh(self.score(hidden_states)).squeeze(-1), mask.bool())]


class GeneralizedPooling(nn.Module):
    """settings: PoolingSettings (heads, hidden width of W1, penalty, its weight mu and margin lambda)."""

    def __init__(self, width, settings):
        super().__init__()
        self.heads = settings.pooling_heads
        self.penalty = settings.pooling_penalty
        self.penalty_weight = settings.pooling_penalty_weight
        self.penalty_margin = settings.pooling_penalty_margin
        self.W1 = nn.ModuleList(nn.Linear(width, settings.pooling_hidden) for _ in range(self.heads))
        self.W2 = nn.ModuleList(nn.Linear(settings.pooling_hidden, width) for _ in range(self.heads))

    def forward(self, hidden_states, mask):
        attention = self.weights(hidden_states, mask)
        vectors = [(weights * hidden_states).sum(dim=1) for weights in attention]  # one (B, D) a head
        return torch.cat(vectors, dim=-1), self._redundancy(attention, vectors)

    def weights(self, hidden_states, mask):
        """What each token gets in each dimension: one (B, T, D) a head."""
        return [
            masked_softmax(W2(torch.relu(W1(hidden_states))), mask.bool())
            for W1, W2 in zip(self.W1, self.W2, strict=True)
        ]

    def _redundancy(self, attention, vectors):
        if self.penalty == "none":
            return 0.0
        weights = [W1.weight.unsqueeze(0) for W1 in self.W1]
        compared = {"parameters": weights, "attention": attention, "embeddings": vectors}[self.penalty]
        distances = torch.stack(
            [(x - y).flatten(1).square().sum(dim=1).float() for x, y in itertools.combinations(compared, 2)]
        )  # (pairs of heads, B or 1)
        return self.penalty_weight * (self.penalty_margin - distances).clamp(min=0).mean(dim=1).sum()


def make_pooling(width, settings):
    """The pooling named in settings (PoolingSettings), for hidden states of this width."""
    if settings.pooling == "attention":
        return AttentionPooling(width)
    if settings.pooling == "generalized":
        return GeneralizedPooling(width, settings)
    return SimplePooling(settings.pooling)
