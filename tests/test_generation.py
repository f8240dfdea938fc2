"""Generation against transformers and against itself without a cache."""

import pytest
import torch

from config import DecodingSettings
from errors import UserError
from tests.tuned import CHOICES
from tests.writing import some_prompts, write
from tuning.attach import attach

GREEDY = DecodingSettings(temperature=0, max_new_tokens=24)


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
