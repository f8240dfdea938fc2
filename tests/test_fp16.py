"""fp16: the loss scale against torch's, steps that overflow, runs that go on; on the CPU and on a GPU, if any."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import sonnet_generation
import training.fp16
from cli.flags import parse_flags
from config import HeadSettings, PairPoolingSettings, SentimentHeadSettings, SonnetSettings, TrainingSettings
from errors import Diverged
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from models.sentiment_gpt import SentimentGPT
from models.sonnet_gpt import language_model_loss
from modules import linear_cross_entropy as lce
from modules.kv_cache import KVCache
from optimizer import AdamW
from tests import small_run, test_pretrain
from tests.inputs import run, without
from tests.small_run import contents, in_processes
from tests.tiny import forget_accelerate_state
from training.assembly import auto_precision, make_accelerator
from training.fp16 import GROWTH_INTERVAL, SMALLEST, START, adapted
from training.loop import TrainingLoop, learning_rate_factor, scale_gradients
from training.runs import SINCE_FP16
from tuning.attach import cast_for_prediction

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
on_every_device = pytest.mark.parametrize("device", DEVICES)


class Stop(BaseException):
    """What a SIGKILL is from the inside."""


@pytest.fixture
def train(model_folder, tmp_path):
    """train(name, device, ...): the small training in fp16, 12 steps, kept in tmp_path / name."""

    def train(name, device="cpu", resumed=False, **options):
        options = {"precision": "fp16", "use_gpu": device == "cuda"} | options
        return small_run.train(model_folder, tmp_path / name, resumed, **options)

    return train


def overflowing_at(*steps, batches_a_step=1):
    """The loss of the small training; at these steps (from 1) an infinite number enters the gradient, as an overflow
    does: a hook on the loss. What the loss itself says stays as it is."""
    calls = []

    def loss_fn(model, batch):
        calls.append(batch["sent_ids"])
        loss, count = language_model_loss(model, batch)
        if (len(calls) - 1) // batches_a_step + 1 in steps:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss, count

    return loss_fn


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder):
    return [line for line in lines_of(folder) if "step" in line]


def state_of(folder):
    return json.loads((folder / "last/state.json").read_text())


# --- the scale --------------------------------------------------------------------------------------------------------


@on_every_device
def test_steps_and_scales_are_those_of_torchs_scaler(monkeypatch, device):
    """60 steps on a small network under autocast, three with an infinite gradient; the scale is doubled after 7."""
    monkeypatch.setattr(training.fp16, "GROWTH_INTERVAL", 7)
    inputs = torch.randn(60, 8, 12, device=device)
    networks = [torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)) for _ in "ab"]
    networks[1].load_state_dict(networks[0].state_dict())
    ours, theirs = (AdamW(network.to(device).parameters(), lr=0.01) for network in networks)
    scaler = torch.amp.GradScaler(device, init_scale=START, growth_interval=7)
    scale, steady, scales = START, 0, []
    for step, batch in enumerate(inputs):
        factor = math.inf if step in (5, 6, 30) else 1.0
        losses = []
        for network in networks:
            with torch.autocast(device, torch.float16):
                output = network(batch)
            losses.append(output.float().square().sum() * (factor if step == 30 else 1.0))
        if step != 30:  # an overflow in the backward pass alone
            for loss in losses:
                loss.register_hook(lambda gradient, factor=factor: gradient * factor)
        (losses[0] * scale).backward()
        norm = scale_gradients(ours, 1 / (8 * scale), 0.5)
        if math.isfinite(norm):
            ours.step()
        scale, steady = adapted(scale, steady, not math.isfinite(norm))
        scaler.scale(losses[1] / 8).backward()
        scaler.unscale_(theirs)
        torch.nn.utils.clip_grad_norm_(networks[1].parameters(), 0.5)
        scaler.step(theirs)
        scaler.update()
        scales.append(scale)
        assert scale == scaler.get_scale(), step
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
    assert len(set(scales)) > 4
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_scale_grows_after_so_many_steps_without_an_overflow():
    scale, steady = START, 0
    for step in range(GROWTH_INTERVAL):
        assert scale == START, step
        scale, steady = adapted(scale, steady, False)
    assert (scale, steady) == (2 * START, 0)
    assert adapted(scale, 1999, True) == (START, 0)


def test_gradients_are_unscaled_before_they_are_clipped():
    """The very bits that clipping unscaled ones gives, the scale being a power of two."""
    for max_norm in (0.0, 0.3):
        results = []
        for scale in (1.0, 2.0**12):
            parameters = [torch.nn.Parameter(torch.zeros(5)) for _ in range(3)]
            generator = torch.Generator().manual_seed(1)
            for parameter in parameters:
                parameter.grad = scale * torch.randn(5, generator=generator)
            norm = scale_gradients(AdamW(parameters), 1 / (7 * scale), max_norm)
            results.append((norm, *(parameter.grad for parameter in parameters)))
        assert results[0][0] == results[1][0]
        assert all(torch.equal(a, b) for a, b in zip(results[0][1:], results[1][1:], strict=True))


# --- the loop ---------------------------------------------------------------------------------------------------------


@on_every_device
def test_training_learns_what_it_learns_in_fp32(train, device):
    folders = {precision: train(precision, device, precision=precision, lr=3e-2) for precision in ("fp16", "fp32")}
    losses = {name: [line["loss"] for line in steps_of(folder)] for name, folder in folders.items()}
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=0.02) and losses["fp16"] != losses["fp32"]
    assert losses["fp16"][-1] < losses["fp16"][0] - 0.1
    assert [line["loss scale"] for line in steps_of(folders["fp16"])] == [START] * 12  # nothing overflows
    assert state_of(folders["fp16"])["steady_steps"] == 12


@on_every_device
def test_a_step_that_overflows_is_left_out_and_is_no_bad_number(train, capsys, device):
    folder = train("run", device, loss_fn=overflowing_at(3, 4, 5, 9))  # three in a row would be too many bad ones
    steps, state = steps_of(folder), state_of(folder)
    assert [line["step"] for line in steps if "skipped" in line] == [3, 4, 5, 9] and len(steps) == 12
    assert [line["loss scale"] for line in steps] == [16, 16, 16, 8, 4, 2, 2, 2, 2, 1, 1, 1]
    assert steps[2]["skipped"] == "the gradient overflows fp16 at a loss scale of 16"
    assert (state["step"], state["updates"], state["overflows"], state["bad_steps"]) == (12, 8, 4, 0)
    assert (state["loss_scale"], state["steady_steps"]) == (1.0, 3)
    out = capsys.readouterr().out
    assert "step 3 is left out: the gradient overflows fp16 at a loss scale of 16; from now on 8\n" in out


def test_such_a_step_changes_nothing_but_the_scale(train, tmp_path):
    """Left out at the very end: the weights and moments are those of the step before."""
    kept = {}

    def keep(step, total):
        if step == 11:
            kept["run"] = step

    whole = train("whole", loss_fn=overflowing_at(12), after_step=keep)
    with pytest.raises(Stop):
        train("cut", loss_fn=stopping_at(12))
    for file in ("last/model.safetensors", "last/optimizer.safetensors"):
        assert (whole / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    assert kept == {"run": 11}


def stopping_at(step):
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == step:
            raise Stop
        return language_model_loss(model, batch)

    return loss_fn


def test_the_schedule_and_what_methods_do_wait_for_a_step_that_is_left_out(train):
    seen = []
    after_step = lambda step, total: seen.append((step, total))  # noqa: E731
    rates = [line["lr"] for line in steps_of(train("run", loss_fn=overflowing_at(2, 7), after_step=after_step))]
    settings = TrainingSettings(**small_run.SETTINGS)
    wanted = [settings.lr * learning_rate_factor(step, 12, settings) for step in (0, 1, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9)]
    assert rates == wanted
    assert seen == [(step, 12) for step in range(1, 11)]


@pytest.mark.slow
@on_every_device
def test_a_run_killed_at_any_step_goes_on_to_the_same_result(train, tmp_path, monkeypatch, device):
    """Steps 3, 4 and 7 overflow, the scale is doubled after four steps: also killed just after an overflow."""
    monkeypatch.setattr(training.fp16, "GROWTH_INTERVAL", 4)
    rows = []

    def remember(model, batch):
        rows.append(tuple(batch["sent_ids"]))
        return language_model_loss(model, batch)

    train("order", device, loss_fn=remember)
    overflow = [rows[step - 1] for step in (3, 4, 7)]

    def loss_fn(stop=0):
        """Overflows by what is in the batch and the epoch, so that a resumed run meets them again."""
        calls = []

        def function(model, batch):
            calls.append(1)
            if len(calls) == stop:
                raise Stop
            loss, count = language_model_loss(model, batch)
            if tuple(batch["sent_ids"]) in overflow:
                loss.register_hook(lambda gradient: gradient * math.inf)
            return loss, count

        return function

    whole = train("whole", device, loss_fn=loss_fn())
    wanted = contents(whole)
    assert len({line["loss scale"] for line in steps_of(whole)}) > 2
    for step in range(2, 13):
        shutil.rmtree(tmp_path / "parts", ignore_errors=True)
        with pytest.raises(Stop):
            train("parts", device, loss_fn=loss_fn(step))
        assert contents(train("parts", device, resumed=True, loss_fn=loss_fn())) == wanted, step


def test_an_overflow_at_any_scale_ends_the_run_in_one_line(train, tmp_path):
    with pytest.raises(
        Diverged, match=r"the gradient overflows fp16 at a loss scale of 0\.000976562 at step 15, the sm"
    ):
        train("run", loss_fn=overflowing_at(*range(1, 100)), epochs=8)
    assert math.log2(START) - math.log2(SMALLEST) == 14
    assert json.loads((tmp_path / "run/diverged.json").read_text())["step"] == 15
    assert state_of(tmp_path / "run")["step"] == 14  # what was kept before is whole


def test_a_loss_that_is_not_finite_still_is_a_bad_number(train):
    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        return loss * float("nan"), count

    with pytest.raises(Diverged, match=r"the loss is nan at step 3, the third in a row: .*--precision fp32"):
        train("run", loss_fn=loss_fn)


@on_every_device
def test_accumulated_batches_are_one_step_of_the_scale(train, device):
    """4 batches a step; where one of them overflows, the step is left out."""
    options = {"gradient_accumulation": 4, "batch_size": 1, "rows": 16, "epochs": 2}
    folder = train("run", device, loss_fn=overflowing_at(2, batches_a_step=4), **options)
    steps = steps_of(folder)
    assert [line["step"] for line in steps if "skipped" in line] == [2] and len(steps) == 8
    assert [line["loss scale"] for line in steps] == [16, 16] + [8] * 6


@pytest.mark.parametrize("batch_size, accumulation", [(2, 2), (1, 4)])
def test_accumulated_steps_are_those_of_whole_batches(train, monkeypatch, batch_size, accumulation):
    monkeypatch.setattr("modules.dropout.Dropout.forward", lambda self, x: x)
    whole = [line["loss"] for line in steps_of(train("whole", rows=16))]
    folder = train("parts", rows=16, batch_size=batch_size, gradient_accumulation=accumulation)
    parts = [line["loss"] for line in steps_of(folder)]
    assert len(whole) == len(parts) == 12 and parts == pytest.approx(whole, rel=0.2)


def overflow_in_the_second(model, batch):
    """An overflow at its first step, in one of two processes alone."""
    loss, count = language_model_loss(model, batch)
    if os.environ["RANK"] == "1" and not hasattr(model, "has_overflowed"):
        model.has_overflowed = True
        loss.register_hook(lambda gradient: gradient * math.inf)
    return loss, count


@pytest.mark.slow
def test_processes_agree_on_what_is_left_out(model_folder, tmp_path):
    """Else one would take a step that the other does not, and their weights would part."""
    arguments = (model_folder, tmp_path / "run", False, overflow_in_the_second)
    assert in_processes(2, train_in_fp16, *arguments) == [0, 0]
    steps = steps_of(tmp_path / "run")
    assert [line["step"] for line in steps if "skipped" in line] == [1]
    assert [line["loss scale"] for line in steps] == [16] + [8] * 5
    states = [json.loads((tmp_path / f"scale{rank}.json").read_text()) for rank in range(2)]
    assert states[0] == states[1] and states[0]["overflows"] == 1


def train_in_fp16(model_folder, folder, resumed, loss_fn):
    """And write down what each process thinks of its weights at the end."""
    real = TrainingLoop.fit

    def fit(self, *arguments):
        real(self, *arguments)
        total = sum(p.double().abs().sum().item() for p in self.model.parameters() if p.requires_grad)
        said = {"weights": total, "scale": self.progress.loss_scale, "overflows": self.progress.overflows}
        (Path(folder).parent / f"scale{os.environ['RANK']}.json").write_text(json.dumps(said))

    TrainingLoop.fit = fit
    small_run.train(model_folder, folder, resumed, loss_fn, precision="fp16")


def test_a_state_of_before_fp16_is_read(train, tmp_path):
    """Its state.json says nothing of a loss scale."""
    with pytest.raises(Stop):
        train("run", precision="fp32", loss_fn=stopping_at(6))
    last = tmp_path / "run/last"
    state = {key: value for key, value in state_of(tmp_path / "run").items() if key not in SINCE_FP16}
    (last / "state.json").write_text(json.dumps(state))
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256((last / "state.json").read_bytes()).hexdigest()
    (last / "manifest.json").write_text(json.dumps(manifest))
    assert contents(train("run", precision="fp32", resumed=True)) == contents(train("whole", precision="fp32"))


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@on_every_device
def test_the_report_counts_the_steps_that_were_left_out(sonnet_flags, tmp_path, monkeypatch, device):
    monkeypatch.setattr(sonnet_generation, "language_model_loss", overflowing_at(2))
    flags = [*sonnet_flags, "--lora", "--precision", "fp16", "--run_dir", "run", *["--use_gpu"] * (device == "cuda")]
    run(sonnet_generation, flags)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["run"]["skipped steps"] == 1 and report["run"]["precision"] == "fp16"
    assert report["figures"]["skipped steps"] == "1 of 4 (their numbers were not finite)"
    first = (tmp_path / "out/sonnets.txt").read_bytes()
    (tmp_path / "out/sonnets.txt").unlink()
    more = ["--checkpoint", "run", "--precision", "fp16", *["--use_gpu"] * (device == "cuda")]
    run(sonnet_generation, [*without(sonnet_flags, "--epochs", "--lr"), *more])
    assert (tmp_path / "out/sonnets.txt").read_bytes() == first


@pytest.mark.slow
@on_every_device
def test_pretraining_in_fp16(corpus_folder, tmp_path, device):
    """(The other scripts, with every method: test_scripts.py, test_classifier.py, test_translation.py.)"""
    losses = {}
    for precision in ("fp32", "fp16"):
        more = f"--precision {precision}" + " --use_gpu" * (device == "cuda")
        test_pretrain.run(corpus_folder, tmp_path / precision, more)
        losses[precision] = [
            line["held-out loss"] for line in lines_of(tmp_path / precision) if "held-out loss" in line
        ]
    assert len(losses["fp16"]) == 4 and losses["fp16"] == pytest.approx(losses["fp32"], abs=0.02)
    assert len(steps_of(tmp_path / "fp16")) == 12 and (tmp_path / "fp16/model/model.safetensors").exists()


# --- what takes it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native, wanted", [(True, "bf16"), (False, "fp16")])
def test_auto_takes_fp16_on_a_gpu_without_native_bf16(monkeypatch, native, wanted):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr("training.assembly.cpu_features", lambda: set())
    assert auto_precision("cuda") == wanted
    assert auto_precision("cpu") == auto_precision("mps") == "fp32"


@on_every_device
def test_the_model_runs_in_fp16_and_what_it_returns_is_fp32(model_folder, device):
    forget_accelerate_state()
    accelerator = make_accelerator(TrainingSettings(precision="fp16", use_gpu=device == "cuda"))
    assert accelerator.mixed_precision == "fp16" and accelerator.scaler is None
    gpt2 = GPT2Model.from_pretrained(str(model_folder)).eval()
    seen = []
    gpt2.gpt_layers[0].interm_dense.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    accelerator.prepare_model(gpt2, evaluation_mode=True)
    hidden = gpt2(torch.arange(12, device=device)[None])["last_hidden_state"]
    assert seen == [torch.float16] and hidden.dtype == torch.float32
    assert gpt2.word_embedding.weight.dtype == torch.float32
    with accelerator.autocast():
        assert F.linear(hidden, gpt2.word_embedding.weight).dtype == torch.float16


# --- the parts of the model -------------------------------------------------------------------------------------------


@on_every_device
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy_is_as_good_as_torch_there(device, smoothing):
    hidden = torch.randn(40, 16, requires_grad=True, device=device)
    weight = torch.randn(300, 16, requires_grad=True, device=device)
    targets = torch.randint(0, 300, (40,), device=device)
    plain = lambda logits: F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)  # noqa: E731
    exact = plain(hidden @ weight.t())
    wanted = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast(device, torch.float16):
        ours = lce.linear_cross_entropy(hidden, weight, targets, smoothing)
        theirs = plain(F.linear(hidden, weight))
    assert abs(ours - exact) <= 1.5 * abs(theirs - exact) + 0.01
    scale = 2.0**10
    gradients = torch.autograd.grad(ours * scale, [hidden, weight])
    torchs = torch.autograd.grad(theirs * scale, [hidden, weight])
    for gradient, other, right in zip(gradients, torchs, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient / scale - right).norm() <= 1.5 * (other / scale - right).norm() + 1e-4 * right.norm()


@on_every_device
def test_linear_cross_entropys_gradients_hold_any_scale_and_large_hidden_states(device):
    """grad_hidden times 65536 is more than fp16 has; a chunk's sum over hidden states of 300 was, at any scale."""
    hidden = torch.full((512, 4), 300.0, requires_grad=True, device=device)
    weight = (0.01 * torch.randn(9, 4, device=device)).requires_grad_()
    targets = torch.zeros(512, dtype=torch.long, device=device)
    wanted = torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"), [hidden, weight])
    assert wanted[1].abs().max() > torch.finfo(torch.float16).max
    with torch.autocast(device, torch.float16):
        loss = lce.linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(loss * 65536.0, [hidden, weight])
    for gradient, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient / 65536, right, atol=2e-3 * right.abs().max().item(), rtol=0)


@on_every_device
def test_tiny_probabilities_leave_the_gradient_right(device):
    """Softmax over 50,257 nearly equal logits, 2e-5 each; one token near 1, so that the others are below 6e-8."""
    weight = torch.randn(50257, 8, device=device)
    targets = torch.randint(0, 50257, (6,), device=device)
    hidden = torch.randn(6, 8, device=device)
    for size in (0.01, 8.0):
        states = (size * hidden).requires_grad_()
        right = torch.autograd.grad(F.cross_entropy(states @ weight.t(), targets, reduction="sum"), states)[0]
        with torch.autocast(device, torch.float16):
            gradient = torch.autograd.grad(lce.linear_cross_entropy(states, weight, targets), states)[0]
        assert (gradient - right).norm() < 0.01 * right.norm()


@on_every_device
def test_cached_and_padded_passes_are_those_of_the_whole_text(model_folder, device):
    """Weights, states and cache in fp16; masks with -inf in them, and a row that is all padding."""
    gpt2 = GPT2Model.from_pretrained(str(model_folder)).eval().to(device)
    cast_for_prediction(gpt2, torch.float16)
    ids = torch.randint(0, 8600, (3, 9), device=device)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2] = 0
    with torch.no_grad():
        whole = gpt2(ids, mask)["last_hidden_state"]
        cache, parts = KVCache(3, 9), []
        for start, end in ((0, 5), (5, 6), (6, 9)):
            parts.append(gpt2(ids[:, start:end], mask[:, :end], cache)["last_hidden_state"])
        alone = gpt2(ids[1:2, 4:])["last_hidden_state"]
    assert whole.dtype == torch.float16 and whole.isfinite().all()
    torch.testing.assert_close(torch.cat(parts, dim=1)[:2], whole[:2], atol=2e-2, rtol=0)
    torch.testing.assert_close(whole[1, 4:], alone[0], atol=2e-2, rtol=0)


POOLINGS = [("last", 1), ("mean", 1), ("max", 1), ("attention", 1), ("generalized", 3), ("aligned", 1)]


@on_every_device
@pytest.mark.parametrize("kind, heads", POOLINGS)
@pytest.mark.parametrize("make", ["pairs", "reviews"])
def test_every_pooling_in_fp16_is_near_fp32(model_folder, device, kind, heads, make):
    """Loss and gradients, padding and a fully padded row included."""
    if (make, kind) == ("reviews", "aligned"):
        pytest.skip("a review is one text")
    more = {"pooling_penalty": "embeddings"} if heads > 1 else {}
    pooling = PairPoolingSettings(pooling=kind, pooling_heads=heads, pooling_hidden=4, **more)
    gpt2 = GPT2Model.from_pretrained(str(model_folder)).eval()
    if make == "pairs":
        model = ParaphraseGPT(gpt2, HeadSettings(head="linear"), pooling).to(device).eval()
    else:
        model = SentimentGPT(gpt2, 5, SentimentHeadSettings(), pooling).to(device).eval()
    ids = torch.randint(0, 8600, (3, 9), device=device)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2] = 0
    labels = torch.tensor([0, 1, 1], device=device)
    types = {}
    if kind == "aligned":
        torch.nn.init.normal_(model.pooling.answer.weight, std=0.1)
        types = {"token_type_ids": torch.tensor([[0, 1, 1, 0, 2, 2, 2, 0, 0]], device=device) * mask}
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast(device, torch.float16, enabled=enabled):
            loss, _ = model(ids, mask, labels=labels, **types)
        loss.backward()
        results.append((loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)))
    for right, half in zip(*results, strict=True):
        assert half.dtype == torch.float32 and half.isfinite().all()
        assert (half - right).norm() < 0.03 * right.norm() + 1e-3


def test_a_vocabulary_of_minus_infinities_holds_in_fp16(gpt2):
    model = ParaphraseGPT(gpt2).eval()
    cast_for_prediction(model, torch.float16)
    ids = torch.randint(0, 8600, (2, 7))
    logits = model(ids, torch.ones_like(ids), vocabulary_logits=True)
    assert logits.dtype == torch.float16 and set(logits.argmax(dim=1).tolist()) <= {3919, 8505}


def test_the_flag_knows_it():
    settings, _ = parse_flags(SonnetSettings, ["--precision", "fp16"])
    assert settings.training.precision == "fp16"
