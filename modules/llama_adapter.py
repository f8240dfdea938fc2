"""LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199, section 3.2): prompts in the top layers, behind gates at zero.

    attend(q, k, v) + tanh(g) attend(q, K_p, V_p)        K_p, V_p: the layer's own projections of a learned prompt

Two softmaxes, so that the text attends to itself as before. The gate g starts at zero: at step 0 the model is the
pretrained one, and only the gate moves first. It is a scalar, or one number a head as in the authors' code.
Trainable parameters: P D + 1 (or + H) for each adapted layer.

Legend: B batch, T new positions, S positions so far, H heads, d width of a head, P prompt length, D width.
"""

import torch
from torch import nn

from errors import check


class GatedPrompt(nn.Module):
    """Fills CausalSelfAttention's slot `kv_adapter`."""

    def __init__(self, config, length, gates, device=None):
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(length, config.hidden_size, device=device))
        self.gate = nn.Parameter(torch.zeros(gates, 1, 1, device=device))

    def forward(self, attention, query, key, value, mask=None):
        """As attention.attend: (B, H, T, d), (B, H, S, d), (B, H, S, d) -> (B, H, T, d)."""
        prompt_key, prompt_value = (
            project(self.prompt).to(key.dtype).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            for project in (attention.key, attention.value)
        )  # (H, P, d) each
        prompt_key, prompt_value = (x.expand(len(query), -1, -1, -1) for x in (prompt_key, prompt_value))
        everywhere = torch.ones(1, 1, query.size(2), len(self.prompt), dtype=torch.bool, device=query.device)
        added = attention.attend(query, prompt_key, prompt_value, everywhere)
        return attention.attend(query, key, value, mask) + self.gate.tanh().to(added.dtype) * added

    def tuning_parameters(self):
        return [self.prompt, self.gate]


def apply_llama_adapter(gpt2, settings):
    """Fill the kv_adapter slot of the top layers. settings: LlamaAdapterSettings. Raises UserError."""
    layers = len(gpt2.gpt_layers)
    count = settings.llama_layers or max(1, layers - 1)
    check(count <= layers, f"--llama_layers {count}: the model has {layers} layers; give at most so many")
    gates = 1 if settings.llama_gate == "scalar" else gpt2.config.num_attention_heads
    device = gpt2.word_embedding.weight.device
    for layer in gpt2.gpt_layers[layers - count :]:
        layer.self_attention.kv_adapter = GatedPrompt(gpt2.config, settings.llama_length, gates, device)
