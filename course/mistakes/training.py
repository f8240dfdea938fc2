"""Common mistakes in training: cross entropy, the language model's loss, AdamW."""

import torch
import torch.nn.functional as F

from course.mistakes import mistake

# --- cross_entropy ----------------------------------------------------------------------------------------------------

CROSS_ENTROPY = "modules.linear_cross_entropy:linear_cross_entropy"


def log_p(hidden_states, weight):
    return (hidden_states @ weight.t()).log_softmax(dim=-1)


@mistake("cross_entropy", "this is the mean over positions: return the sum", CROSS_ENTROPY)
def mean_loss(hidden_states, weight, targets, smoothing=0.0):
    return F.cross_entropy(hidden_states @ weight.t(), targets, label_smoothing=smoothing)


@mistake("cross_entropy", "smoothing is left out", CROSS_ENTROPY)
def unsmoothed(hidden_states, weight, targets, smoothing=0.0):
    return F.nll_loss(log_p(hidden_states, weight), targets, reduction="sum")


@mistake("cross_entropy", "smoothing goes to the other tokens only: the target has its share e / V, too", CROSS_ENTROPY)
def smoothed_otherwise(hidden_states, weight, targets, smoothing=0.0):
    scores = log_p(hidden_states, weight)
    shares = torch.full_like(scores, smoothing / (scores.size(-1) - 1))
    return -(shares.scatter(1, targets[:, None], 1 - smoothing) * scores).sum()


# --- loss -------------------------------------------------------------------------------------------------------------

LOSS = "modules.linear_cross_entropy:next_token_loss"


def loss(message, counted=lambda mask: mask[:, 1:] * mask[:, :-1], shift=1, mean=False):
    """Register a wrong loss. counted: which targets count, (B, T) -> (B, T - shift)."""

    def wrong(hidden_states, embedding, input_ids, attention_mask):
        chosen = counted(attention_mask).bool()
        states = hidden_states[:, : hidden_states.size(1) - shift][chosen]
        total = F.cross_entropy(states @ embedding.t(), input_ids[:, shift:][chosen], reduction="sum")
        return total / (chosen.sum() if mean else 1), chosen.sum()

    mistake("loss", message, LOSS)(wrong)


loss("padding counts in your loss: only real tokens are targets", lambda mask: torch.ones_like(mask[:, 1:]))
loss("position t predicts token t, which it has read: it must predict token t + 1", lambda mask: mask, shift=0)
loss("this is the mean over the targets: return the sum, and the count beside it", mean=True)
loss("the first real token after padding counts: nothing real stands before it", lambda mask: mask[:, 1:])


# --- adamw ------------------------------------------------------------------------------------------------------------

UPDATE = "optimizer:AdamW._update"


def adamw(message, **changes):
    """Register a wrong update, one tensor at a time."""

    def wrong(self, parameters, group):
        for p in parameters:
            _wrong_step(p, self.state[p], group, changes)

    mistake("adamw", message, UPDATE)(wrong)


def _wrong_step(p, state, group, changes):
    (b1, b2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
    m, v, grad, corrected = (
        state["exp_avg"],
        state["exp_avg_sq"],
        p.grad,
        changes.get("corrected", group["correct_bias"]),
    )
    if changes.get("decay") == "coupled":
        grad = grad + decay * p
    if changes.get("decay") == "before":
        p.mul_(1 - lr * decay)
    m.mul_(b1).add_((1 - b1) * grad)
    v.mul_(b2).add_((1 - b2) * (grad if changes.get("unsquared") else grad.square()))
    c1, c2 = (1 - beta ** state["step"] if corrected else 1.0 for beta in (b1, b2))
    c1, c2 = (1.0 if name in changes.get("uncorrected", ()) else c for name, c in (("m", c1), ("v", c2)))
    eps = group["eps"]
    root = {"inside": (v / c2 + eps).sqrt(), "early": (v.sqrt() + eps) / c2**0.5}.get(
        changes.get("eps"), (v / c2).sqrt() + eps
    )
    p.sub_(lr * (m / c1) / root)
    if changes.get("decay") in (None, "unscaled"):
        p.sub_((1 if changes.get("decay") else lr) * decay * p)


adamw("the bias correction is missing: at first the moments are too small, by 1 - beta^t", corrected=False)
adamw("the moments are corrected although correct_bias is False", corrected=True)
adamw("only the second moment is corrected", uncorrected="m")
adamw("only the first moment is corrected", uncorrected="v")
adamw("the decay goes into the gradient, as in Adam with L2: in AdamW it is apart from it", decay="coupled")
adamw("the decay is that of the old parameters: here it comes after the update, on the new ones", decay="before")
adamw("the decay is not scaled by the learning rate", decay="unscaled")
adamw("there is no weight decay", decay="none")
adamw("eps is inside the root: it belongs outside", eps="inside")
adamw("eps is added before the correction of the second moment: it belongs after it", eps="early")
