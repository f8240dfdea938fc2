"""The one training loop, for every task, on a laptop, one GPU or several (`accelerate launch`).

A script owns its data, its head, `loss_fn` and `evaluate`; this file owns steps, schedules, checkpoints and the
progress bar. Distribution and mixed precision come from accelerate.
"""

import contextlib
import math
import time

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from cli.script import say
from errors import UserError
from optimizer import AdamW, parameter_groups


class TrainingLoop:
    """settings: TrainingSettings, lr included. run: where it is kept (Run). accelerator: accelerate's Accelerator.

    after_step(step, total_steps): called after every optimizer step, counted from 1, before its gradients are cleared.
    """

    def __init__(self, model, settings, run, accelerator, after_step=None):
        self.model, self.settings, self.run, self.accelerator = model, settings, run, accelerator
        self.wrapped = accelerator.prepare(model)
        groups = parameter_groups(model, settings.weight_decay)
        self.optimizer = AdamW(groups, lr=settings.lr, betas=(0.9, settings.beta2))
        self.after_step = after_step
        self.progress = run.restore(model, self.optimizer)

    def fit(self, batches, loss_fn, evaluate):
        """Train, and keep every epoch and the best one. Returns {"seconds an epoch": text}, {} where none was trained.

        batches: a LengthGroupedBatches. loss_fn(model, batch) -> (loss, count): the *sum* of the batch's losses and the
        number of terms in it, so that accumulated and distributed steps weigh every term alike. evaluate(model) -> dict
        of figures; the highest "score" is the best epoch. Raises UserError if the loss stops being finite.
        """
        settings, progress = self.settings, self.progress
        if progress.epoch:
            say(f"{self.run.folder}: continuing after epoch {progress.epoch}")
        seconds = []
        for epoch in range(progress.epoch + 1, settings.epochs + 1):
            if settings.patience and progress.epochs_since_best >= settings.patience:
                say(f"no better score for {settings.patience} epochs: stopping early")
                break
            set_seed(settings.seed + epoch, device_specific=True)  # a resumed run draws the dropout it would have drawn
            start = time.perf_counter()
            train_loss = self._train_epoch(batches, loss_fn)
            seconds.append(time.perf_counter() - start)
            self.model.eval()
            with torch.no_grad(), self.accelerator.autocast():
                figures = evaluate(self.model)
            self._keep({"epoch": epoch, "train_loss": train_loss, "seconds": seconds[-1]} | figures)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name != "score")
            best = " (best so far)" if progress.epochs_since_best == 0 else ""
            say(f"epoch {epoch}/{settings.epochs}: train loss {train_loss:.4f}, {shown}{best}")
        return {"seconds an epoch": f"{sum(seconds) / len(seconds):.1f}"} if seconds else {}

    def _keep(self, record):
        """Count a complete epoch, and keep its state and its line."""
        progress = self.progress
        progress.epoch = record["epoch"]
        progress.epochs_since_best += 1
        if record["score"] > progress.best_score:
            progress.best_score, progress.best_epoch, progress.epochs_since_best = record["score"], progress.epoch, 0
        if self.accelerator.is_main_process:
            self.run.log(record)
            self.run.save_epoch(self.model, self.optimizer, progress)
        self.accelerator.wait_for_everyone()

    def _train_epoch(self, batches, loss_fn):
        """All steps of one epoch. Returns the mean loss over its terms."""
        self.model.train()
        epoch, epochs = self.progress.epoch + 1, self.settings.epochs
        steps = steps_an_epoch(batches, self.settings)
        iterator = iter(batches.epoch(epoch))
        hidden = None if self.accelerator.is_main_process else True  # None: shown where stderr is a terminal
        bar = tqdm(range(steps), desc=f"epoch {epoch}/{epochs}", unit="step", disable=hidden)
        total_loss, total_count = 0.0, 0
        for index in bar:
            left = len(batches) - index * self.settings.gradient_accumulation
            micro_batches = [next(iterator) for _ in range(min(self.settings.gradient_accumulation, left))]
            loss, count, rate = self._step(micro_batches, loss_fn, steps * epochs)
            total_loss, total_count = total_loss + loss, total_count + count
            bar.set_postfix(loss=f"{loss / count:.4f}", lr=f"{rate:.1e}")
            if self.accelerator.is_main_process:
                self.run.log({"epoch": epoch, "step": self.progress.step, "loss": loss / count, "lr": rate})
        return total_loss / total_count

    def _step(self, micro_batches, loss_fn, total_steps):
        """One optimizer step. Returns the sum of its losses, their number, and the learning rate."""
        loss, count = self._accumulate(micro_batches, loss_fn)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.progress.step + 1}: lower --lr, or try --precision fp32")
        rate = self.settings.lr * learning_rate_factor(self.progress.step, total_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scale_gradients(self.optimizer, self.accelerator.num_processes / count, self.settings.max_grad_norm)
        self.optimizer.step()
        self.progress.step += 1
        if self.after_step is not None:
            self.after_step(self.progress.step, total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, count, rate

    def _accumulate(self, micro_batches, loss_fn):
        """Add up the gradients of summed losses over some batches. Returns the loss and count over all processes."""
        device = self.accelerator.device
        totals = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        for number, batch in enumerate(micro_batches, start=1):
            last = number == len(micro_batches)  # gradients are exchanged once a step
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, count = loss_fn(self.wrapped, to_device(batch, device))
                self.accelerator.backward(loss)
            totals += torch.stack([loss.detach(), torch.as_tensor(count, device=loss.device)]).to(totals)
        return self.accelerator.reduce(totals, "sum").tolist()


def learning_rate_factor(step, total_steps, settings):
    """The share of the peak learning rate at a step, counted from 0: a linear warm-up from 0, then the schedule."""
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def steps_an_epoch(batches, settings):
    """Optimizer steps; the last one of an epoch may have fewer batches to accumulate."""
    return -(-len(batches) // settings.gradient_accumulation)


def scale_gradients(optimizer, scale, max_norm):
    """Turn gradients of sums into gradients of means, and clip their norm (Pascanu et al. 2013), in one pass."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if max_norm:
        norm = torch.nn.utils.get_total_norm(gradients).item() * scale
        scale *= min(1.0, max_norm / (norm + 1e-6))
    if scale != 1.0:
        torch._foreach_mul_(gradients, scale)


def to_device(batch, device):
    """The batch with its tensors on the device; other values, such as ids, as they are."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
