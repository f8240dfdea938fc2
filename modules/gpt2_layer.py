"""One transformer layer of GPT-2 (pre-LayerNorm; Radford et al. 2019, section 2.3).

    x = x + attention_dense(attention(LN(x)))
    x = x + out_dense(gelu(interm_dense(LN(x))))

The names of the linears and norms are those of the course. Legend: B batch, T time, D width.
"""

import torch.nn.functional as F
from torch import nn

from modules.attention import CausalSelfAttention
from modules.dropout import Dropout


class GPT2Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.attention_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attention = CausalSelfAttention(config)
        self.attention_dense = nn.Linear(width, width)
        self.attention_dropout = Dropout(config.hidden_dropout_prob)
        self.attention_adapter = nn.Identity()  # slot, after the sublayer and before the sum
        self.out_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.interm_dense = nn.Linear(width, config.intermediate_size)
        self.out_dense = nn.Linear(config.intermediate_size, width)
        self.out_dropout = Dropout(config.hidden_dropout_prob)
        self.ffn_adapter = nn.Identity()  # slot, likewise

    def forward(self, x, mask=None, cache=None):
        """(B, T, D) -> (B, T, D). mask and cache as in CausalSelfAttention."""
        attended = self.attention_dense(self.self_attention(self.attention_layer_norm(x), mask, cache))
        x = x + self.attention_adapter(self.attention_dropout(attended))
        # GPT-2 was trained with the tanh approximation of GELU (Hendrycks & Gimpel 2016); the exact form is another
        activated = F.gelu(self.interm_dense(self.out_layer_norm(x)), approximate="tanh")
        return x + self.ffn_adapter(self.out_dropout(self.out_dense(activated)))
