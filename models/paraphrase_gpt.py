"""GPT-2 that answers whether two questions ask the same.

The prompt ends where the answer is due; the pooled hidden state there becomes two logits, "no" and "yes". The cloze
head reads them from the tied embedding's rows of the two tokens (no new parameters: it starts from what GPT-2 knows);
the linear head is a new layer.

Legend: B batch, T time, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from config import ANSWERS, HeadSettings, PairPoolingSettings
from errors import UserError, check
from modules.alignment import AlignedPooling
from modules.linear_cross_entropy import next_token_loss
from modules.pooling import make_pooling


class ParaphraseGPT(nn.Module):
    def __init__(self, gpt2, head=None, pooling=None):
        """head: HeadSettings, pooling: PairPoolingSettings; their defaults are the cloze head on the last token."""
        super().__init__()
        head, pooling = head or HeadSettings(), pooling or PairPoolingSettings()
        width = gpt2.config.hidden_size
        answer_ids = tuple(ANSWERS.values())
        if gpt2.config.vocab_size <= max(answer_ids):
            raise UserError(
                f"the model's vocabulary has {gpt2.config.vocab_size} tokens; the answers are tokens {answer_ids}"
            )
        self.gpt = gpt2
        self.lm_weight = head.lm_weight
        self.aligns = pooling.pooling == "aligned"
        self.pooling = AlignedPooling(width, pooling) if self.aligns else make_pooling(width, pooling)
        self.head = None
        if head.head == "linear":
            self.head = nn.Linear(self.pooling.heads * width, 2)
            nn.init.normal_(self.head.weight, std=gpt2.config.initializer_range)
            nn.init.zeros_(self.head.bias)
        elif self.pooling.heads > 1:
            raise UserError(
                "the cloze head reads one vector of the model's width: use one pooling head, or head=linear"
            )
        self.register_buffer("answer_ids", torch.tensor(answer_ids), persistent=False)

    def forward(
        self,
        input_ids,
        attention_mask,
        labels=None,
        vocabulary_logits=False,
        mean_length=None,
        token_type_ids=None,
    ):
        """Logits (B, 2) of "no" and "yes" or, given labels (B,) of 0 and 1, (loss, count).

        vocabulary_logits: (B, V) instead, -inf but at the two answers, so that argmax gives the answer's token id.
        loss: the sum of the cross entropies in nats, plus B times the pooling's penalty and B times lm_weight times the
        mean language-model loss of the prompts' tokens (Radford et al. 2018, 3.2); count: B. mean_length: tokens a row
        of a larger batch that these rows are a part of; then that mean is over all of its tokens. token_type_ids:
        (B, T), 1 and 2 in the two questions, 0 elsewhere, which only aligned pooling reads.
        """
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        if self.aligns:
            check(token_type_ids is not None, "aligned pooling reads token_type_ids: make the dataset with token_types")
            words = self.gpt.word_embedding(input_ids)
            pooled, penalty = self.pooling(hidden_states, attention_mask, words, token_type_ids)
        else:
            pooled, penalty = self.pooling(hidden_states, attention_mask)
        logits = self.head(pooled) if self.head is not None else F.linear(pooled, self._answer_embeddings())
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels, reduction="sum") + len(labels) * penalty
            if self.lm_weight:
                embedding = self.gpt.word_embedding.weight
                lm_loss, tokens = next_token_loss(hidden_states, embedding, input_ids, attention_mask)
                targets = tokens / len(labels) if mean_length is None else mean_length - 1  # of a row
                loss = loss + self.lm_weight * lm_loss / targets
            return loss, len(labels)
        if vocabulary_logits:
            everywhere = logits.new_full((len(logits), self.gpt.config.vocab_size), float("-inf"))
            return everywhere.index_copy(1, self.answer_ids, logits)
        return logits

    def _answer_embeddings(self):
        return self.gpt.word_embedding.weight[self.answer_ids]  # (2, D)
