"""Generation against transformers and against itself without a cache; sampling against enumeration."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from config import DecodingSettings
from decoding import row_streams, sample, sample_nucleus
from decoding.filters import filter_logits
from errors import UserError
from modules.kv_cache import KVCache
from tests.test_tuning import CHOICES
from tests.writing import write
from tuning.attach import attach

GREEDY = DecodingSettings(temperature=0, max_new_tokens=24)


def some_prompts(number, seed=0):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (number,), generator=random).tolist()
    return [torch.randint(0, 8599, (length,), generator=random).tolist() for length in lengths]


def greedy_without_cache(gpt2, prompt, steps, end_of_text=None):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            out = gpt2(torch.tensor([ids]))
            token = gpt2.hidden_state_to_token(out["last_token"])[0].argmax().item()
            if token == end_of_text:
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_cached_equals_uncached_equals_left_padded_batch(gpt2, batch_size):
    prompts = some_prompts(batch_size)
    uncached = [greedy_without_cache(gpt2, prompt, 24) for prompt in prompts]
    assert [write(gpt2, [prompt], GREEDY)[0] for prompt in prompts] == uncached
    assert write(gpt2, prompts, GREEDY) == uncached
    assert len({tuple(ids) for ids in uncached}) > 1 or batch_size == 1  # the texts differ, or equality says nothing


@pytest.mark.parametrize("choice", CHOICES)
def test_the_same_with_a_tuning_method_attached(gpt2, choice):
    attach(gpt2, CHOICES[choice])
    with torch.no_grad():
        for p in gpt2.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    prompts = some_prompts(5)
    assert write(gpt2, prompts, GREEDY) == [greedy_without_cache(gpt2, prompt, 24) for prompt in prompts]


def test_greedy_tokens_equal_transformers(gpt2, hugging_face_gpt2):
    prompts = some_prompts(4, seed=1)
    for prompt, ours in zip(prompts, write(gpt2, prompts, GREEDY, end_of_text=8599), strict=True):
        theirs = hugging_face_gpt2.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=8599, attention_mask=None
        )[0, len(prompt) :].tolist()
        assert ours == [token for token in theirs if token != 8599]


def test_logits_of_cached_chunks_equal_a_whole_pass(gpt2):
    ids = torch.randint(0, 8600, (3, 17))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for attention_mask in (mask, None):
        cache = KVCache(len(gpt2.gpt_layers), 17)
        with torch.no_grad():
            whole = gpt2(ids, attention_mask)["last_hidden_state"]
            pieces = []
            for start, end in ((0, 5), (5, 6), (6, 13), (13, 17)):
                seen = None if attention_mask is None else attention_mask[:, :end]
                pieces.append(gpt2(ids[:, start:end], seen, cache)["last_hidden_state"])
        real = mask.bool() if attention_mask is not None else torch.ones_like(mask).bool()
        torch.testing.assert_close(torch.cat(pieces, 1)[real], whole[real], atol=1e-5, rtol=1e-5)


def test_the_cache_refuses_to_overflow(gpt2):
    cache = KVCache(len(gpt2.gpt_layers), 4)
    with pytest.raises(ValueError, match="holds 4 positions, 5 are needed"):
        gpt2(torch.zeros(1, 5, dtype=torch.long), cache=cache)


# --- sampling ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("penalty, ngram", [(1.3, 0), (0.7, 0), (1.0, 1), (1.0, 2), (1.0, 3), (1.2, 2)])
def test_history_filters_equal_transformers(penalty, ngram):
    settings = DecodingSettings(repetition_penalty=penalty, no_repeat_ngram=ngram)
    histories = torch.randint(0, 6, (8, 15))
    logits = torch.randn(8, 10)
    expected = logits.clone()
    if penalty != 1:
        expected = RepetitionPenaltyLogitsProcessor(penalty)(histories, expected)
    if ngram:
        expected = NoRepeatNGramLogitsProcessor(ngram)(histories, expected)
    before = logits.clone()
    assert torch.equal(filter_logits(logits, histories.tolist(), settings), expected)
    assert torch.equal(logits, before) and not torch.equal(expected, logits)


def test_filtered_greedy_tokens_equal_transformers(gpt2, hugging_face_gpt2):
    settings = DecodingSettings(temperature=0, max_new_tokens=24, repetition_penalty=1.3, no_repeat_ngram=2)
    prompts = some_prompts(4, seed=1)
    for prompt, ours in zip(prompts, write(gpt2, prompts, settings, end_of_text=8599), strict=True):
        theirs = hugging_face_gpt2.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=24,
            repetition_penalty=1.3,
            no_repeat_ngram_size=2,
            pad_token_id=8599,
            attention_mask=None,
        )[0, len(prompt) :].tolist()
        assert ours == [token for token in theirs if token != 8599]


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


def test_a_seed_gives_the_same_texts_at_any_batch_size(gpt2):
    settings = DecodingSettings(temperature=1.2, top_p=0.9, max_new_tokens=20)
    prompts = some_prompts(7)
    together = write(gpt2, prompts, settings, seed=3)
    assert [write(gpt2, [p], settings, seed=3, rows=[i])[0] for i, p in enumerate(prompts)] == together
    halves = write(gpt2, prompts[:3], settings, seed=3) + write(gpt2, prompts[3:], settings, 3, rows=range(3, 7))
    assert halves == together
    assert write(gpt2, prompts, settings, seed=4) != together
    assert len({tuple(ids) for ids in write(gpt2, [prompts[0]] * 5, settings, seed=3)}) == 5


def test_end_of_text_and_stop_end_a_row_and_leave_the_others_alone(gpt2):
    prompts = some_prompts(6)
    free = write(gpt2, prompts, GREEDY)
    end = free[2][5]
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in free]
    assert write(gpt2, prompts, GREEDY, end_of_text=end) == expected
    lengths = [3, 24, 8, 1, 24, 15]
    stopped = write(gpt2, prompts, GREEDY, stop=lambda index, ids: len(ids) >= lengths[index])
    assert stopped == [ids[:length] for ids, length in zip(free, lengths, strict=True)]


def test_progress_counts_the_texts_tokens(gpt2):
    counts = []
    outputs = write(gpt2, some_prompts(3), GREEDY, stop=lambda i, ids: len(ids) == 4 + i, progress=counts.append)
    assert sum(counts) == sum(map(len, outputs)) == 4 + 5 + 6


def test_the_context_bounds_the_text_and_a_prompt_that_fills_it_is_refused(gpt2):
    settings = DecodingSettings(temperature=0, max_new_tokens=100)
    assert len(write(gpt2, [[5] * 250], settings)[0]) == 6
    with pytest.raises(UserError, match="256 tokens leaves no room"):
        write(gpt2, [[5] * 256], settings)


def test_no_gradient_is_recorded(gpt2):
    logits = []
    hook = gpt2.final_layer_norm.register_forward_hook(lambda module, inputs, output: logits.append(output))
    write(gpt2, [[1, 2]], GREEDY)
    hook.remove()
    assert not any(output.requires_grad for output in logits)
