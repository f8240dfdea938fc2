"""LoRA: Low-Rank Adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    y = x W^T + b + s dropout(x) A^T B^T        A: (r, in), B: (out, r)

s is alpha / r or, rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732), alpha / sqrt(r). W and b stay frozen. B
starts at zero, so at step 0 the model is the pretrained one; A starts kaiming-uniform with a = sqrt(5), that is
U(-1/sqrt(in), 1/sqrt(in)), as in the authors' code (the paper says Gaussian).

LoRALinear adopts the tensors of the linear it replaces: the model's own keys do not change, and only lora_A and lora_B
are new. Trainable parameters: r (in + out) for each adapted linear.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from modules.dropout import Dropout


class TunedLinear(nn.Linear):
    """An nn.Linear that takes over the very tensors of the one it replaces, for a tuning method to build on."""

    def __init__(self, base):
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate a weight of its own
        self.adopt(base)

    def adopt(self, base):
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias

    def plain(self):
        """The nn.Linear that this one replaced: the same tensors."""
        return plain_linear(self.weight, self.bias)

    def merged(self):
        """A plain nn.Linear that computes the same. Raises UserError where there is none."""
        raise UserError(f"a {type(self).__name__} cannot be merged into one weight: detach it")


class LoRALinear(TunedLinear):
    def __init__(self, base, rank, scaling, dropout=0.0, train_bias=False):
        super().__init__(base)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=base.bias.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.bias.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_dropout = Dropout(dropout)
        self.scaling, self.train_bias = scaling, train_bias

    def forward(self, x):
        """(..., in) -> (..., out)"""
        return super().forward(x) + self.update(x)

    def update(self, x):
        """(..., in) -> (..., out): what LoRA adds."""
        # Scaled where it is narrowest. The copy of B is small, and its layout makes B's gradient the product (r, N) x
        # (N, out); F.linear's would be (out, N) x (N, r), which is seven times slower on a CPU
        return (F.linear(self.lora_dropout(x), self.lora_A) * self.scaling) @ self.lora_B.t().contiguous()

    def tuning_parameters(self):
        return [self.lora_A, self.lora_B, *([self.bias] if self.train_bias else [])]

    @torch.no_grad()
    def merged(self):
        """A plain nn.Linear with W + s B A. The product is computed in fp32 whatever the weight's dtype."""
        weight = self.weight.float() + self.scaling * (self.lora_B.float() @ self.lora_A.float())
        return plain_linear(nn.Parameter(weight.to(self.weight.dtype), requires_grad=False), self.bias)


def plain_linear(weight, bias):
    """An nn.Linear of these very tensors."""
    linear = nn.Linear(weight.size(1), weight.size(0), device="meta")
    linear.weight, linear.bias = weight, bias
    return linear


def apply_lora(gpt2, settings, kind=LoRALinear):
    """Replace the linears named in settings (LoRASettings) by LoRALinears, in every layer of gpt2, in place."""
    options = (settings.lora_rank, settings.scaling, settings.lora_dropout, settings.lora_bias == "lora_only")
    replace_linears(gpt2, settings.targets, lambda base: kind(base, *options))


def replace_linears(gpt2, names, make):
    """Put make(linear) in the place of the linears of these names, in every layer of gpt2."""
    for layer in gpt2.gpt_layers:
        for name in names:
            parent = layer.self_attention if name in ("query", "key", "value") else layer
            setattr(parent, name, make(getattr(parent, name)))


def combine_lora(adapters):
    """The weighted sum of several LoRAs as one: [(tensors, scaling, weight)] -> tensors for a LoRA of scaling 1.

    tensors: as `tuning.state.trainable_state_dict` gives them, of the same linears; ranks may differ and add up. The
    sum is exact: w1 s1 B1 A1 + w2 s2 B2 A2 = [w1 s1 B1, w2 s2 B2] [A1; A2].
    """
    names = adapters[0][0].keys()
    combined = {}
    for name in names:
        if name.endswith("lora_A"):
            combined[name] = torch.cat([tensors[name] for tensors, _, _ in adapters])
        elif name.endswith("lora_B"):
            combined[name] = torch.cat([weight * s * tensors[name] for tensors, s, weight in adapters], dim=1)
        else:
            raise ValueError(f"{name} is no factor of a LoRA: only plain LoRAs can be added")
    return combined
