"""Filters that look at the text so far against transformers'."""

import pytest
import torch
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from config import DecodingSettings
from decoding.filters import filter_logits
from tests.writing import some_prompts, write


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
