"""Drawing the next token: temperature, top-k, top-p, min-p.

Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751, section 3.1) draws from the smallest set of tokens whose
probabilities add up to top_p. It is usually done by sorting the vocabulary at every step. It need not be: see
`sample_nucleus`.

Every row has its own random stream, made from the seed and the row's number: the same logits give the same texts at any
batch size and in any order. (Whether the logits are the same: decoding/generation.py.)

min-p (Nguyen et al. 2024, arXiv 2407.01082, section 3) besides strikes what is less probable than a share of the most
probable token.

Legend: B rows in the batch, V vocabulary.
"""

import torch

from errors import Diverged

NOT_FINITE = "the model's probabilities are not finite: its weights are damaged, or training diverged"


def row_streams(seed, rows):
    """One torch.Generator for each row number."""
    return [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]


def sample(logits, streams, settings):
    """Draw the next token of every row: (B, V) logits, B streams -> (B,) token ids.

    settings: DecodingSettings (temperature, 0 means greedy; top_k, 0 means all; top_p; min_p). Temperature comes first,
    then top-k, then top-p on what is left, renormalised, then min-p, as in transformers.
    """
    logits = logits.float()
    if settings.temperature == 0:
        best, tokens = logits.max(dim=-1)  # NaN where a row has one
        if not torch.isfinite(best).all():
            raise Diverged(NOT_FINITE)
        return tokens
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.size(-1):
        kth_largest = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth_largest, float("-inf"))
    return sample_nucleus(logits.softmax(dim=-1), streams, settings.top_p, settings.min_p)


def sample_nucleus(probabilities, streams, top_p, min_p=0.0):
    """Draw from the nucleus of every row, exactly and without sorting: (B, V) -> (B,).

    Of the nucleus only tokens count that are at least min_p times as probable as the most probable one.

    A token is in the nucleus if the tokens more probable than it add up to less than top_p. That takes one sum, so:
    draw a token from the whole distribution; keep it if it is in the nucleus; else strike it and everything that is no
    more probable (all outside, too) and draw again. What is left outside shrinks quickly, and at least a share top_p of
    the first draws is kept. (Tokens tied with the nucleus's last one count as inside.)
    """
    tokens = torch.empty(len(probabilities), dtype=torch.long, device=probabilities.device)
    pending = torch.arange(len(probabilities), device=probabilities.device)
    remaining = probabilities
    least = min_p * probabilities.amax(dim=-1)
    while len(pending):
        uniforms = torch.stack(
            [torch.rand((), dtype=torch.float64, generator=streams[row]) for row in pending.tolist()]
        )
        cumulative = remaining.cumsum(dim=-1)
        if not (cumulative[:, -1] > 0).all():  # NaN, too; else this loop would never end
            raise Diverged(NOT_FINITE)
        target = uniforms.to(cumulative.device, cumulative.dtype)[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.size(-1) - 1)
        level = remaining.gather(-1, drawn)
        above = torch.where(remaining > level, remaining, 0)
        inside = (level.squeeze(-1) > 0) & (level.squeeze(-1) >= least)
        if top_p < 1:
            inside &= above.sum(dim=-1) < top_p
        tokens[pending[inside]] = drawn[inside].squeeze(-1)
        remaining, least = above[~inside], least[~inside]
        pending = pending[~inside]
    return tokens
