"""AdamW against torch, a float64 loop and the course's reference array."""

import numpy as np
import pytest
import torch
from torch import nn

import optimizer as optimizer_module
from optimizer import AdamW, parameter_groups


def run(make_optimizer, steps, dtype=torch.float32):
    """A few tensors of different shapes, pulled about by noisy gradients."""
    random = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(s, generator=random).to(dtype)) for s in ((7, 5), (5,), (3, 2, 4), ())]
    optimizer = make_optimizer(parameters)
    for _ in range(steps):
        for p in parameters:
            p.grad = (2 * p.detach() + torch.randn(p.shape, generator=random)).to(dtype)
        optimizer.step()
    return parameters


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_equals_torch_over_1000_steps(eps):
    ours = run(lambda p: AdamW(p, lr=1e-2, eps=eps), 1000)
    theirs = run(lambda p: torch.optim.AdamW(p, lr=1e-2, eps=eps, weight_decay=0), 1000)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_equals_torch_over_1000_steps_with_weight_decay():
    # torch decays before the update, we after it: the two differ by lr * decay * update, here at most 1e-8 a step
    ours = run(lambda p: AdamW(p, lr=1e-3, weight_decay=1e-2, betas=(0.8, 0.95)), 1000)
    theirs = run(lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-6, weight_decay=1e-2, betas=(0.8, 0.95)), 1000)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("correct_bias", [True, False])
def test_equals_the_papers_equations(correct_bias):
    lr, (b1, b2), eps, decay = 0.05, (0.9, 0.99), 1e-6, 0.3

    class Loop:
        """One number at a time, as the docstring of optimizer.py writes it."""

        def __init__(self, parameters):
            self.parameters, self.t = parameters, 0
            self.m = [torch.zeros_like(p) for p in parameters]
            self.v = [torch.zeros_like(p) for p in parameters]

        @torch.no_grad()
        def step(self):
            self.t += 1
            for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
                for index in np.ndindex(*p.shape):
                    g = p.grad[index].item()
                    m[index] = b1 * m[index] + (1 - b1) * g
                    v[index] = b2 * v[index] + (1 - b2) * g * g
                    m_hat = m[index] / (1 - b1**self.t) if correct_bias else m[index]
                    v_hat = v[index] / (1 - b2**self.t) if correct_bias else v[index]
                    p[index] -= lr * m_hat / (v_hat**0.5 + eps)
                    p[index] -= lr * decay * p[index]

    options = {"lr": lr, "betas": (b1, b2), "eps": eps, "weight_decay": decay, "correct_bias": correct_bias}
    ours = run(lambda p: AdamW(p, **options), 15, torch.float64)
    for a, b in zip(ours, run(Loop, 15, torch.float64), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_the_courses_reference_array(real_data):
    reference = torch.tensor(np.load(real_data / "optimizer_test.npy"))
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, correct_bias=True)
    for _ in range(1000):
        optimizer.zero_grad()
        x = torch.FloatTensor(random.uniform(size=[model.in_features]))
        y = torch.Tensor([x[0] + x[1], -x[2]])
        ((y - model(x)) ** 2).sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), reference, atol=1e-6, rtol=1e-4)


def test_chunks_change_nothing(monkeypatch):
    whole = run(lambda p: AdamW(p, lr=1e-2, weight_decay=0.1), 5)
    monkeypatch.setattr(AdamW, "GROUP_ELEMENTS", 8)
    for a, b in zip(whole, run(lambda p: AdamW(p, lr=1e-2, weight_decay=0.1), 5), strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradient_stay_and_closure_is_called():
    moved, still = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdamW([moved, still], lr=0.1, weight_decay=0.5)

    def closure():
        loss = moved.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert torch.equal(still, torch.ones(3)) and not torch.equal(moved, torch.ones(3))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdamW([nn.Parameter(torch.ones(1))], **wrong)


def test_biases_and_layer_norms_do_not_decay(gpt2):
    gpt2.pos_embedding.requires_grad_(False)
    decayed, kept = parameter_groups(gpt2, 0.1)
    names = {id(p): name for name, p in gpt2.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in kept["params"])
    assert not any("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in decayed["params"])
    assert {names[id(p)] for g in (decayed, kept) for p in g["params"]} == set(names.values()) - {
        "pos_embedding.weight"
    }


def test_optimizer_module_imports_no_model():
    assert not [name for name in vars(optimizer_module) if name.startswith(("models", "modules"))]
