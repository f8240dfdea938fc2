"""GPT-2 that tells how a review likes its film: the pooled hidden state, dropout, one linear layer with a row a class.

With the last token's state and all of GPT-2 trained this is the fine-tuning of Radford et al. (2018, 3.2), less their
extra tokens and their auxiliary loss. Frozen, GPT-2 is a fixed function: it is run without gradients and without its
own dropout, so that a review has the same vector in every epoch, which may then be handed in, not computed again.

Legend: B batch, T time, D width, N heads of the pooling, C classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from config import PoolingSettings, SentimentHeadSettings
from modules.dropout import Dropout
from modules.pooling import make_pooling


class SentimentGPT(nn.Module):
    def __init__(self, gpt2, classes, head=None, pooling=None):
        """gpt2: frozen if none of its parameters is trained. head: SentimentHeadSettings, pooling: PoolingSettings."""
        super().__init__()
        head, pooling = head or SentimentHeadSettings(), pooling or PoolingSettings()
        self.gpt = gpt2
        self.frozen = not any(parameter.requires_grad for parameter in gpt2.parameters())
        self.pooling = make_pooling(gpt2.config.hidden_size, pooling)
        self.dropout = Dropout(head.hidden_dropout_prob)
        self.classifier = nn.Linear(self.pooling.heads * gpt2.config.hidden_size, classes)
        nn.init.normal_(self.classifier.weight, std=gpt2.config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, input_ids, attention_mask, labels=None, vectors=None):
        """Logits (B, C) or, given labels (B,), (loss, count).

        vectors: (B, N D) that `pool` gave earlier, so that GPT-2 need not run. loss: the sum of the cross entropies in
        nats, plus B times the pooling's penalty; count: B.
        """
        penalty = 0.0
        if vectors is None:
            vectors, penalty = self.pool(input_ids, attention_mask)
        logits = self.classifier(self.dropout(vectors))
        if labels is None:
            return logits
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") + len(labels) * penalty
        return loss, len(labels)

    def pool(self, input_ids, attention_mask):
        """(B, T), (B, T) -> the reviews' vectors (B, N D), before dropout, and the pooling's penalty (scalar)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        return self.pooling(hidden_states, attention_mask)

    @property
    def has_fixed_vectors(self):
        """Whether a review's vector is the same whatever is trained: GPT-2 is frozen, the pooling has no parameters."""
        return self.frozen and not any(True for _ in self.pooling.parameters())

    def train(self, mode=True):
        """As nn.Module's, but that a frozen GPT-2 keeps its dropout off."""
        super().train(mode)
        if self.frozen:
            self.gpt.eval()
        return self
