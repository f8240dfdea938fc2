"""Common mistakes in the tuning methods: LoRA, adapter, (IA)^3."""

import torch
import torch.nn.functional as F
from torch import nn

from course.mistakes import mistake
from modules.lora import TunedLinear

# --- lora -------------------------------------------------------------------------------------------------------------


def lora(message, target, wrong):
    mistake("lora", message, f"modules.lora:LoRALinear.{target}")(wrong)


def _started(weights_of_a, weights_of_b):
    """A wrong constructor."""

    def __init__(self, base, rank, scaling, dropout=0.0, train_bias=False):
        TunedLinear.__init__(self, base)
        self.lora_A = nn.Parameter(weights_of_a(rank, base.in_features))
        self.lora_B = nn.Parameter(weights_of_b(base.out_features, rank))
        self.lora_dropout, self.scaling, self.train_bias = nn.Dropout(dropout), scaling, train_bias

    return __init__


def low_rank(self, x):
    return self.lora_dropout(x) @ self.lora_A.t() @ self.lora_B.t()


def _merged_unscaled(self):
    weight = nn.Parameter((self.weight + self.lora_B @ self.lora_A).detach())
    linear = nn.Linear(weight.size(1), weight.size(0))
    linear.weight, linear.bias = weight, self.bias
    return linear


def _dropped_everywhere(self, x):
    x = self.lora_dropout(x)
    return F.linear(x, self.weight, self.bias) + self.scaling * (x @ self.lora_A.t() @ self.lora_B.t())


lora("lora_B does not start at zero, so the model is another one before it has learnt anything", "__init__",
     _started(torch.randn, torch.randn))  # fmt: skip
lora("lora_A starts at zero as lora_B does: then neither gets a gradient", "__init__",
     _started(torch.zeros, torch.zeros))  # fmt: skip
lora("the update is not scaled: `scaling` (alpha / r) is missing", "update", low_rank)
lora("dropout is on the base's input, too: it belongs on the low-rank branch alone", "forward", _dropped_everywhere)
lora("the merged weight leaves out the scaling", "merged", _merged_unscaled)


# --- adapter ----------------------------------------------------------------------------------------------------------

ADAPTER = "modules.adapter:BottleneckAdapter"


@mistake("adapter", "the residual connection is missing: the adapter adds to its input", f"{ADAPTER}.forward")
def without_residual(self, hidden_states):
    return self.up(F.gelu(self.down(hidden_states)))


@mistake("adapter", "there is no GELU between down and up: two linears in a row are one", f"{ADAPTER}.forward")
def without_gelu(self, hidden_states):
    return hidden_states + self.up(self.down(hidden_states))


@mistake("adapter", "the adapter is not the identity at first: `up` must start at zero", f"{ADAPTER}.__init__")
def random_start(self, width, size, device=None):
    nn.Module.__init__(self)
    self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)


# --- ia3 --------------------------------------------------------------------------------------------------------------

IA3 = "modules.ia3:IA3Linear"


@mistake("ia3", "the bias is not scaled: the factors are on the whole output", f"{IA3}.forward")
def bias_unscaled(self, x):
    if self.scales_input:
        return F.linear(x * self.ia3_scale, self.weight, self.bias)
    return F.linear(x, self.weight) * self.ia3_scale + self.bias


@mistake("ia3", "the factors start at zero, so nothing comes out at first: they start at one", f"{IA3}.__init__")
def zero_factors(self, base, scales_input):
    TunedLinear.__init__(self, base)
    self.scales_input = scales_input
    self.ia3_scale = nn.Parameter(torch.zeros(base.in_features if scales_input else base.out_features))


@mistake("ia3", "the merged bias is not scaled, where the output is", f"{IA3}.merged")
def merged_bias_unscaled(self):
    scale = self.ia3_scale if self.scales_input else self.ia3_scale[:, None]
    linear = nn.Linear(self.in_features, self.out_features)
    linear.weight, linear.bias = nn.Parameter((self.weight * scale).detach()), self.bias
    return linear
