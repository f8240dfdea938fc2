"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751, section 2.1; Pfeiffer et al. 2021, arXiv 2005.00247).

    f(h) = h + up(gelu(down(h)))        down: D -> m, up: m -> D

Houlsby puts one after each of the two sublayers, Pfeiffer only one, after the feed-forward; both before the sum with
the residual stream. The up projection starts at zero, so at step 0 the model is the pretrained one (the papers start
near the identity). Unlike the papers we do not train the LayerNorms: the backbone stays wholly frozen.
Trainable parameters: 2 D m + m + D for each adapter.
"""

import torch.nn.functional as F
from torch import nn


class BottleneckAdapter(nn.Module):
    def __init__(self, width, size, device=None):
        super().__init__()
        self.down = nn.Linear(width, size, device=device)
        self.up = nn.Linear(size, width, device=device)
        nn.init.normal_(self.down.weight, std=0.02)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, hidden_states):
        """(..., D) -> (..., D)"""
        return hidden_states + self.up(F.gelu(self.down(hidden_states)))

    def tuning_parameters(self):
        return list(self.parameters())


def apply_adapter(gpt2, settings):
    """Fill the adapter slots of every layer of gpt2, in place. settings: AdapterSettings."""
    device = gpt2.word_embedding.weight.device
    for layer in gpt2.gpt_layers:
        if settings.adapter_placement == "houlsby":
            layer.attention_adapter = BottleneckAdapter(gpt2.config.hidden_size, settings.adapter_size, device)
        layer.ffn_adapter = BottleneckAdapter(gpt2.config.hidden_size, settings.adapter_size, device)
