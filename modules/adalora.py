"""AdaLoRA: a budget of ranks, spent on the weights where it matters (Zhang et al. 2023, arXiv 2303.10512).

    y = x W^T + b + s dropout(x) (A * E)^T B^T        A: (r, in), E: (r, 1), B: (out, r), s = alpha / (r + 1e-5)

As in a singular value decomposition, E holds the strengths and A, B the directions, kept near orthogonal by a penalty.
Training starts with r = the start rank everywhere. Row i of A, E_i and column i of B are a triplet. A triplet's score
(section 3.2) is the sum of its E's importance and the mean importances of its A row and its B column; importance is
|p grad|, smoothed, times its own smoothed uncertainty. The triplets with the lowest scores over the whole model have
their E set to zero, so many that the budget holds; the budget falls from the start to the target on a cubic curve
(section 3.3). A triplet may come back while the budget falls; afterwards the chosen ones stay.

E starts at zero: at step 0 the model is the pretrained one. Names and order are peft's, whose allocation ours equals:
backward, optimizer step, allocate, zero_grad. The penalty is part of the loss in training only (peft adds it in eval,
too). Trainable parameters: r (in + out + 1) for each adapted linear.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modules.dropout import Dropout
from modules.lora import TunedLinear, plain_linear, replace_linears

BETA1 = BETA2 = 0.85  # smoothing of importance and uncertainty
FACTORS = ("lora_A", "lora_E", "lora_B")


class AdaLoRALinear(TunedLinear):
    def __init__(self, base, rank, alpha, dropout):
        super().__init__(base)
        device = base.bias.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device).normal_(std=0.02))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=device))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank, device=device).normal_(std=0.02))
        self.lora_dropout = Dropout(dropout)
        self.scaling = alpha / (rank + 1e-5)
        for name in FACTORS:  # the allocator's memory; kept with the run, so that it can go on
            for kind in ("importance", "uncertainty"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(getattr(self, name)))
        self.register_buffer("kept", torch.ones(rank, 1, device=device))

    def forward(self, x):
        """(..., in) -> (..., out)"""
        low_rank = F.linear(self.lora_dropout(x), self.lora_A * self.lora_E) @ self.lora_B.t()
        return F.linear(x, self.weight, self.bias) + low_rank * self.scaling

    def tuning_parameters(self):
        return [getattr(self, name) for name in FACTORS]

    def tuning_buffers(self):
        """What must be kept besides, for a run to go on to the same result."""
        return ["kept", *(f"{kind}_{name}" for name in FACTORS for kind in ("importance", "uncertainty"))]

    def orthogonality(self):
        """||A A^T - I||_F + ||B^T B - I||_F (the paper squares them; this is what the authors' code does)."""
        identity = torch.eye(len(self.lora_A), device=self.lora_A.device)
        return (self.lora_A @ self.lora_A.t() - identity).norm() + (self.lora_B.t() @ self.lora_B - identity).norm()

    @torch.no_grad()
    def remember(self):
        """Take this step's gradients into the smoothed importances and uncertainties."""
        for name in FACTORS:
            parameter = getattr(self, name)
            importance, uncertainty = getattr(self, f"importance_{name}"), getattr(self, f"uncertainty_{name}")
            now = (parameter * parameter.grad).abs()
            importance.mul_(BETA1).add_((1 - BETA1) * now)
            uncertainty.mul_(BETA2).add_((1 - BETA2) * (now - importance).abs())

    def scores(self):
        """(r,): one number for every triplet."""
        a, e, b = (getattr(self, f"importance_{name}") * getattr(self, f"uncertainty_{name}") for name in FACTORS)
        return e.squeeze(1) + a.mean(dim=1) + b.mean(dim=0)

    @torch.no_grad()
    def merged(self):
        """A plain nn.Linear with W + s B diag(E) A."""
        weight = self.weight.float() + self.scaling * (self.lora_B @ (self.lora_A * self.lora_E))
        return plain_linear(nn.Parameter(weight.to(self.weight.dtype), requires_grad=False), self.bias)


class RankAllocator:
    """Called after every optimizer step, before the gradients are cleared. settings: AdaLoRASettings."""

    def __init__(self, gpt2, settings):
        self.settings = settings
        self.layers = [module for module in gpt2.modules() if isinstance(module, AdaLoRALinear)]
        self.start = settings.adalora_start_rank * len(self.layers)
        self.target = settings.adalora_rank * len(self.layers)

    def span(self, total_steps):
        """(the last step with the whole budget, the first with the final one)."""
        first = round(self.settings.adalora_warmup * total_steps)
        return first, total_steps - round(self.settings.adalora_final * total_steps)

    def budget(self, step, total_steps):
        """(triplets to keep in all, whether this step allocates)."""
        first, last = self.span(total_steps)
        if step <= first:
            return self.start, False
        if step > last:
            return self.target, True
        left = 1 - (step - first) / (last - first)
        return int((self.start - self.target) * left**3 + self.target), step % self.settings.adalora_interval == 0

    def __call__(self, step, total_steps):
        """step: counted from 1."""
        _, last = self.span(total_steps)
        if step > last:
            self._mask()
            return
        if step < last:
            for layer in self.layers:
                layer.remember()
        budget, allocate = self.budget(step, total_steps)
        if allocate or step == last:
            self._choose(budget)
            self._mask()

    def _choose(self, budget):
        scores = [layer.scores() for layer in self.layers]
        surplus = self.start - budget
        if surplus > 0:
            threshold = torch.cat(scores).kthvalue(surplus).values
            for layer, own in zip(self.layers, scores, strict=True):
                layer.kept.copy_((own > threshold)[:, None])

    @torch.no_grad()
    def _mask(self):
        for layer in self.layers:
            layer.lora_E.mul_(layer.kept)


def apply_adalora(gpt2, settings):
    """Replace the linears named in settings (AdaLoRASettings) by AdaLoRALinears, in every layer of gpt2, in place."""
    options = (settings.adalora_start_rank, settings.adalora_alpha, settings.adalora_dropout)
    replace_linears(gpt2, settings.targets, lambda base: AdaLoRALinear(base, *options))


def adalora_penalty(gpt2, settings):
    """The term of the loss that keeps A and B near orthogonal: its weight times the mean over all of them."""
    layers = [module for module in gpt2.modules() if isinstance(module, AdaLoRALinear)]
    return settings.adalora_penalty * sum(layer.orthogonality() for layer in layers) / (2 * len(layers))
