"""The one training loop, for both tasks, on a laptop, one GPU or several (`accelerate launch`).

A script owns its data, its head, `loss_fn` and `evaluate`; this file owns steps, schedules, checkpoints and the
progress bar. Distribution and mixed precision come from accelerate.
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from checkpoint import fingerprint
from config import DROPOUTS, UserError
from datasets import load_tokenizer
from models.gpt2 import GPT2Model
from models.hugging_face import find_model
from modules.tuning import attach, cast_frozen, check_mergeable, chosen_methods, count_parameters
from optimizer import AdamW, parameter_groups


BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def make_accelerator(settings):
    """The Accelerator for settings (TrainingSettings), and a line that says what it took and why."""
    if settings.use_gpu and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("--use_gpu: torch sees no CUDA and no MPS device; leave the flag out to train on the CPU")
    device = "cpu" if not settings.use_gpu else "cuda" if torch.cuda.is_available() else "mps"
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if has_native_bf16(device) else "fp32"
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    why = (
        "asked for" if settings.precision != "auto" else "native here" if precision == "bf16" else "no native bf16 here"
    )
    accelerator.print(
        f"device {accelerator.device}, precision {precision} ({why}), {accelerator.num_processes} process(es)"
    )
    return accelerator


def has_native_bf16(device):
    """Whether the hardware multiplies bf16 matrices itself; elsewhere bf16 is emulated, and slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and not BF16_FLAGS.isdisjoint(cpu_features())


def cpu_features():
    """What the CPU says that it can do: from torch or, where an older one (2.8, 2.9) cannot be asked, from Linux."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, present in torch.cpu.get_capabilities().items() if present}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def load_backbone(settings, accelerator):
    """The GPT-2 that the settings of a script ask for, tuning methods attached: (gpt2, tokenizer, fingerprint).

    The order matters: weights, then methods, then freezing (and, for bf16, one cast of what is frozen). The optimizer
    comes after all of it. fingerprint: of the base weights, before anything was attached.
    """
    methods = chosen_methods(settings)
    if settings.inference.merge:
        check_mergeable(methods)  # now, not after hours of training
    set_seed(settings.training.seed)  # new tensors start the same in every run
    path = settings.model.model_path
    if path is not None and not Path(path).is_dir():
        raise UserError(f"--model_path: {path} is no folder; give one with config.json and model.safetensors")
    folder = Path(path) if path else find_model(settings.model.model_size)
    tokenizer = load_tokenizer(folder)
    overrides = {}
    if settings.model.dropout is not None:
        overrides = dict.fromkeys(DROPOUTS, settings.model.dropout)
    gpt2 = GPT2Model.from_pretrained(str(folder), **overrides)
    if tokenizer.get_vocab_size() > gpt2.config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.get_vocab_size()} tokens, the model {gpt2.config.vocab_size}: "
            "they do not belong together"
        )
    base = fingerprint(gpt2)
    attach(gpt2, methods)
    if methods and accelerator.mixed_precision == "bf16":
        cast_frozen(gpt2, torch.bfloat16)
    return gpt2, tokenizer, base


def learning_rate_factor(step, total_steps, settings):
    """The share of the peak learning rate at a step, counted from 0: a linear warm-up from 0, then the schedule."""
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def fit(model, batches, loss_fn, evaluate, settings, run, accelerator, after_step=None):
    """Train model, keep the best epoch, and leave that epoch's weights in it. Returns the figures of `load_trained`.

    batches: a LengthGroupedBatches. loss_fn(model, batch) -> (loss, count): the *sum* of the batch's losses and the
    number of terms in it, so that accumulated and distributed steps weigh every term alike. evaluate(model) -> dict of
    figures; the highest "score" is the best epoch. settings: TrainingSettings with lr set. run: where it is kept (Run).
    after_step(model, step): called after every optimizer step, before its gradients are cleared.
    Raises UserError if the loss stops being finite.
    """
    wrapped = accelerator.prepare(model)
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = AdamW(groups, lr=settings.lr, betas=(0.9, settings.beta2))
    progress = run.restore(model, optimizer)
    started, epoch_seconds = progress.epoch, []
    if started:
        accelerator.print(f"{run.folder}: continuing after epoch {started}")
    for epoch in range(started + 1, settings.epochs + 1):
        if settings.patience and progress.epochs_since_best >= settings.patience:
            accelerator.print(f"no better score for {settings.patience} epochs: stopping early")
            break
        set_seed(settings.seed + epoch, device_specific=True)  # so a resumed run draws the dropout it would have drawn
        start = time.perf_counter()
        model.train()
        train_loss = _train_epoch(
            wrapped, batches, loss_fn, optimizer, settings, run, accelerator, progress, after_step
        )
        epoch_seconds.append(time.perf_counter() - start)
        model.eval()
        with torch.no_grad(), accelerator.autocast():
            figures = evaluate(model)
        progress.epoch = epoch
        progress.epochs_since_best += 1
        if figures["score"] > progress.best_score:
            progress.best_score, progress.best_epoch, progress.epochs_since_best = figures["score"], epoch, 0
        if accelerator.is_main_process:
            run.log({"epoch": epoch, "train_loss": train_loss, "seconds": epoch_seconds[-1]} | figures)
            run.save_epoch(model, optimizer, progress)
        accelerator.wait_for_everyone()
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name != "score")
        best = " (best so far)" if progress.epochs_since_best == 0 else ""
        accelerator.print(f"epoch {epoch}/{settings.epochs}: train loss {train_loss:.4f}, {shown}{best}")
    figures = load_trained(model, run, accelerator)
    if epoch_seconds:
        figures["seconds an epoch"] = f"{sum(epoch_seconds) / len(epoch_seconds):.1f}"
    return figures


def steps_an_epoch(batches, settings):
    """Optimizer steps; the last one of an epoch may have fewer batches to accumulate."""
    return -(-len(batches) // settings.gradient_accumulation)


def _train_epoch(model, batches, loss_fn, optimizer, settings, run, accelerator, progress, after_step):
    """All steps of one epoch. Returns the mean loss over its terms."""
    accumulate = settings.gradient_accumulation
    steps = steps_an_epoch(batches, settings)
    total_loss, total_count = 0.0, 0
    iterator = iter(batches.epoch(progress.epoch + 1))
    hidden = None if accelerator.is_main_process else True  # None: shown where stderr is a terminal
    bar = tqdm(range(steps), desc=f"epoch {progress.epoch + 1}/{settings.epochs}", unit="step", disable=hidden)
    for index in bar:
        micro_batches = min(accumulate, len(batches) - index * accumulate)
        loss, count = _accumulate(model, iterator, micro_batches, loss_fn, accelerator)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {progress.step + 1}: lower --lr, or try --precision fp32")
        factor = learning_rate_factor(progress.step, steps * settings.epochs, settings)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * factor
        scale_gradients(optimizer, accelerator.num_processes / count, settings.max_grad_norm)
        optimizer.step()
        progress.step += 1
        if after_step is not None:
            after_step(model, progress.step)
        optimizer.zero_grad(set_to_none=True)
        total_loss, total_count = total_loss + loss, total_count + count
        bar.set_postfix(loss=f"{loss / count:.4f}", lr=f"{settings.lr * factor:.1e}")
        if accelerator.is_main_process:
            run.log(
                {"epoch": progress.epoch + 1, "step": progress.step, "loss": loss / count, "lr": settings.lr * factor}
            )
    return total_loss / total_count


def _accumulate(model, iterator, micro_batches, loss_fn, accelerator):
    """Add up the gradients of summed losses over some batches. Returns the loss and count over all processes."""
    totals = torch.zeros(2, dtype=torch.float64 if accelerator.device.type != "mps" else torch.float32)
    totals = totals.to(accelerator.device)
    for number in range(micro_batches):
        batch = to_device(next(iterator), accelerator.device)
        last = number == micro_batches - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):  # exchange gradients once a step
            loss, count = loss_fn(model, batch)
            accelerator.backward(loss)
        totals += torch.stack([loss.detach(), torch.as_tensor(count, device=loss.device)]).to(totals)
    return accelerator.reduce(totals, "sum").tolist()


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


def load_trained(model, run, accelerator):
    """Put the run's best epoch into model, ready to predict. Returns what a report wants to know, {name: text}."""
    best = run.load_best(model)
    model.to(accelerator.device).eval()
    trained, total = count_parameters(model)
    size = f"{run.size() / 2**20:.1f} MiB" if run.size() >= 2**20 else f"{run.size() / 2**10:.0f} KiB"
    return {
        "run": f"{run.folder} ({size} of trained weights)",
        "trained parameters": f"{trained:,} of {total:,} ({100 * trained / total:.2f} %)",
        "best epoch": str(best["epoch"]),
        "peak memory": f"{peak_memory(accelerator.device) / 2**30:.2f} GiB",
    }


def peak_memory(device):
    """Bytes: on the GPU what torch allocated at most, on the CPU the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_table(title, figures):
    """A title and aligned rows, to be pasted into a report."""
    width = max(map(len, figures))
    print(f"\n{title}\n{'-' * len(title)}")
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")
