"""The best of several samples against transformers and counts by hand."""

import random

import pytest
import torch
from sacrebleu.metrics import CHRF

from decoding.reranking import mean_chrf_against_others, mean_log_probabilities
from evaluation import chrf
from tests.writing import some_prompts


@torch.no_grad()
def test_mean_log_probabilities_are_those_of_transformers(gpt2, hugging_face_gpt2):
    prompts, new_ids = some_prompts(4), [[5, 6, 7], [9], [], [8, 8, 8, 8]]
    found = mean_log_probabilities(gpt2, prompts, new_ids)
    for prompt, ids, mean in zip(prompts, new_ids, found, strict=True):
        logits = hugging_face_gpt2(torch.tensor([prompt + ids])).logits[0, :-1].log_softmax(-1)
        terms = [logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids)]
        assert mean == pytest.approx(sum(terms) / max(1, len(terms)), abs=1e-4)


def test_mean_chrf_against_others_by_hand():
    texts = ["the sun is warm", "the sun was warm", "no moon", "no moon"]
    expected = [sum(chrf([a], [b]) for j, b in enumerate(texts) if j != i) / 3 for i, a in enumerate(texts)]
    assert mean_chrf_against_others(texts) == pytest.approx(expected)
    assert mean_chrf_against_others(["alone"]) == [0]


def test_mean_chrf_against_others_is_sacrebleus():
    draw, metric = random.Random(0), CHRF()
    for _ in range(100):  # short texts of few letters: orders that one has and the other has not, nothing in common
        texts = ["".join(draw.choices("abé \n", k=draw.choice([0, 1, 3, 7, 40]))) for _ in range(draw.randint(2, 6))]
        for place, (text, found) in enumerate(zip(texts, mean_chrf_against_others(texts), strict=True)):
            others = texts[:place] + texts[place + 1 :]
            expected = sum(metric.sentence_score(text, [other]).score for other in others) / len(others)
            assert found == pytest.approx(expected, abs=1e-9)
