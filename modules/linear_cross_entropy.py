"""Cross entropy of a linear layer without ever holding all its logits.

    loss = sum_n  logsumexp(h_n E^T) - h_n . E[target_n]

GPT-2's logits are 65 times wider than its hidden states: for 8 sonnets they would take 300 MB, their gradient as much
again. Here a chunk of positions is pushed to logits, turned into its own gradient (softmax minus one-hot) in place, and
pushed back to hidden states, in one buffer. Each product is computed once, as in the plain form, and the gradient of E
only when E is trained. The idea is from Liger Kernel (Hsu et al. 2024, arXiv 2410.10989, section 3.2).

Label smoothing (Szegedy et al. 2016, section 7) takes the target for  1 - e  and every token for  e / V  instead.

Legend: N positions, D width, V vocabulary, C positions a chunk.
"""

import torch

CHUNK = 512
SHRINK = 64.0  # a power of two, so that both ways are exact


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, targets, smoothing):
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        compute_dtype = torch.get_autocast_dtype(weight.device.type) if _autocasting(weight) else weight.dtype
        hidden, matrix = hidden_states.to(compute_dtype), weight.to(compute_dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        buffer = matrix.new_empty(min(CHUNK, len(targets)), len(matrix))
        loss = torch.zeros((), dtype=torch.float32, device=weight.device)
        for start in range(0, len(targets), CHUNK):
            h, target = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = torch.mm(h, matrix.t(), out=buffer[: len(h)])  # (C, V)
            scores = logits.float()  # no copy in fp32
            top = scores.amax(dim=1, keepdim=True)
            wanted = scores.gather(1, target) - top
            if smoothing:
                wanted = (1 - smoothing) * wanted + smoothing * (scores.mean(dim=1, keepdim=True) - top)
            total = scores.sub_(top).exp_().sum(dim=1, keepdim=True)
            loss += (total.log() - wanted).sum()
            if wants_hidden or wants_weight:
                gradient = scores.div_(total)  # softmax
                gradient.scatter_add_(1, target, torch.full_like(total, smoothing - 1))  # minus one-hot
                if smoothing:
                    gradient.sub_(smoothing / len(matrix))
                gradient = gradient.to(compute_dtype)
                if wants_hidden:
                    torch.mm(gradient, matrix, out=grad_hidden[start : start + CHUNK])
                if wants_weight:
                    grad_weight += _weight_gradient(gradient, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.hidden_dtype = hidden_states.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        # in fp32: a scaled loss's gradient times that of a hidden state can be more than fp16 holds
        grad_hidden = None if grad_hidden is None else (grad_hidden.float() * grad_loss).to(ctx.hidden_dtype)
        grad_weight = None if grad_weight is None else grad_weight * grad_loss
        return grad_hidden, grad_weight, None, None


def _weight_gradient(gradient, hidden):
    """(C, V), (C, D) -> (V, D). In fp16 of hidden states made smaller: else the sum over a chunk could overflow, which
    no loss scale would change. (Softmax itself is at most 1; what of it is below 6e-8 counts as 0.)"""
    if gradient.dtype != torch.float16:
        return gradient.t() @ hidden
    return (gradient.t() @ (hidden / SHRINK)).float() * SHRINK


def _autocasting(tensor):
    return torch.is_autocast_enabled(tensor.device.type)


def linear_cross_entropy(hidden_states, weight, targets, smoothing=0.0):
    """Sum over n of -log softmax(hidden_states weight^T)[n, targets[n]], in nats; a scalar in fp32.

    hidden_states: (N, D). weight: (V, D). targets: (N,) token ids. smoothing: of the labels, in [0, 1). Differentiable
    once, in hidden_states and weight.
    """
    return _LinearCrossEntropy.apply(hidden_states, weight, targets, smoothing)


def next_token_loss(hidden_states, embedding, input_ids, attention_mask):
    """A causal language model's loss with a tied head: (the sum of -log p over the tokens in nats, their number).

    hidden_states: (B, T, D); embedding: (V, D); input_ids, attention_mask: (B, T). Every real token but the first of
    its row is a target.
    """
    predicted = (attention_mask[:, 1:] * attention_mask[:, :-1]).bool()  # both the token and its context are real
    return (
        linear_cross_entropy(hidden_states[:, :-1][predicted], embedding, input_ids[:, 1:][predicted]),
        predicted.sum(),
    )
