"""The training loop against plain loops in torch, transformers and peft; its arithmetic."""

import json
import math

import peft
import pytest
import torch
import torch.nn.functional as F

from config import LoRASettings, SonnetSettings, TrainingSettings
from datasets import LengthGroupedBatches
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from tests.helpers import RandomRows, mostly_slow
from tests.peft_hosts import PeftHost
from tests.tiny import forget_accelerate_state, make_hugging_face_gpt2
from training.assembly import make_accelerator
from training.loop import TrainingLoop, learning_rate_factor, total_steps
from training.runs import Run
from tuning.attach import attach
from tuning.register import default_learning_rate
from tuning.state import trainable_state_dict


def language_model_loss(model, batch):
    return model(batch["token_ids"], batch["attention_mask"], return_loss=True)


def settings_for(**changes):
    return TrainingSettings(**{"epochs": 3, "batch_size": 4, "lr": 1e-3, "precision": "fp32"} | changes)


def load(folder, dropout=0.0):
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout_prob")
    return GPT2Model.from_pretrained(str(folder), **dict.fromkeys(names, dropout))


def train(gpt2, folder, settings, rows=40, after_step=None, resumed=False, scores=None):
    """The loop on random rows; returns the run, its best epoch in gpt2. scores: what evaluate answers, epoch by epoch
    (default: falling loss)."""
    model, dev = SonnetGPT(gpt2), RandomRows(8, seed=1)
    batches = LengthGroupedBatches(RandomRows(rows), settings.batch_size, shuffle=True, seed=settings.seed)
    answers = iter(scores or [])

    def evaluate(model):
        loss, count = language_model_loss(model, dev.collate_fn([dev[i] for i in range(8)]))
        return {"score": next(answers) if scores else -(loss / count).item(), "dev loss": (loss / count).item()}

    base = {"weights": "", "config": {}}  # (what is held to it: test_runs.py)
    run = Run(folder, resumed=resumed)
    run.begin("test", SonnetSettings(training=settings), base, total_steps=total_steps(batches, settings))
    accelerator = make_accelerator(settings)
    TrainingLoop(model, settings, run, accelerator, after_step).fit(batches, language_model_loss, evaluate)
    run.load_best(model)
    return run


def step_losses(run):
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "step" in line]


def plain_torch_losses(loss_of, parameters, settings, rows=40):
    """The reference: torch's optimizer, torch's schedule arithmetic written out, torch's clipping, 30 steps."""
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, eps=1e-6, weight_decay=0)
    losses, total = [], 30
    batches = LengthGroupedBatches(RandomRows(rows), settings.batch_size, shuffle=True, seed=settings.seed)
    for epoch in (1, 2, 3):
        for batch in batches.epoch(epoch):
            warmup, step = round(settings.warmup_ratio * total), len(losses)
            factor = (step + 1) / (warmup + 1) if step < warmup else (total - step) / (total - warmup)
            optimizer.param_groups[0]["lr"] = settings.lr * factor
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    assert len(losses) == total
    return losses


def test_30_steps_of_full_tuning_equal_transformers_and_torch(model_folder, tmp_path):
    settings = settings_for()
    ours = step_losses(train(load(model_folder), tmp_path, settings))
    reference = make_hugging_face_gpt2(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0).train()

    def loss_of(batch):
        labels = batch["token_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return reference(batch["token_ids"], attention_mask=batch["attention_mask"], labels=labels).loss

    theirs = plain_torch_losses(loss_of, list(reference.parameters()), settings)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert theirs[-1] < theirs[0] - 1


def test_30_steps_of_lora_equal_peft_in_our_model(model_folder, tmp_path):
    settings = settings_for(lr=1e-2)
    gpt2 = load(model_folder)
    attach(gpt2, {"lora": LoRASettings(lora_dropout=0.0)})
    start = {name: tensor.clone() for name, tensor in trainable_state_dict(gpt2).items()}
    ours = step_losses(train(gpt2, tmp_path, settings))

    config = peft.LoraConfig(
        r=4, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value", "interm_dense"], bias="none"
    )
    reference = peft.inject_adapter_in_model(config, PeftHost(load(model_folder))).train()
    with torch.no_grad():
        for name, p in reference.gpt2.named_parameters():
            if p.requires_grad:
                p.copy_(start[name.replace(".default.weight", "")])

    def loss_of(batch):
        hidden = reference.gpt2(batch["token_ids"], batch["attention_mask"])["last_hidden_state"]
        logits = reference.gpt2.hidden_state_to_token(hidden)[:, :-1]
        labels = batch["token_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    theirs = plain_torch_losses(loss_of, [p for p in reference.parameters() if p.requires_grad], settings)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert theirs[-1] < theirs[0] - 0.5


def test_accumulated_batches_weigh_every_token_alike(model_folder, tmp_path):
    """Two batches of 4 with different numbers of tokens give the step of their one batch of 8."""
    weights = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        gpt2 = load(model_folder)
        settings = settings_for(batch_size=size, gradient_accumulation=accumulation, epochs=1, schedule="constant")
        train(gpt2, tmp_path / str(size), settings, rows=8)
        weights.append(torch.cat([p.detach().flatten() for p in gpt2.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(weights[2], weights[0], atol=2e-5, rtol=0)


def test_the_last_step_takes_what_is_left(model_folder, tmp_path):
    run = train(load(model_folder), tmp_path, settings_for(gradient_accumulation=3, epochs=2), rows=40)  # 10 batches
    assert len(step_losses(run)) == 2 * 4


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("stop", mostly_slow(["in the middle of an epoch", "at an epoch's end"]))
def test_a_resumed_run_ends_where_the_unbroken_one_does(model_folder, tmp_path, tuned, stop):
    def fresh():
        gpt2 = load(model_folder, dropout=0.2)
        torch.manual_seed(1)
        if tuned:
            attach(gpt2, {"lora": LoRASettings()})
        return gpt2

    class Stopped(Exception):
        pass

    def stop_at(step, total_steps):
        if step == (11 if stop == "in the middle of an epoch" else 15):
            raise Stopped

    settings = settings_for(batch_size=8, epochs=4, lr=3e-3)  # 5 steps an epoch
    unbroken, broken, continued = fresh(), fresh(), fresh()
    whole = train(unbroken, tmp_path / "whole", settings)
    with pytest.raises(Stopped):
        train(broken, tmp_path / "parts", settings, after_step=stop_at)
    torch.manual_seed(99)  # nothing may hang on the random state of the process
    parts = train(continued, tmp_path / "parts", settings, resumed=True)
    assert step_losses(parts) == step_losses(whole)
    for (name, a), b in zip(unbroken.named_parameters(), continued.parameters(), strict=True):
        assert torch.equal(a, b), name
    for file in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors", "last/state.json"):
        assert (parts.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file


def test_the_best_epoch_is_kept_and_patience_stops(model_folder, tmp_path, capsys):
    seen = []
    settings = settings_for(epochs=6, patience=2)
    gpt2 = load(model_folder)

    def remember(step, total_steps):
        assert total_steps == 60
        if step % 10 == 0:
            seen.append({name: p.detach().clone() for name, p in gpt2.named_parameters()})

    run = train(gpt2, tmp_path, settings, after_step=remember, scores=[1.0, 3.0, 2.0, 2.5, 9.0, 9.0])
    assert len(seen) == 4 and "stopping early" in capsys.readouterr().out
    assert json.loads((run.folder / "best/score.json").read_text()) == {"epoch": 2, "score": 3.0}
    for name, p in gpt2.named_parameters():
        assert torch.equal(p, seen[1][name]), name


def test_bf16_training_learns_and_keeps_fp32_masters(model_folder, tmp_path):
    gpt2 = load(model_folder)
    losses = step_losses(train(gpt2, tmp_path, settings_for(precision="bf16")))
    forget_accelerate_state()
    exact = step_losses(train(load(model_folder), tmp_path / "fp32", settings_for()))
    assert gpt2.word_embedding.weight.dtype == torch.float32
    assert abs(losses[0] - exact[0]) < 0.05 and abs(losses[-1] - exact[-1]) < 0.2
    assert losses != exact


def test_schedules():
    settings = settings_for(warmup_ratio=0.1)
    factors = [learning_rate_factor(step, 100, settings) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11) and factors[9] == pytest.approx(10 / 11) and factors[10] == 1
    assert factors[55] == pytest.approx(0.5) and factors[99] == pytest.approx(1 / 90)
    cosine = settings_for(warmup_ratio=0.0, schedule="cosine")
    assert learning_rate_factor(25, 100, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    constant = settings_for(warmup_ratio=0.0, schedule="constant")
    assert {learning_rate_factor(step, 100, constant) for step in range(100)} == {1.0}
    assert default_learning_rate([]) < default_learning_rate(["lora"])
