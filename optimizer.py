"""AdamW from scratch: Adam (Kingma & Ba 2015, Algorithm 1) with decoupled weight decay (Loshchilov & Hutter 2019).

    m = b1 m + (1 - b1) g         m^ = m / (1 - b1^t)
    v = b2 v + (1 - b2) g^2       v^ = v / (1 - b2^t)
    p = p - lr m^ / (sqrt(v^) + eps)
    p = p - lr weight_decay p

As in the course, the decay comes after the update (Algorithm 2 of the AdamW paper does both at once, torch decays
first; all agree to first order in lr).
"""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class AdamW(Optimizer):
    """Updates run over groups of tensors at once (torch._foreach_*), which saves thousands of kernel launches on a GPU.

    params: tensors, or groups as dicts. lr: step size. betas: decay rates of the two moments. eps: keeps the division
    sane. weight_decay: decoupled. correct_bias: False leaves out the division by 1 - b^t.
    """

    GROUP_ELEMENTS = 2**24  # elements updated at once: bounds the temporary memory (64 MB in fp32)

    # As torch has them, less what keeps its compiler away: no optimizer is compiled here, and the import takes seconds.
    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, correct_bias=True):
        if lr < 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        if eps < 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. Returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if p.grad.is_sparse:
                    raise RuntimeError("AdamW does not support sparse gradients")
                if not self.state[p]:
                    self.state[p].update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                self.state[p]["step"] += 1
            for chunk in self._chunks(parameters):
                self._update(chunk, group)
        return loss

    def _chunks(self, parameters):
        """Lists of tensors that share a step count, device and dtype, and are small enough together."""
        chunks = {}
        for p in parameters:
            key = (self.state[p]["step"], p.device, p.dtype)
            chunk = chunks.get(key, [])
            if chunk and sum(q.numel() for q in chunk) + p.numel() > self.GROUP_ELEMENTS:
                yield chunks.pop(key)
            chunks.setdefault(key, []).append(p)
        yield from chunks.values()

    def _update(self, parameters, group):
        """Move tensors, and their moments, in place. group: their options; the step is counted already."""
        gradients = [p.grad for p in parameters]
        first = [self.state[p]["exp_avg"] for p in parameters]
        second = [self.state[p]["exp_avg_sq"] for p in parameters]
        step, (beta1, beta2) = self.state[parameters[0]]["step"], group["betas"]

        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)

        correction1 = 1 - beta1**step if group["correct_bias"] else 1.0
        correction2 = 1 - beta2**step if group["correct_bias"] else 1.0
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, correction2**0.5)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_addcdiv_(parameters, first, denominator, -group["lr"] / correction1)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])


def parameter_groups(model, weight_decay):
    """The trainable parameters in two groups: matrices decay, biases and LayerNorms (fewer than two axes) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
