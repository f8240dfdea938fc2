"""LoRA: Low-Rank Adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    y = x W^T + b + (alpha / r) dropout(x) A^T B^T        A: (r, in), B: (out, r)

W and b stay frozen. B starts at zero, so at step 0 the model is the pretrained one; A starts kaiming-uniform with
a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), as in the authors' code (the paper says Gaussian).

LoRALinear is an nn.Linear that adopts the very tensors of the one it replaces: the model's own keys do not change, and
only lora_A and lora_B are new. Trainable parameters: r (in + out) for each adapted linear.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modules.dropout import Dropout


class LoRALinear(nn.Linear):
    def __init__(self, base, rank, alpha, dropout):
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate a weight of its own
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_dropout = Dropout(dropout)
        self.scaling = alpha / rank

    def forward(self, x):
        """(..., in) -> (..., out)"""
        # Scaled where it is narrowest. The copy of B is small, and its layout makes B's gradient the product (r, N) x
        # (N, out); F.linear's would be (out, N) x (N, r), which is seven times slower on a CPU
        low_rank = (F.linear(self.lora_dropout(x), self.lora_A) * self.scaling) @ self.lora_B.t().contiguous()
        return F.linear(x, self.weight, self.bias) + low_rank

    def tuning_parameters(self):
        return [self.lora_A, self.lora_B]

    @torch.no_grad()
    def merged(self):
        """A plain nn.Linear with W + (alpha / r) B A. The product is computed in fp32 whatever the weight's dtype."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        weight = self.weight.float() + self.scaling * (self.lora_B.float() @ self.lora_A.float())
        linear.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
        linear.bias = self.bias
        return linear


def apply_lora(gpt2, settings):
    """Replace the linears named in settings (LoRASettings) by LoRALinears, in every layer of gpt2, in place."""
    for layer in gpt2.gpt_layers:
        for name in settings.targets:
            parent = layer.self_attention if name in ("query", "key", "value") else layer
            base = getattr(parent, name)
            setattr(parent, name, LoRALinear(base, settings.lora_rank, settings.lora_alpha, settings.lora_dropout))


def merge_lora(gpt2):
    """Replace every LoRALinear of gpt2 by its merged nn.Linear, in place. Explicit, never a side effect of eval()."""
    for parent in list(gpt2.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
