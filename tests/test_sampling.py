"""Sampling against the distribution that transformers' filters leave."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from config import DecodingSettings
from decoding import row_streams, sample, sample_nucleus


def reference_distribution(logits, settings):
    """transformers' filters, in its order, then softmax."""
    if settings.temperature != 1:
        logits = TemperatureLogitsWarper(settings.temperature)(None, logits)
    if settings.top_k:
        logits = TopKLogitsWarper(settings.top_k)(None, logits)
    if settings.top_p < 1:
        logits = TopPLogitsWarper(settings.top_p)(None, logits)
    if settings.min_p:
        logits = MinPLogitsWarper(settings.min_p)(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p",
    [
        *((1.2, 0, 0.9, 0.0), (0.7, 0, 0.3, 0.0), (1.0, 5, 1.0, 0.0), (1.5, 12, 0.6, 0.0)),
        *((1.0, 0, 1.0, 0.3), (1.2, 0, 0.9, 0.4), (1.5, 12, 0.8, 0.2)),
    ],
)
@pytest.mark.parametrize("shape", ["flat", "peaked"])
def test_samples_follow_the_distribution_that_transformers_filters_leave(temperature, top_k, top_p, min_p, shape):
    settings = DecodingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.randn(1, 40) * (0.3 if shape == "flat" else 3)
    expected = reference_distribution(logits, settings)[0]
    draws = 20_000
    stream = torch.Generator().manual_seed(5)
    tokens = sample(logits.expand(draws, -1), [stream] * draws, settings)
    frequency = torch.bincount(tokens, minlength=40) / draws
    assert (frequency[expected == 0] == 0).all(), "a token outside the nucleus was drawn"
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() <= 4.5 * deviation + 1e-9).all()


def test_the_nucleus_is_transformers_nucleus_on_a_real_vocabulary_size():
    """Which tokens can come out: drawn exhaustively by handing every token its own place in the unit interval."""
    logits = torch.randn(1, 50257) * 2
    kept = reference_distribution(logits, DecodingSettings(temperature=1.0, top_p=0.9))[0] > 0
    probabilities = logits.softmax(-1)[0]
    for token in [*torch.randint(0, 50257, (300,)).tolist(), probabilities.argmax().item()]:
        inside = probabilities[probabilities > probabilities[token]].sum() < 0.9
        assert inside == kept[token] or abs(probabilities[probabilities > probabilities[token]].sum() - 0.9) < 1e-5
    streams = row_streams(0, range(400))
    drawn = sample_nucleus(probabilities.expand(400, -1), streams, 0.9)
    assert kept[drawn].all()


def test_a_tiny_nucleus_in_a_flat_distribution_is_found():
    probabilities = torch.full((1, 1000), 1 / 1000)
    probabilities[0, 7] += 1e-4
    streams = [torch.Generator().manual_seed(1)] * 50
    assert set(sample_nucleus(probabilities.expand(50, -1), streams, 1e-6).tolist()) == {7}


def test_temperature_0_is_greedy_and_top_k_1_too():
    logits = torch.randn(6, 30)
    streams = row_streams(0, range(6))
    assert sample(logits, streams, DecodingSettings(temperature=0)).tolist() == logits.argmax(-1).tolist()
    assert sample(logits, streams, DecodingSettings(top_k=1)).tolist() == logits.argmax(-1).tolist()
