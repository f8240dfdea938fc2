"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190, section 4): learned keys and values that every text attends to.

    attend(q, [K_p; k], [V_p; v])        one softmax over prefix and text, in every layer

K_p and V_p are free parameters or, while training, written by an MLP (section 4.3), which steadies large prefixes and
is thrown away afterwards (`drop_mlp`):

    Embedding(P, D), Linear(D, h), Tanh, Linear(h, 2 L D)

The text's positions start at P, as in peft. Trainable parameters: 2 L P D; with the MLP P D + D h + h + 2 L D (h + 1).

Legend: B batch, T new positions, S positions so far, L layers, H heads, d width of a head, P prefix length, D width.
"""

import torch
from torch import nn


class PrefixKV(nn.Module):
    """Fills CausalSelfAttention's slot `kv_adapter` of one layer."""

    def __init__(self, prefix, index):
        super().__init__()
        self.index = index
        self._prefix = [prefix]  # in a list: registered once, in GPT2Model's slot, not in every layer

    def forward(self, attention, query, key, value, mask=None):
        """As attention.attend: (B, H, T, d), (B, H, S, d), (B, H, S, d) -> (B, H, T, d)."""
        ours = self._prefix[0].key_and_value(self.index).to(key.dtype)  # (2, P, D)
        ours = ours.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (2, H, P, d)
        ours = ours[:, None].expand(-1, len(key), -1, -1, -1)
        new, length = query.size(2), ours.size(3)
        if mask is None and new > 1:
            mask = torch.ones(1, 1, new, key.size(2), dtype=torch.bool, device=key.device).tril()
        if mask is not None:  # everyone may look at the prefix
            mask = torch.cat([mask.new_ones(*mask.shape[:-1], length), mask], dim=-1)
        return attention.attend(query, torch.cat([ours[0], key], 2), torch.cat([ours[1], value], 2), mask)


class Prefix(nn.Module):
    """Fills GPT2Model's slot `prompt`: holds all layers' prefixes and moves the text's positions."""

    def __init__(self, config, length, hidden, device=None):
        super().__init__()
        self.length, self.layers, self.width = length, config.num_hidden_layers, config.hidden_size
        size = 2 * self.layers * self.width
        self.mlp = None
        if hidden:
            self.embedding = nn.Parameter(torch.randn(length, self.width, device=device))
            self.mlp = nn.Sequential(
                nn.Linear(self.width, hidden, device=device), nn.Tanh(), nn.Linear(hidden, size, device=device)
            )
        else:
            self.embedding = nn.Parameter(torch.randn(length, size, device=device))
        self._current = None

    def forward(self, gpt2, input_ids, attention_mask=None, cache=None):
        """(B, T) token ids -> (B, T, D) hidden states."""
        past = cache.length if cache is not None else 0
        self._current = self.written()  # once a pass, for all layers
        hidden_states = gpt2.embed(input_ids, attention_mask, past, offset=self.length)
        hidden_states = gpt2.transform(hidden_states, attention_mask, cache)
        self._current = None
        return hidden_states

    def written(self):
        """(P, 2 L D): what the MLP writes, or the free parameters."""
        return self.embedding if self.mlp is None else self.mlp(self.embedding)

    def key_and_value(self, layer):
        """(2, P, D) of a layer. In a row of the embedding all layers' keys and values lie in the order of peft."""
        return self._current.view(self.length, 2 * self.layers, self.width)[:, 2 * layer : 2 * layer + 2].transpose(
            0, 1
        )

    def tuning_parameters(self):
        return list(self.parameters())


def apply_prefix(gpt2, settings):
    """Fill gpt2's prompt slot and every layer's kv_adapter slot. settings: PrefixSettings."""
    device = gpt2.word_embedding.weight.device
    gpt2.prompt = Prefix(gpt2.config, settings.prefix_length, settings.prefix_hidden, device)
    for index, layer in enumerate(gpt2.gpt_layers):
        layer.self_attention.kv_adapter = PrefixKV(gpt2.prompt, index)


@torch.no_grad()
def drop_mlp(gpt2):
    """Keep what the MLP writes and throw the MLP away: the same model, smaller. No MLP: nothing to do."""
    prefix = gpt2.prompt
    if prefix.mlp is not None:
        prefix.embedding = nn.Parameter(prefix.written())
        prefix.mlp = None
