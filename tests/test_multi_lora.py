"""A batch whose rows have adapters of their own against the single runs."""

import pytest
import torch

from config import LINEAR_NAMES, DecodingSettings, LoRASettings
from modules.multi_lora import apply_multi_lora
from tests.writing import write
from tuning.attach import attach, detach
from tuning.state import load_tuning, trainable_state_dict

RANKS = {"a": 1, "b": 2, "c": 4, "d": 8, "e": 3}
TARGETS = {"a": ",".join(LINEAR_NAMES), "b": "query,value", "c": "out_dense", "d": "query,interm_dense", "e": "key"}
ROWS = ["c", None, "a", "e", "b", "d", None, "a"]


@pytest.fixture
def adapters(gpt2):
    """{name: (its method, tensors)}"""
    trained = {}
    for name, rank in RANKS.items():
        settings = LoRASettings(lora_rank=rank, lora_dropout=0.0, lora_targets=TARGETS[name])
        attach(gpt2, {"lora": settings})
        for tensor in trainable_state_dict(gpt2).values():
            tensor.normal_(std=0.2)
        trained[name] = (settings, {key: t.clone() for key, t in trainable_state_dict(gpt2).items()})
        detach(gpt2)
    return trained


def single(gpt2, adapters, name, compute):
    """compute(gpt2) with one adapter attached, or with none."""
    if name is None:
        return compute(gpt2)
    settings, tensors = adapters[name]
    attach(gpt2, {"lora": settings})
    load_tuning(gpt2, tensors)
    result = compute(gpt2)
    detach(gpt2)
    return result


@torch.no_grad()
def test_a_mixed_batch_equals_the_single_runs(gpt2, adapters):
    ids = torch.randint(8600, (len(ROWS), 15))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, 9:] = 0
    expected = [
        single(gpt2, adapters, name, lambda model, row=row: model(ids[row : row + 1], mask[row : row + 1]))
        for row, name in enumerate(ROWS)
    ]
    routing = apply_multi_lora(gpt2, {name: (t, s.scaling) for name, (s, t) in adapters.items()})
    with routing.batch(ROWS):
        together = gpt2(ids, mask)["last_hidden_state"]
    for row, out in enumerate(expected):
        real = mask[row].bool()
        torch.testing.assert_close(together[row][real], out["last_hidden_state"][0][real], atol=1e-5, rtol=1e-5)
    base = single(gpt2, adapters, None, lambda model: torch.stack([together[1], together[6]]))
    assert not torch.allclose(together[0], base[0])


def test_texts_of_a_mixed_batch_equal_the_single_ones(gpt2, adapters):
    """Rows are dropped on the way (texts end after different numbers of tokens); the routing follows."""
    prompts = [[7, 8, 9 + row] for row in range(len(ROWS))]
    greedy = DecodingSettings(temperature=0.0, max_new_tokens=12)

    def stop(lengths):
        return lambda index, ids: len(ids) >= lengths[index]

    lengths = [3, 12, 5, 2, 9, 2, 4, 12]
    expected = [
        single(gpt2, adapters, name, lambda m, row=row: write(m, [prompts[row]], greedy, stop=stop([lengths[row]])))[0]
        for row, name in enumerate(ROWS)
    ]
    routing = apply_multi_lora(gpt2, {name: (t, s.scaling) for name, (s, t) in adapters.items()})
    with routing.batch(ROWS):
        together = write(gpt2, prompts, greedy, stop=stop(lengths), on_select=routing.select)
    assert together == expected and [len(ids) for ids in together] == lengths


def test_a_batch_without_its_adapters_is_refused(gpt2, adapters):
    routing = apply_multi_lora(gpt2, {name: (t, s.scaling) for name, (s, t) in adapters.items()})
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="knows no batch, 2 rows came"):
        gpt2(ids)
    with pytest.raises(ValueError, match="a batch of 3 rows, 2 rows came"), routing.batch(["a", "b", None]):
        gpt2(ids)
    with pytest.raises(KeyError), routing.batch(["nobody"]):
        pass
