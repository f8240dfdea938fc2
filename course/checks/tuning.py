"""Cases of the tuning methods: LoRA, adapter, (IA)^3."""

import torch
from torch import nn

from course.checks import case
from course.checks.model import Scaled

# --- lora -------------------------------------------------------------------------------------------------------------


def adapted(draw, scaling=3.5, filled=True):
    """A linear from 6 to 4 and a LoRALinear of rank 3 in its place."""
    from modules.lora import LoRALinear

    base = draw.fill(nn.Linear(6, 4))
    layer = LoRALinear(base, rank=3, scaling=scaling).eval()
    if filled:
        with torch.no_grad():
            layer.lora_A.copy_(draw.normal(3, 6))
            layer.lora_B.copy_(draw.normal(4, 3))
    return base, layer


@case("lora")
def start(draw):
    """lora_A is (rank, in) and random, lora_B (out, rank) and zero, so that at first nothing is added; both are
    trained, and weight and bias are the base's own tensors"""
    base, layer = adapted(draw, filled=False)
    x = draw.normal(5, 6)
    return {
        "shapes": torch.tensor([*layer.lora_A.shape, *layer.lora_B.shape]),
        "lora_B is zero": not layer.lora_B.any().item(),
        "lora_A is zero": not layer.lora_A.any().item(),
        "the base's output": torch.allclose(layer(x), base(x)),
        "the base's tensors": layer.weight is base.weight and layer.bias is base.bias,
        "A and B are trained": all(
            isinstance(p, nn.Parameter) and p.requires_grad for p in (layer.lora_A, layer.lora_B)
        ),
    }


@case("lora")
def equation(draw):
    """x W^T + b + s x A^T B^T; `update` is the last term alone, scaled"""
    _, layer = adapted(draw)
    x = draw.normal(2, 5, 6)
    return {"output": layer(x), "update": layer.update(x)}


@case("lora")
def dropout(draw):
    """lora_dropout is on the input of the low-rank branch alone; the base sees x itself"""
    _, layer = adapted(draw)
    layer.lora_dropout = Scaled(0.5)
    return {"output": layer(draw.normal(2, 5, 6))}


@case("lora")
def merging(draw):
    """merged() is a plain nn.Linear that computes the same, the update's scaling included; the layer stays as it is"""
    base, layer = adapted(draw)
    before = base.weight.clone()
    merged = layer.merged()
    return {
        "weight": merged.weight,
        "bias": merged.bias,
        "a plain nn.Linear": type(merged) is nn.Linear,
        "the base's weight is as it was": torch.equal(layer.weight, before),
    }


# --- adapter ----------------------------------------------------------------------------------------------------------


@case("adapter")
def adapter_start(draw):
    """linears `down` (width to size) and `up` (size to width); `up` starts at zero, so that the adapter starts as the
    identity; `down` does not start at zero, or neither would ever learn"""
    from modules.adapter import BottleneckAdapter

    adapter, x = BottleneckAdapter(8, 3), draw.normal(2, 5, 8)
    return {
        "shapes": torch.tensor([*adapter.down.weight.shape, *adapter.up.weight.shape]),
        "the identity": torch.allclose(adapter(x), x),
        "up is zero": not any(p.any().item() for p in adapter.up.parameters()),
        "down is zero": not adapter.down.weight.any().item(),
        "parameters": sum(p.numel() for p in adapter.parameters()),
    }


@case("adapter", tolerance=3e-3)  # GELU in either form
def adapter_equation(draw):
    """h + up(gelu(down(h)))"""
    from modules.adapter import BottleneckAdapter

    return {"output": draw.fill(BottleneckAdapter(8, 3))(draw.normal(2, 5, 8))}


# --- ia3 --------------------------------------------------------------------------------------------------------------


def scaled(draw, scales_input, filled=True):
    """A linear from 6 to 4 and an IA3Linear in its place."""
    from modules.ia3 import IA3Linear

    base = draw.fill(nn.Linear(6, 4))
    layer = IA3Linear(base, scales_input)
    if filled:
        with torch.no_grad():
            layer.ia3_scale.copy_(draw.normal(len(layer.ia3_scale)))
    return base, layer


@case("ia3")
def ia3_start(draw):
    """ia3_scale is trained, has an entry for each output (or input, where that is scaled) and starts at one: at first
    the layer computes what the base does"""
    x, found = draw.normal(5, 6), {}
    for name, scales_input in (("output", False), ("input", True)):
        base, layer = scaled(draw, scales_input, filled=False)
        found[f"{name}: size"] = layer.ia3_scale.numel()
        found[f"{name}: the base's output"] = torch.allclose(layer(x), base(x))
        found[f"{name}: trained"] = isinstance(layer.ia3_scale, nn.Parameter)
    return found


@case("ia3")
def ia3_equation(draw):
    """ia3_scale multiplies the whole output, bias included; or the input, before the weight"""
    x = draw.normal(2, 5, 6)
    return {"output scaled": scaled(draw, False)[1](x), "input scaled": scaled(draw, True)[1](x)}


@case("ia3")
def ia3_merging(draw):
    """merged() is a plain nn.Linear that computes the same, its bias scaled where the output is"""
    found = {}
    for name, scales_input in (("output", False), ("input", True)):
        merged = scaled(draw, scales_input)[1].merged()
        found |= {f"{name} scaled: weight": merged.weight, f"{name} scaled: bias": merged.bias}
        found[f"{name} scaled: a plain nn.Linear"] = type(merged) is nn.Linear
    return found
