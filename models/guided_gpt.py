"""GPT-2 while it is pre-trained to look words up in the text before: two additions to the language model's loss.

Guidance (after Deshpande & Narasimhan 2020, "Guiding Attention for Self-Supervised Learning with Transformers"): some
heads of the first two layers are taught where to look. A small model that reads little text does not find these
patterns by itself, and without them it can neither repeat what was said nor compare (Olsson et al. 2022, "In-context
Learning and Induction Heads").

    previous     the token before
    same         the same token, earlier; where there is none, the first token
    after same   the token after the same one, earlier: what may come next; where there is none, the first token

Answers: the yes or no after a pair of questions weighs more than other tokens.

Legend: B batch, T time, D width, d width of a head.
"""

import math

import torch
import torch.nn.functional as F

from config import ANSWERS
from models.sonnet_gpt import SonnetGPT


def previous(token_ids):
    """(B, T) -> (1, T, T) boolean, True where a query (row) shall look."""
    places = torch.arange(token_ids.size(1), device=token_ids.device)
    return (places[:, None] - 1 == places)[None]


def same(token_ids):
    """(B, T) -> (B, T, T) boolean, likewise."""
    return (token_ids[:, :, None] == token_ids[:, None, :]).tril(-1)


def after_same(token_ids):
    """(B, T) -> (B, T, T) boolean, likewise."""
    return F.pad(same(token_ids)[:, :, :-1], (1, 0))


PATTERNS = ((0, 0, previous), (0, 1, same), (1, 0, after_same), (1, 1, same))  # (layer, head, where it shall look)


class GuidedGPT(SonnetGPT):
    """guidance: weight of the guided heads' loss, a mean over them. answer_weight: of the tokens "yes" and "no" where
    they follow the token before_answer (the space that ends the prompt: in other text it stands before no word)."""

    def __init__(self, gpt2, guidance=0.0, answer_weight=1.0, before_answer=None):
        super().__init__(gpt2)
        self.guidance, self.answer_weight, self.before_answer = guidance, answer_weight, before_answer
        self._projected = {}
        for layer in {layer for layer, _, _ in PATTERNS} if guidance else ():
            attention = gpt2.gpt_layers[layer].self_attention
            for name in ("query", "key"):
                getattr(attention, name).register_forward_hook(self._keep(layer, name))

    def forward(self, input_ids, attention_mask, return_loss=False):
        """As SonnetGPT's. The additions are in the loss while training only; the count is of plain targets."""
        if not (return_loss and self.training):
            return super().forward(input_ids, attention_mask, return_loss)
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        loss, count = self.next_token_loss(hidden_states, input_ids, attention_mask)
        if self.answer_weight != 1:
            loss = loss + (self.answer_weight - 1) * self.answer_loss(hidden_states, input_ids)
        if self.guidance:
            loss = loss + self.guidance * self.guided_loss(input_ids)
        return loss, count

    def answer_loss(self, hidden_states, input_ids):
        """The sum over all answers of -log p, in nats."""
        targets = input_ids[:, 1:]
        answers = torch.isin(targets, torch.tensor(list(ANSWERS.values()), device=targets.device))
        answers &= input_ids[:, :-1] == self.before_answer
        logits = self.gpt.hidden_state_to_token(hidden_states[:, :-1][answers])
        return F.cross_entropy(logits.float(), targets[answers], reduction="sum")

    def guided_loss(self, input_ids):
        """The sum over tokens of -log of the attention that lies where it shall, as the mean of the guided heads."""
        length, costs = input_ids.size(1), []
        later = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        places = {pattern: pattern(input_ids) for pattern in {pattern for _, _, pattern in PATTERNS}}
        for layer, head, pattern in PATTERNS:
            query, key = (self._of_head(layer, name, head) for name in ("query", "key"))
            scores = query @ key.transpose(1, 2) / math.sqrt(query.size(-1))
            log_weights = scores.float().masked_fill(later, float("-inf")).log_softmax(dim=-1)
            wanted = places[pattern]
            wanted = wanted | (F.pad(~wanted.any(dim=-1, keepdim=True), (0, length - 1)))
            costs.append(-log_weights.masked_fill(~wanted, float("-inf")).logsumexp(dim=-1).sum())
        return torch.stack(costs).mean()

    def _of_head(self, layer, name, head):
        """(B, T, d)"""
        projected = self._projected[layer, name]
        return projected.unflatten(-1, (self.gpt.config.num_attention_heads, -1))[:, :, head]

    def _keep(self, layer, name):
        def hook(_module, _inputs, output):
            if self.training:
                self._projected[layer, name] = output

        return hook
