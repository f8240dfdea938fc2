"""Soft prompts: learned word vectors that stand before every text. The model itself stays as it is.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691, section 2): the vectors are free parameters, started from the
vectors of real tokens. Trainable parameters: P D.

P-tuning (Liu et al. 2021, arXiv 2103.10385, section 3): a small network writes them from P free vectors.

    MLP:   Linear(D, h), ReLU, Linear(h, h), ReLU, Linear(h, D)
    LSTM:  two-layer bidirectional LSTM(D, h), then Linear(2h, 2h), ReLU, Linear(2h, D)

Virtual tokens take the positions 0..P-1 and the text starts at P, padded on either side or not, with a cache or
without; what the model says at virtual positions is cut off.

Legend: B batch, T text, P virtual tokens, D width, h hidden width.
"""

import torch
from torch import nn


class SoftPrompt(nn.Module):
    """Fills GPT2Model's slot `prompt`. written() is what a subclass brings: (P, D)."""

    def __init__(self, gpt2, length):
        super().__init__()
        self.length = length
        rows = torch.randint(gpt2.config.vocab_size, (length,))
        start = gpt2.word_embedding.weight.detach()[rows.to(gpt2.word_embedding.weight.device)]
        self.embedding = nn.Parameter(start.float().clone())

    def written(self):
        return self.embedding

    def forward(self, gpt2, input_ids, attention_mask=None, cache=None):
        """(B, T) token ids -> (B, T, D) hidden states; the first pass over a cache puts the virtual tokens into it."""
        past = cache.length - self.length if cache is not None and cache.length else 0
        hidden_states = gpt2.embed(input_ids, attention_mask, past, offset=self.length)
        if attention_mask is not None:
            virtual = attention_mask.new_ones(len(attention_mask), self.length)
            attention_mask = torch.cat([virtual, attention_mask], dim=1)
        if past:
            return gpt2.transform(hidden_states, attention_mask, cache)
        positions = torch.arange(self.length, device=input_ids.device)
        prompt = gpt2.embed_dropout(self.written() + gpt2.pos_embedding(positions))
        prompt = prompt.to(hidden_states.dtype).expand(len(input_ids), -1, -1)
        return gpt2.transform(torch.cat([prompt, hidden_states], dim=1), attention_mask, cache)[:, self.length :]

    def tuning_parameters(self):
        return list(self.parameters())


class EncodedPrompt(SoftPrompt):
    """P-tuning: the vectors come out of an encoder, which is trained along."""

    stays_fp32 = True  # tiny, and not every CPU has a bf16 LSTM

    def __init__(self, gpt2, length, encoder, hidden):
        super().__init__(gpt2, length)
        width = gpt2.config.hidden_size
        self.lstm = None
        if encoder == "lstm":
            self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        else:
            first, second, last = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, width)
            self.mlp = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        self.to(self.embedding.device)

    def written(self):
        with torch.autocast(self.embedding.device.type, enabled=False):
            encoded = self.embedding if self.lstm is None else self.lstm(self.embedding[None])[0][0]
            return self.mlp(encoded)


def apply_prompt(gpt2, settings):
    """Fill gpt2's prompt slot. settings: PromptSettings."""
    gpt2.prompt = SoftPrompt(gpt2, settings.prompt_length)


def apply_ptuning(gpt2, settings):
    """Fill gpt2's prompt slot. settings: PTuningSettings."""
    gpt2.prompt = EncodedPrompt(gpt2, settings.ptuning_length, settings.ptuning_encoder, settings.ptuning_hidden)
