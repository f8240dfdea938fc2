"""The one training loop, for every task, on a laptop, one GPU or several (`accelerate launch`).

A script owns its data, its head, `loss_fn` and `evaluate`; this file owns steps, schedules, checkpoints and the
progress bar. Distribution and mixed precision come from accelerate.

Where training stands is kept after every epoch, every --save_minutes and at a stop; a run that goes on from there takes
the very steps that it would have taken: the same batches, dropout, learning rates.

In fp16 the loss is scaled, and a step whose gradient overflows is left out (training/fp16.py).
"""

import contextlib
import math
import signal
import time

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from cli.script import Stopped, finish_first, say, stop_asked
from datasets.batching import IDLE, rows_of, split_batch
from errors import Diverged, check, is_out_of_memory
from files import write_json
from optimizer import AdamW, parameter_groups
from training.compiling import Warmup, compile_layers, compiled_steps
from training.fp16 import SMALLEST, START, adapted
from training.pace import Pace, in_words
from training.processes import sum_over_processes
from training.randomness import random_states, restore_random_states, seed_everything
from training.runs import put_moments
from training.sharding import put_together, shard, unshard

MOST_BAD_STEPS = 3  # in a row; then the run ends


class TrainingLoop:
    """settings: TrainingSettings, lr included. run: where it is kept (Run). accelerator: accelerate's Accelerator.

    after_step(step, total_steps): called after every optimizer step, counted from 1 (without those that overflowed in
    fp16), before its gradients are cleared.
    """

    def __init__(self, model, settings, run, accelerator, after_step=None):
        self.whole, self.settings, self.run, self.accelerator = model, settings, run, accelerator
        self.progress, moments, self.random_states = run.restore(model)
        self.model = shard(model, accelerator.device) if settings.shard else model
        # device, autocast; gradients are exchanged here. What is sharded is where it shall be
        accelerator.prepare_model(self.model, device_placement=not settings.shard, evaluation_mode=True)
        if settings.compile:
            compile_layers(self.model.gpt)
        groups = parameter_groups(self.model, settings.weight_decay)
        self.optimizer = AdamW(groups, lr=settings.lr, betas=(0.9, settings.beta2))
        put_moments(self.model, self.optimizer, moments, self.progress.updates)
        self.after_step = after_step
        self.in_fp16 = accelerator.mixed_precision == "fp16"
        if self.in_fp16 and not self.progress.step:
            self.progress.loss_scale = START
        self.kept_at = time.monotonic()

    def fit(self, batches, loss_fn, evaluate):
        """Train, and keep every epoch and the best one.

        batches: a LengthGroupedBatches, or what has its len() and epoch(). loss_fn(model, batch) -> (loss, count): the
        *sum* of the batch's losses and the number of terms in it, so that accumulated and distributed steps weigh
        every term alike. evaluate(model) -> dict of figures; the highest "score" is the best epoch. Raises Diverged
        where numbers stay not finite.
        """
        with contextlib.closing(self.run):
            self._all_epochs(batches, loss_fn, evaluate)
        if self.settings.shard:
            self.optimizer = None  # room for the weights
            unshard(self.model, self.whole)
            self.accelerator.free_memory()

    def _all_epochs(self, batches, loss_fn, evaluate):
        settings, progress = self.settings, self.progress
        unit = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
        self.warmup = Warmup(settings.compile)
        self.pace = Pace(total_steps(batches, settings), progress.step, unit)
        if progress.step:
            where = f", step {progress.epoch_step} of epoch {progress.epoch + 1}" if progress.epoch_step else ""
            say(f"{self.run.folder}: continuing after epoch {progress.epoch}{where}")
        for epoch in range(progress.epoch + 1, settings.epochs + 1):
            if settings.patience and progress.epochs_since_best >= settings.patience:
                say(f"no better score for {settings.patience} epochs: stopping early")
                break
            start = time.perf_counter()
            train_loss = self._train_epoch(batches, loss_fn)
            self.warmup.tell()
            seconds = time.perf_counter() - start
            figures = self._evaluate(evaluate)
            self._keep_epoch({"epoch": epoch, "train_loss": train_loss, "seconds": seconds} | figures)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name != "score")
            best = " (best so far)" if progress.epochs_since_best == 0 else ""
            say(f"epoch {epoch}/{settings.epochs}: train loss {train_loss:.4f}, {shown}{best}")

    def _evaluate(self, evaluate):
        """The figures of an epoch. A stop meanwhile keeps the epoch's steps: only the evaluation is made again."""
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                figures = evaluate(self.model)
        except Stopped:
            with finish_first():
                self._keep({})
            raise
        for name, value in figures.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value} after epoch {self.progress.epoch + 1}")
        return figures

    def _keep_epoch(self, record):
        """Count a complete epoch, and keep its state and its line."""
        progress = self.progress
        progress.epoch, progress.epoch_step, progress.epoch_loss, progress.epoch_count = record["epoch"], 0, 0.0, 0.0
        progress.epochs_since_best += 1
        if record["score"] > progress.best_score:
            progress.best_score, progress.best_epoch, progress.epochs_since_best = record["score"], progress.epoch, 0
        with finish_first():
            if self.accelerator.is_main_process:
                self.run.log(record)
            if progress.epochs_since_best == 0:
                best = {"epoch": progress.best_epoch, "score": progress.best_score}
                self.run.save_best(self.model, best)
            self._keep({})
        _stop_if_asked(stop_asked())

    def _keep(self, states):
        """Keep where training stands. states: the random states of all processes, {} between epochs."""
        self.run.save(self.model, self.optimizer, self.progress, states)
        self.kept_at = time.monotonic()

    def _train_epoch(self, batches, loss_fn):
        """All steps of one epoch that are left. Returns the mean loss over its terms."""
        self.model.train()
        settings, progress = self.settings, self.progress
        epoch, steps = progress.epoch + 1, steps_an_epoch(batches, settings)
        seed_everything(settings.seed + epoch, self.accelerator.process_index)  # what dropout draws hangs on the epoch
        if progress.epoch_step:
            restore_random_states(self.random_states, self.accelerator.process_index)
        iterator = batches.epoch(epoch, start=progress.epoch_step * settings.gradient_accumulation)
        disable = None if self.accelerator.is_main_process else True  # None: shown where stderr is a terminal
        bar = tqdm(total=steps, initial=progress.epoch_step, desc=f"epoch {epoch}/{settings.epochs}", disable=disable)
        with bar, finish_first():
            while progress.epoch_step < steps:
                left = len(batches) - progress.epoch_step * settings.gradient_accumulation
                micro_batches = [next(iterator) for _ in range(min(settings.gradient_accumulation, left))]
                begun = time.perf_counter()
                with compiled_steps() if settings.compile else contextlib.nullcontext():
                    line, requests = self._step(micro_batches, loss_fn)
                if self.accelerator.is_main_process:
                    self.run.log({"epoch": epoch, "step": progress.step} | line)
                self.warmup.count(time.perf_counter() - begun)
                self._show(bar, line)
                if any(requests):
                    self._keep(random_states(gather_object, self.accelerator))
                    _stop_if_asked(requests[1])
        if not progress.epoch_count:
            raise self._diverged(f"not one step of epoch {epoch} had a finite loss")
        return progress.epoch_loss / progress.epoch_count

    def _show(self, bar, line):
        """The step's line beside the bar, and how long the whole run will take."""
        left = self.pace.left(self.progress.step)
        shown = {name: f"{value:.4g}" for name, value in line.items() if name not in ("skipped", "loss scale")}
        bar.set_postfix(shown | ({"left": in_words(left)} if left else {}))
        bar.update()
        self.pace.tell(self.progress.step, line.get("loss", math.nan))

    def _step(self, micro_batches, loss_fn):
        """One optimizer step: (its line in the metrics, (whether to keep the state, the signal that has come or 0))."""
        progress, total_steps = self.progress, self.run.total_steps
        loss, count, *requests = self._accumulate(micro_batches, loss_fn)
        rate = self.settings.lr * learning_rate_factor(progress.scheduled, total_steps, self.settings)
        norm = scale_gradients(self.optimizer, 1 / (count * progress.loss_scale), self.settings.max_grad_norm)
        progress.step += 1
        progress.epoch_step += 1
        line = {"loss": loss / count, "lr": rate} | ({"loss scale": progress.loss_scale} if self.in_fp16 else {})
        if math.isfinite(loss) and (math.isfinite(norm) or self.in_fp16):
            if math.isfinite(norm):
                self._update(rate)
            else:
                line["skipped"] = self._count_overflow()
            progress.epoch_loss, progress.epoch_count = progress.epoch_loss + loss, progress.epoch_count + count
        else:
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            line = {"skipped": what, "lr": rate}
            self._count_bad_step(what, micro_batches)
        self.optimizer.zero_grad(set_to_none=True)
        return line, requests

    def _update(self, rate):
        """Take the step, its gradients being finite."""
        progress = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        progress.updates += 1
        progress.bad_steps = 0
        if self.in_fp16:
            progress.loss_scale, progress.steady_steps = adapted(progress.loss_scale, progress.steady_steps, False)
        if self.after_step is not None:
            self.after_step(progress.scheduled, self.run.total_steps)

    def _count_overflow(self):
        """A step whose gradient overflows fp16 is left out, and the next ones are scaled less: no bad number."""
        progress, scale = self.progress, self.progress.loss_scale
        what = f"the gradient overflows fp16 at a loss scale of {scale:g}"
        progress.loss_scale, progress.steady_steps = adapted(scale, progress.steady_steps, True)
        progress.overflows += 1
        if progress.loss_scale < SMALLEST:
            raise self._diverged(f"{what} at step {progress.step}, the smallest there is")
        say(f"step {progress.step} is left out: {what}; from now on {progress.loss_scale:g}")
        return what

    def _count_bad_step(self, what, micro_batches):
        """A step whose numbers are not finite changes nothing. Three in a row end the run."""
        self.progress.bad_steps += 1
        rows = [str(row) for batch in micro_batches for row in batch.get("sent_ids", ())]
        rows = sorted({row for part in gather_object([rows]) for row in part})
        shown = f" (rows {', '.join(rows[:8])}{', ...' if len(rows) > 8 else ''})" if rows else ""
        say(f"step {self.progress.step} is left out: {what}{shown}")
        if self.progress.bad_steps == MOST_BAD_STEPS:
            raise self._diverged(f"{what} at step {self.progress.step}, the third in a row")

    def _diverged(self, what):
        """The error that ends a run whose numbers are not finite; from now on --resume takes another --lr."""
        if self.accelerator.is_main_process:
            write_json(self.run.diverged, {"step": self.progress.step, "what": what})
        kept = f"{self.run.resume_flags} goes on from what was kept before"
        return Diverged(f"{what}: {kept}; give it a lower --lr, or begin again with --precision fp32")

    def _accumulate(self, micro_batches, loss_fn):
        """Add up the gradients of summed losses over some batches and over all processes.

        What does not fit into the memory of one of them goes in smaller parts in all of them. Returns, over all
        processes, the loss, the count, whether the state shall be kept, and a signal that has come.
        """
        while True:
            totals, failed = self._try_to_add_up(micro_batches, loss_fn)
            due = self.settings.save_minutes and time.monotonic() - self.kept_at >= 60 * self.settings.save_minutes
            asked = stop_asked() or 0
            wanted = bool(asked) or bool(due and self.accelerator.is_main_process)
            mine = torch.tensor([float(wanted), float(asked), float(failed)]).to(totals)
            totals = self.accelerator.reduce(torch.cat([totals, mine]), "sum").tolist()
            if not totals[4]:
                break
            self._smaller_parts(micro_batches)
        if self.accelerator.num_processes > 1 and not self.settings.shard:  # which sums them in the backward pass
            sum_over_processes(_gradients(self.optimizer))
        return [*totals[:3], asked or (signal.SIGTERM if totals[3] else 0)]

    def _try_to_add_up(self, micro_batches, loss_fn):
        """(loss and count of this process, as a tensor, whether its memory has run out); gradients are in the model."""
        device = self.accelerator.device
        totals = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        try:
            for part in self._parts(micro_batches):
                loss, count = loss_fn(self.model, to_device(part, device))
                if IDLE in part:
                    loss, count = 0 * loss, 0
                self.accelerator.backward(loss * self.progress.loss_scale)
                totals += torch.stack([loss.detach(), torch.as_tensor(count, device=loss.device)]).to(totals)
        except (RuntimeError, MemoryError) as error:
            if self.settings.shard or not is_out_of_memory(error):  # sharded, the others are amid the same pass
                raise
            return torch.zeros_like(totals), True
        return totals, False

    def _parts(self, micro_batches):
        """What goes through the model at once. (Sharded, all processes must take as many parts: one a batch.)"""
        rows = 0 if self.settings.shard else self.progress.rows_at_once
        return [part for batch in micro_batches for part in split_batch(batch, rows)] if rows else micro_batches

    def _smaller_parts(self, micro_batches):
        """Halve the rows that go through the model at once, in every process: the same step in smaller parts."""
        rows = max(gather_object([max(map(rows_of, self._parts(micro_batches)))]))
        check(rows > 1, "a single row does not fit into memory: take a smaller model, --tuning lora, or shorter rows")
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.rows_at_once = rows // 2
        say(f"out of memory: from now on a batch goes in parts of {rows // 2} rows, with the same result")


def _stop_if_asked(number):
    if number:
        raise Stopped(int(number))


def learning_rate_factor(step, total_steps, settings):
    """The share of the peak learning rate at a step, counted from 0: a linear warm-up from 0, then the schedule."""
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "inverse_sqrt":  # Vaswani et al. 2017, section 5.3
        return ((warmup + 1) / (step + 1)) ** 0.5
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def total_steps(batches, settings):
    """Optimizer steps of a whole run."""
    return settings.epochs * steps_an_epoch(batches, settings)


def steps_an_epoch(batches, settings):
    """Optimizer steps; the last one of an epoch may have fewer batches to accumulate."""
    return -(-len(batches) // settings.gradient_accumulation)


def scale_gradients(optimizer, scale, max_norm):
    """Turn gradients of sums into gradients of means, and clip their norm (Pascanu et al. 2013), in one pass.

    Returns the norm of the mean's gradient before clipping.
    """
    gradients = _gradients(optimizer)
    norm = put_together(torch.nn.utils.get_total_norm(gradients)).item() * scale
    if max_norm and math.isfinite(norm):
        scale *= min(1.0, max_norm / (norm + 1e-6))
    if scale != 1.0:
        torch._foreach_mul_(gradients, scale)
    return norm


def _gradients(optimizer):
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def to_device(batch, device):
    """The batch with its tensors on the device; other values, such as ids, as they are."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
