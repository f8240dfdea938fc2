"""Cases of training: cross entropy, the language model's loss, AdamW. Legend: N positions, D width, V vocabulary."""

import torch
from torch import nn

from course.checks import case

# --- cross_entropy ----------------------------------------------------------------------------------------------------


def summed(draw, smoothing=0.0, scale=1.0, train_weight=True):
    """Hidden states (11, 6), a weight (13, 6) and their loss."""
    from modules.linear_cross_entropy import linear_cross_entropy

    hidden = draw.normal(11, 6, scale=scale).requires_grad_()
    weight, targets = draw.normal(13, 6).requires_grad_(train_weight), draw.whole(13, 11)
    options = (smoothing,) if smoothing else ()
    return hidden, weight, linear_cross_entropy(hidden, weight, targets, *options)


@case("cross_entropy")
def value(draw):
    """the loss is the sum over positions of -log softmax(hidden_states weight^T) at the target, in nats, a scalar"""
    return {"loss": summed(draw)[2]}


@case("cross_entropy")
def gradients(draw):
    """the loss times 2 sends its gradients back to hidden_states and to weight"""
    hidden, weight, loss = summed(draw)
    (2 * loss).backward()
    return {"gradient of hidden_states": hidden.grad, "gradient of weight": weight.grad}


@case("cross_entropy")
def smoothing(draw):
    """with smoothing e the target counts 1 - e, and every token, the target too, e / V"""
    hidden, _, loss = summed(draw, smoothing=0.2)
    loss.backward()
    return {"loss": loss, "gradient of hidden_states": hidden.grad}


@case("cross_entropy")
def huge_logits(draw):
    """logits of several hundreds give a finite loss: subtract the largest before you exponentiate"""
    return {"loss": summed(draw, scale=300)[2]}


@case("cross_entropy")
def frozen_weight(draw):
    """a weight that is not trained gets no gradient, hidden_states does"""
    hidden, weight, loss = summed(draw, train_weight=False)
    loss.backward()
    return {"gradient of hidden_states": hidden.grad, "weight has none": weight.grad is None}


# --- loss -------------------------------------------------------------------------------------------------------------


def modelled(draw, mask):
    """next_token_loss of rows with this mask: loss, count, and how the loss depends on the hidden states."""
    from modules.linear_cross_entropy import next_token_loss

    mask = torch.tensor(mask)
    hidden = draw.normal(*mask.shape, 6).requires_grad_()
    loss, count = next_token_loss(hidden, draw.normal(13, 6), draw.whole(13, *mask.shape), mask)
    loss.backward()
    return {"loss": loss, "count": torch.as_tensor(count).long(), "gradient of hidden_states": hidden.grad}


@case("loss")
def no_padding(draw):
    """the hidden state at t predicts token t + 1: the last one predicts nothing, the first token is no target; the loss
    is a sum, and the count is the number of targets"""
    return modelled(draw, [[1] * 6, [1] * 6])


@case("loss")
def right_padding(draw):
    """padding is no target and counts nowhere: neither in the loss nor in the count"""
    return modelled(draw, [[1] * 6, [1, 1, 1, 0, 0, 0]])


@case("loss")
def left_padding(draw):
    """the first real token after padding is no target: nothing real stands before it to predict it from"""
    return modelled(draw, [[1] * 6, [0, 0, 1, 1, 1, 1]])


# --- adamw ------------------------------------------------------------------------------------------------------------


def trained(draw, steps, **options):
    """Two tensors after some steps of AdamW with gradients that pull them about."""
    from optimizer import AdamW

    parameters = [nn.Parameter(draw.normal(3, 4)), nn.Parameter(draw.normal(5))]
    optimizer = AdamW(parameters, **{"lr": 0.05, "betas": (0.9, 0.98)} | options)
    for _ in range(steps):
        for p in parameters:
            p.grad = 2 * p.detach() + draw.normal(*p.shape)
        optimizer.step()
    return {"matrix": parameters[0], "vector": parameters[1]}


@case("adamw")
def first_step(draw):
    """the first step moves every number by about lr: both moments are divided by 1 - beta^1"""
    return trained(draw, 1)


@case("adamw")
def many_steps(draw):
    """12 steps with betas 0.8 and 0.95: m and v are running means of the gradient and of its square"""
    return trained(draw, 12, betas=(0.8, 0.95))


@case("adamw")
def decay(draw):
    """the decay is decoupled: after the update the parameters lose lr * weight_decay of what they are then"""
    return trained(draw, 6, weight_decay=0.4)


@case("adamw")
def no_correction(draw):
    """correct_bias=False leaves both moments as they are, undivided"""
    return trained(draw, 4, correct_bias=False)


@case("adamw")
def eps(draw):
    """eps is added to the root of the corrected second moment, outside the root"""
    return trained(draw, 4, eps=0.3)
