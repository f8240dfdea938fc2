"""(IA)^3: inner activations inhibited and amplified (Liu et al. 2022, arXiv 2205.05638, section 3.3).

    keys l_k * k, values l_v * v, and l_ff * gelu(...) before out_dense        l: learned, ones at the start

On the linears: query, key, value, attention_dense and interm_dense have their output scaled, out_dense its input. Both
forms are exact products, so they merge into weight and bias. Trainable parameters: out (in for out_dense) a linear.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modules.lora import TunedLinear, plain_linear, replace_linears


class IA3Linear(TunedLinear):
    def __init__(self, base, scales_input):
        super().__init__(base)
        self.scales_input = scales_input
        size = base.in_features if scales_input else base.out_features
        self.ia3_scale = nn.Parameter(torch.ones(size, device=base.weight.device))

    def forward(self, x):
        """(..., in) -> (..., out)"""
        if self.scales_input:
            return F.linear(x * self.ia3_scale, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias) * self.ia3_scale

    def tuning_parameters(self):
        return [self.ia3_scale]

    @torch.no_grad()
    def merged(self):
        """A plain nn.Linear with the factors folded in."""
        if self.scales_input:
            return plain_linear(nn.Parameter(self.weight * self.ia3_scale, requires_grad=False), self.bias)
        weight = nn.Parameter(self.weight * self.ia3_scale[:, None], requires_grad=False)
        return plain_linear(weight, nn.Parameter(self.bias * self.ia3_scale, requires_grad=False))


def apply_ia3(gpt2, settings):
    """Replace the linears named in settings (IA3Settings) by IA3Linears, in every layer of gpt2, in place."""
    for name in settings.targets:
        replace_linears(gpt2, [name], lambda base, name=name: IA3Linear(base, scales_input=name == "out_dense"))
