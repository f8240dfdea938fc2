"""Comparing a tuned model with peft's."""

import copy

import peft
import torch
from torch import nn

from tests.tuned import INPUT_IDS
from tuning.state import trainable_state_dict


def randomise(gpt2):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in gpt2.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))


@torch.no_grad()
def their_logits(model):
    return model(input_ids=INPUT_IDS).logits[:, -INPUT_IDS.size(1) :]


def check_gradients(ours, theirs):
    """{name: gradient} both; each within 1e-5 of its own scale."""
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4)


class PeftHost(nn.Module):
    """Our GPT-2 where peft can get at it."""

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, input_ids):
        return self.gpt2(input_ids)["last_hidden_state"]


def compare_with_injected(gpt2, theirs, rename):
    """Outputs and gradients of our tuned gpt2 and of peft injected into our own model; rename(their name) -> ours."""
    tensors = trainable_state_dict(gpt2)
    pairs = {rename(name): p for name, p in theirs.named_parameters() if p.requires_grad}
    assert pairs.keys() == tensors.keys()
    with torch.no_grad():
        for name, p in pairs.items():
            p.copy_(tensors[name].view_as(p))
    ours_out, theirs_out = gpt2(INPUT_IDS)["last_hidden_state"], theirs(INPUT_IDS)
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(ours_out)
    (ours_out * direction).sum().backward()
    (theirs_out * direction).sum().backward()
    ours = {name: p.grad for name, p in gpt2.named_parameters() if p.requires_grad}
    check_gradients(ours, {name: p.grad.view_as(ours[name]) for name, p in pairs.items()})


def compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, names):
    """Logits and gradients against peft on the same GPT-2 of transformers; names: {their tensor: ours}."""
    theirs = peft.get_peft_model(copy.deepcopy(hugging_face_gpt2), config).eval()
    parameters = dict(gpt2.prompt.named_parameters())
    encoder = dict(theirs.prompt_encoder["default"].named_parameters())
    assert set(names) == set(encoder) and set(names.values()) == set(parameters)
    with torch.no_grad():
        for their_name, name in names.items():
            encoder[their_name].copy_(parameters[name])
    ours_out = gpt2.hidden_state_to_token(gpt2(INPUT_IDS)["last_hidden_state"])
    theirs_out = theirs(input_ids=INPUT_IDS).logits[:, -INPUT_IDS.size(1) :]
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(ours_out)
    (ours_out * direction).sum().backward()
    (theirs_out * direction).sum().backward()
    ours = {name: parameters[name].grad for name in names.values()}
    check_gradients(ours, {name: encoder[their_name].grad for their_name, name in names.items()})
