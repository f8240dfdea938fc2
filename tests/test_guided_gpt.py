"""Pre-training's additions to the loss, against loops; and that they teach what they say."""

import math

import pytest
import torch

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.guided_gpt import PATTERNS, GuidedGPT, after_same, previous, same
from models.sonnet_gpt import SonnetGPT, language_model_loss

SPACE, NO, YES = 4, 3919, 8505


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPT2Model(GPT2Config(vocab_size=8600, max_position_embeddings=32, **shape)).eval()


def batch_of(rows):
    token_ids = torch.tensor(rows)
    return {"token_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}


def test_where_heads_shall_look():
    row = torch.tensor([[5, 6, 5, 7, 6, 5]])
    places = {
        pattern: [set(where.nonzero().flatten().tolist()) for where in pattern(row)[0]] for _, _, pattern in PATTERNS
    }
    assert places[previous] == [set(), {0}, {1}, {2}, {3}, {4}]
    assert places[same] == [set(), set(), {0}, set(), {1}, {0, 2}]
    assert places[after_same] == [set(), set(), {1}, set(), {2}, {1, 3}]


@torch.no_grad()
def test_the_guided_loss_is_a_loops(gpt2):
    rows = [[5, 6, 5, 7, 6, 5], [9, 9, 9, 8, 7, 8]]
    model = GuidedGPT(gpt2, guidance=1.0)
    gpt2.train()
    for dropout in (module for module in gpt2.modules() if hasattr(module, "p")):
        dropout.p = 0.0
    hidden, total = gpt2.embed(torch.tensor(rows)), 0.0
    for index, layer in enumerate(gpt2.gpt_layers):
        x = layer.attention_layer_norm(hidden)
        query, key = (getattr(layer.self_attention, name)(x) for name in ("query", "key"))
        for _, head, pattern in (entry for entry in PATTERNS if entry[0] == index):
            columns = slice(8 * head, 8 * head + 8)
            for b in range(len(rows)):
                for t in range(6):
                    weights = (key[b, : t + 1, columns] @ query[b, t, columns] / math.sqrt(8)).softmax(dim=0)
                    wanted = pattern(torch.tensor(rows))[b % len(pattern(torch.tensor(rows)))][t, : t + 1]
                    total -= (weights[wanted].sum() if wanted.any() else weights[0]).log().item()
        hidden = layer(hidden)
    model.train()
    plain = language_model_loss(SonnetGPT(gpt2), batch_of(rows))[0]
    loss, count = language_model_loss(model, batch_of(rows))
    assert count == 10 and loss.item() - plain.item() == pytest.approx(total / len(PATTERNS), rel=1e-5)


@torch.no_grad()
def test_answers_weigh_more_and_no_other_yes_does(gpt2):
    rows = [[7, SPACE, YES, 5, YES, 6], [7, 8, NO, SPACE, NO, SPACE]]
    model = GuidedGPT(gpt2, answer_weight=3.0, before_answer=SPACE).train()
    for dropout in (module for module in gpt2.modules() if hasattr(module, "p")):
        dropout.p = 0.0
    logits = SonnetGPT(gpt2)(torch.tensor(rows), None).log_softmax(dim=-1)
    answers = -(logits[0, 1, YES] + logits[1, 3, NO])
    plain = language_model_loss(SonnetGPT(gpt2), batch_of(rows))[0]
    assert language_model_loss(model, batch_of(rows))[0].item() == pytest.approx((plain + 2 * answers).item(), rel=1e-5)
    model.eval()
    assert language_model_loss(model, batch_of(rows))[0] == plain  # measured plainly


def test_heads_learn_where_to_look(gpt2):
    model = GuidedGPT(gpt2, guidance=1.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    costs = []
    for _ in range(60):
        half = torch.randint(10, 60, (8, 12))
        token_ids = torch.cat([half, half], dim=1)
        optimizer.zero_grad()
        language_model_loss(model, batch_of(token_ids.tolist()))
        cost = model.guided_loss(token_ids) / token_ids.numel()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert sum(costs[-5:]) < 0.6 * sum(costs[:5])
