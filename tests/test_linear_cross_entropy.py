"""Linear cross entropy in chunks against torch."""

import pytest
import torch
import torch.nn.functional as F

from modules import linear_cross_entropy as lce


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("train_weight", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy_equals_torch(monkeypatch, chunk, train_weight, smoothing):
    monkeypatch.setattr(lce, "CHUNK", chunk)
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = (3 * torch.randn(50, 8)).requires_grad_(train_weight)
    targets = torch.randint(0, 50, (20,))
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum", label_smoothing=smoothing)
    wanted = torch.autograd.grad(2 * expected, [hidden, weight] if train_weight else [hidden])
    ours = lce.linear_cross_entropy(hidden, weight, targets, smoothing)
    (2 * ours).backward()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad, wanted[0], atol=1e-5, rtol=1e-5)
    if train_weight:
        torch.testing.assert_close(weight.grad, wanted[1], atol=1e-5, rtol=1e-5)
    else:
        assert weight.grad is None


def test_linear_cross_entropy_survives_huge_logits_and_no_gradient():
    hidden, weight = torch.full((3, 4), 300.0), torch.randn(9, 4)
    targets = torch.tensor([0, 1, 2])
    with torch.no_grad():
        ours = lce.linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(ours, F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"))


def test_linear_cross_entropy_under_bf16_autocast_is_as_good_as_torch_there():
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(300, 16)
    targets = torch.randint(0, 300, (40,))
    exact = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    exact_gradient = torch.autograd.grad(exact, hidden)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours = lce.linear_cross_entropy(hidden, weight, targets)
        theirs = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    gradient, torchs = (torch.autograd.grad(loss, hidden)[0] for loss in (ours, theirs))
    assert gradient.dtype == torch.float32
    assert abs(ours - exact) <= 1.5 * abs(theirs - exact) + 0.05
    assert (gradient - exact_gradient).norm() <= 1.5 * (torchs - exact_gradient).norm()
