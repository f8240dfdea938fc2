"""NF4: frozen linears in 4 bits a weight (QLoRA: Dettmers et al. 2023, arXiv 2305.14314, section 3).

Weights go in blocks of 64, each divided by its largest magnitude, and every quotient becomes the nearest of 16 levels:
the quantiles of a normal distribution, which is what weights look like. Two levels share a byte, the first in the high
half. Double quantisation: the blocks' magnitudes, less their mean, go in blocks of 256 themselves, as 8-bit numbers.
4.5 bits a weight become 4.127.

QLoRA is LoRA over such linears: `apply_qlora` quantises all linears of the layers, then attaches LoRA. The quantised
weights are buffers; they are computed with, never trained.

Legend: n weights, N = n / 64 blocks, M = N / 256 blocks of blocks.
"""

import torch
import torch.nn.functional as F
from torch import nn

from config import LINEAR_NAMES
from modules.lora import LoRALinear, TunedLinear, apply_lora, plain_linear, replace_linears

BLOCK, OUTER_BLOCK = 64, 256
PARTS = ("codes", "scale_codes", "outer_scales", "mean")  # what a weight is kept as
TINY = torch.finfo(torch.float32).tiny  # instead of a division by 0 where a block is all zeros
# The levels of appendix E, as bitsandbytes has them.
LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    device="cpu",
)


def dynamic_levels():
    """The 256 levels of the outer quantisation: a signed dynamic-exponent number (Dettmers 2022, arXiv 2110.02861).

    One bit is the sign; k zeros then give the power of ten, and the bits after the next 1 a linear fraction.
    """
    positive = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, device="cpu")
        means = (edges[:-1] + edges[1:]) / 2
        positive += (10.0 ** (exponent - 6) * means).tolist()
    values = sorted([*positive, *(-value for value in positive), 0.0, 1.0])
    return torch.tensor(values, device="cpu")


OUTER_LEVELS = dynamic_levels()


def nearest(values, levels):
    """The index of the nearest level for each value; levels (K,) ascending. At a midpoint the lower one."""
    midpoints = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(values, midpoints)


def quantize_nf4(weight):
    """-> {"codes": (n / 2,) uint8, "scale_codes": (N,) uint8, "outer_scales": (M,), "mean": ()} for a weight."""
    blocks = _in_blocks(weight.detach().float().flatten(), BLOCK)
    scales = blocks.abs().amax(dim=1)
    codes = nearest(blocks / scales.clamp(min=TINY)[:, None], LEVELS.to(weight.device))
    codes = codes.flatten().to(torch.uint8)[: 2 * (-(-weight.numel() // 2))]
    mean = scales.mean()
    outer = _in_blocks(scales - mean, OUTER_BLOCK)
    outer_scales = outer.abs().amax(dim=1)
    scale_codes = nearest(outer / outer_scales.clamp(min=TINY)[:, None], OUTER_LEVELS.to(weight.device))
    return {
        "codes": (codes[0::2] << 4) | codes[1::2],
        "scale_codes": scale_codes.flatten()[: len(scales)].to(torch.uint8),
        "outer_scales": outer_scales,
        "mean": mean,
    }


def dequantize_nf4(parts, shape, dtype=torch.float32):
    """The weight that `quantize_nf4` kept, (out, in)."""
    count, device = shape[0] * shape[1], parts["codes"].device
    outer = _in_blocks(OUTER_LEVELS.to(device)[parts["scale_codes"].long()], OUTER_BLOCK)
    scales = (outer * parts["outer_scales"][:, None]).flatten()[: len(parts["scale_codes"])] + parts["mean"]
    codes = torch.stack([parts["codes"] >> 4, parts["codes"] & 15], dim=1).flatten().long()
    values = _in_blocks(LEVELS.to(device)[codes], BLOCK) * scales[:, None]
    return values.flatten()[:count].view(shape).to(dtype)


def _in_blocks(values, size):
    """(n,) -> (blocks, size), filled up with zeros."""
    return F.pad(values, (0, -len(values) % size)).view(-1, size)


class _NF4Product(torch.autograd.Function):
    """x W^T for a quantised W: it is unpacked again for the backward pass, not kept in between."""

    @staticmethod
    def forward(ctx, x, shape, *parts):
        ctx.save_for_backward(*parts)
        ctx.shape = shape
        return F.linear(x, _unpacked(parts, shape, x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ _unpacked(ctx.saved_tensors, ctx.shape, gradient.dtype), None, *[None] * len(PARTS)


def _unpacked(parts, shape, dtype):
    return dequantize_nf4(dict(zip(PARTS, parts, strict=True)), shape, dtype)


class NF4Linear(TunedLinear):
    """A frozen linear in NF4. `weight` unpacks it whenever it is asked for; the bias stays as it is."""

    def adopt(self, base):
        """Take over a linear: quantised where it is not yet."""
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        quantized = isinstance(base, NF4Linear)
        parts = base.parts if quantized else quantize_nf4(base.weight)
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)

    @property
    def parts(self):
        return {name: getattr(self, name) for name in PARTS}

    @property
    def weight(self):
        """(out, in), in fp32, made anew at every access."""
        return dequantize_nf4(self.parts, (self.out_features, self.in_features))

    def forward(self, x):
        """(..., in) -> (..., out)"""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product = _NF4Product.apply(x, (self.out_features, self.in_features), *self.parts.values())
        return product + self.bias.to(x.dtype)

    def plain(self):
        return self  # what was rounded away is gone: this is the base now

    def merged(self):
        """A plain nn.Linear of the unpacked weight."""
        return plain_linear(nn.Parameter(self.weight, requires_grad=False), self.bias)

    @property
    def packed_weights(self):
        """How many weights the buffers stand for."""
        return self.out_features * self.in_features

    def size(self):
        """Bytes of the quantised weight."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


class NF4LoRALinear(LoRALinear, NF4Linear):
    """LoRA (forward, factors, merging) over NF4 (adopt, weight)."""

    adopt = NF4Linear.adopt

    def plain(self):
        return NF4Linear(self)


def quantize_linears(gpt2):
    """Replace all linears of gpt2's layers by NF4Linears, in place. The embeddings stay as they are."""
    replace_linears(gpt2, LINEAR_NAMES, NF4Linear)


def apply_qlora(gpt2, settings):
    """Quantise the layers of gpt2 and put LoRA over the linears named in settings (LoRASettings), in place."""
    quantize_linears(gpt2)
    apply_lora(gpt2, settings, NF4LoRALinear)
