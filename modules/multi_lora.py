"""Several LoRAs in one batch: every row has its own, or none (as S-LoRA serves them: Sheng et al. 2023, 2311.03285).

    y_row = x_row W^T + b + s_k x_row A_k^T B_k^T        k: the row's adapter

The base is computed once for the whole batch. Each row's factors are gathered from a stack, with ranks filled up to the
largest by zeros, and two batched products add the updates. For prediction; training knows one LoRA at a time.

Legend: B rows, T positions, K adapters, r the largest rank.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from modules.lora import TunedLinear, replace_linears


class Routing:
    """Which adapter each row of the batch has; shared by all linears of a model."""

    def __init__(self, names):
        self.places = {None: 0} | {name: place for place, name in enumerate(names, start=1)}
        self.rows = None  # (B,) long

    @contextlib.contextmanager
    def batch(self, names, device="cpu"):
        """Within this context the batch's rows have the adapters of these names; None is the base model alone."""
        self.rows = torch.tensor([self.places[name] for name in names], device=device)
        try:
            yield self
        finally:
            self.rows = None

    def select(self, rows):
        """Keep these rows, in this order: for `generate(..., on_select=routing.select)`."""
        self.rows = self.rows[rows]


class MultiLoRALinear(TunedLinear):
    def __init__(self, base, factors, routing):
        """factors: [(A, scaled B) or None], the adapters in the order of the routing."""
        super().__init__(base)
        self.routing = routing
        rank = max(len(pair[0]) for pair in factors if pair is not None)
        stack_a = base.weight.new_zeros(len(factors) + 1, base.in_features, rank)  # entry 0: the base alone
        stack_b = base.weight.new_zeros(len(factors) + 1, rank, base.out_features)
        for place, pair in enumerate(factors, start=1):
            if pair is not None:
                stack_a[place, :, : len(pair[0])] = pair[0].t()
                stack_b[place, : len(pair[0])] = pair[1].t()
        self.register_buffer("stack_a", stack_a)
        self.register_buffer("stack_b", stack_b)

    def forward(self, x):
        """(B, T, in) -> (B, T, out)"""
        rows = self.routing.rows
        if rows is None or len(rows) != len(x):
            given = "no batch" if rows is None else f"a batch of {len(rows)} rows"
            raise ValueError(f"the routing knows {given}, {len(x)} rows came: use `with routing.batch(names):`")
        update = torch.bmm(torch.bmm(x, self.stack_a[rows].to(x.dtype)), self.stack_b[rows].to(x.dtype))
        return update.add_(F.linear(x, self.weight, self.bias))


def apply_multi_lora(gpt2, adapters):
    """Put several LoRAs into gpt2, in place, and return the Routing. adapters: {name: (tensors, scaling)}.

    tensors: what `tuning.state.trainable_state_dict` gives of a gpt2 with a LoRA alone; ranks and linears may differ.
    """
    routing = Routing(adapters)
    linears = {module: name for name, module in gpt2.named_modules() if isinstance(module, nn.Linear)}

    def make(base):
        factors = [
            (tensors[f"{linears[base]}.lora_A"], scaling * tensors[f"{linears[base]}.lora_B"])
            if f"{linears[base]}.lora_A" in tensors
            else None
            for tensors, scaling in adapters.values()
        ]
        return base if all(pair is None for pair in factors) else MultiLoRALinear(base, factors, routing)

    targets = {key.split(".")[-2] for tensors, _ in adapters.values() for key in tensors}
    replace_linears(gpt2, sorted(targets), make)
    return routing
