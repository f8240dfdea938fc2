"""Translations against searches written out: greedy without a cache, and every text there is for beams."""

import itertools

import pytest
import torch

from config import DecodingSettings, TransformerConfig
from decoding.beam import beam_search
from decoding.generation import generate
from decoding.rules import Rules
from decoding.sampling import row_streams
from decoding.steps import TransformerSteps
from decoding.translator import Translator
from models.transformer import Transformer
from tests.helpers import mostly_slow

END = 6


@pytest.fixture(params=["base", "parallel"])
def model(request):
    torch.manual_seed(3)
    config = TransformerConfig(7, 16, 2, 2, 24, hidden_dropout_prob=0.0, wiring=request.param)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def sources():
    ids = torch.tensor([[1, 2, 3, END], [4, END, END, END], [5, 0, END, END]])
    return ids, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


@torch.no_grad()
def log_probability(model, ids, mask, row, target):
    """log p of a whole target (its end included) given one source, without batch and cache."""
    source = ids[row : row + 1, : int(mask[row].sum())]
    inputs = torch.tensor([[END, *target[:-1]]])
    hidden = model(source, torch.ones_like(source), inputs)[0]
    logs = (hidden @ model.output_embedding.weight.t()).log_softmax(-1)
    return logs[torch.arange(len(target)), target].sum().item()


def test_greedy_equals_the_plain_loop(model):
    ids, mask = sources()
    rules = Rules(DecodingSettings(temperature=0.0), END)
    ours = generate(TransformerSteps(model, ids, mask, END, 9), [[], [], []], rules, row_streams(0, range(3)))
    for row, found in enumerate(ours):
        source, target = ids[row : row + 1, : int(mask[row].sum())], [END]
        while len(target) < 10:
            with torch.no_grad():
                hidden = model(source, torch.ones_like(source), torch.tensor([target]))[0, -1]
            token = (hidden @ model.output_embedding.weight.t()).argmax().item()
            if token == END:
                break
            target.append(token)
        assert found == target[1:]


@pytest.mark.parametrize("penalty", mostly_slow([1.0, 0.0]))
def test_many_beams_find_the_best_of_all_texts(model, penalty):
    """Three tokens at most: with as many beams as there are texts, the search is complete."""
    ids, mask = sources()
    settings = DecodingSettings(decode="beam", beams=36, length_penalty=penalty)
    found = beam_search(TransformerSteps(model, ids, mask, END, 3), [[], [], []], Rules(settings, END))
    for row in range(3):
        texts = [[*body, END] for n in range(3) for body in itertools.product(range(6), repeat=n)]
        texts += [[*body, last] for body in itertools.product(range(6), repeat=2) for last in range(6)]
        scored = {tuple(t): log_probability(model, ids, mask, row, t) / len(t) ** penalty for t in texts}
        best = sorted(scored, key=lambda text: -scored[text])[:3]
        for (new_ids, score), wanted in zip(found[row][:3], best, strict=True):
            assert new_ids == [token for token in wanted if token != END]
            assert score == pytest.approx(scored[wanted], abs=1e-5)


class Letters:
    """A tokenizer of six letters."""

    def decode(self, ids):
        return " ".join("abcdef"[token] for token in ids)


@pytest.mark.parametrize(
    "settings", mostly_slow([DecodingSettings(decode="beam", beams=3), DecodingSettings(temperature=0.0)])
)
def test_batches_change_nothing_and_the_order_stays(model, settings):
    texts = [[1, 2, 3, END], [4, END], [5, 0, END], [2, END], [0, 0, 0, 0, END]]
    alone = [Translator(model, Letters(), settings, END, 1).translate([text])[0] for text in texts]
    together = Translator(model, Letters(), settings, END, 6).translate(texts)
    assert together == alone == Translator(model, Letters(), settings, END, 100).translate(texts)
