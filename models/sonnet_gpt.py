"""GPT-2 as a language model of sonnets, or of any text. Legend: B batch, T time, V vocabulary."""

import torch
from torch import nn

from datasets.batching import run_in_parts
from modules.linear_cross_entropy import next_token_loss


class SonnetGPT(nn.Module):
    def __init__(self, gpt2):
        super().__init__()
        self.gpt = gpt2

    def forward(self, input_ids, attention_mask, return_loss=False):
        """Logits (B, T, V) of the next token at every position or, with return_loss, (loss, count).

        input_ids, attention_mask: (B, T). loss: the sum, in nats, of -log p over all tokens but the first of each row;
        count: their number. Padding is no target. A real end-of-text token, put there by the dataset, is one.
        """
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        if not return_loss:
            return self.gpt.hidden_state_to_token(hidden_states)
        return self.next_token_loss(hidden_states, input_ids, attention_mask)

    def next_token_loss(self, hidden_states, input_ids, attention_mask):
        """(loss, count) as `forward` has it, from the hidden states (B, T, D)."""
        return next_token_loss(hidden_states, self.gpt.word_embedding.weight, input_ids, attention_mask)


def language_model_loss(model, batch):
    """(sum of the losses in nats, number of targets) of a batch: what the training loop wants."""
    return model(batch["token_ids"], batch["attention_mask"], return_loss=True)


@torch.no_grad()
def summed_loss(model, batches):
    """The same over batches that are on the model's device already, as plain numbers."""
    outcomes = [part for batch in batches for part in run_in_parts(lambda b: language_model_loss(model, b), batch)]
    return sum(loss.item() for loss, _ in outcomes), sum(int(count) for _, count in outcomes)
