"""Sharded training (--shard) on two CPU processes: the steps and the tensors of one process, and kept for either."""

import os
import signal

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import sonnet_generation
import training.loop
from config import DROPOUTS
from errors import UserError
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from tests.inputs import check_prediction_file, run, without, write_pairs
from tests.small_run import in_processes
from tests.test_processes import told
from tests.test_scale import FULL, LORA, check_same_losses, figures
from tests.test_scale import run_script as run_task
from tests.tuned import CHOICES, INPUT_IDS, MASK
from training.sharding import put_together, shard, unshard
from tuning.attach import attach
from tuning.register import METHODS


@pytest.fixture
def sonnets(sonnet_flags):
    """12 rows, two steps an epoch of 8 and 4 rows, two epochs."""
    return [*without(sonnet_flags, "--score_seeds"), "--score_seeds", "1", "--max_new_tokens", "1"]


def of_one(flags, folder="one"):
    assert in_processes(1, run_task, "sonnet_generation", [*flags, "--batch_size", "8", "--run_dir", folder]) == [0]


def check_same_tensors(one, other):
    """What is kept, to 1e-5. (A key's bias has no gradient but rounding, of which AdamW makes whole steps.)"""
    for file in ("best/model.safetensors", "last/model.safetensors", "last/optimizer.safetensors"):
        ours, theirs = load_file(other / file), load_file(one / file)
        assert ours.keys() == theirs.keys() and len(ours) > 5
        for name in (name for name in ours if not name.endswith("key.bias")):
            torch.testing.assert_close(
                ours[name], theirs[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_a_sharded_run_is_that_of_one_process_and_ends_in_whole_tensors(sonnets, tmp_path, tuning):
    flags = [*sonnets, *tuning, "--gradient_accumulation", "2"]
    of_one(flags)
    both = [*flags, "--batch_size", "4", "--run_dir", "two", "--shard"]
    assert in_processes(2, run_task, "sonnet_generation", both) == [0, 0]
    check_same_losses([tmp_path / "one", tmp_path / "two"])
    check_same_tensors(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_in_bf16_too(sonnets, tmp_path):
    """LoRA over a base that was cast once: frozen and trained tensors of two formats in one group."""
    flags = [*sonnets, *LORA, "--precision", "bf16", "--batch_size", "4"]
    for folder, more in (("plain", []), ("sharded", ["--shard"])):
        assert in_processes(2, run_task, "sonnet_generation", [*flags, "--run_dir", folder, *more]) == [0, 0]
    plain, sharded = (figures(tmp_path / folder, "loss") for folder in ("plain", "sharded"))
    assert len(plain) == 4 and sharded == pytest.approx(plain, abs=1e-3)


def killed(step, flags):
    """As `run_task`, but that SIGKILL ends both processes after an optimizer step."""
    real = training.loop.TrainingLoop._step

    def and_die(loop, *arguments):
        outcome = real(loop, *arguments)
        if loop.progress.step == step:
            torch.distributed.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    training.loop.TrainingLoop._step = and_die
    run_task("sonnet_generation", flags)


@pytest.mark.slow
def test_a_killed_run_goes_on_sharded_to_the_same_bytes_or_in_one_process(sonnets, tmp_path):
    """With dropout; in one process, without."""
    flags = [*without(sonnets, "--epochs"), "--epochs", "3", "--precision", "fp32", "--save_minutes", "1e-9"]
    flags += ["--batch_size", "4"]
    assert in_processes(2, run_task, "sonnet_generation", [*flags, "--run_dir", "whole", "--shard"]) == [0, 0]
    assert in_processes(2, killed, 3, [*flags, "--run_dir", "parts", "--shard"]) == [-signal.SIGKILL] * 2
    again = ["--resume", "--run_dir", "parts", "--shard"]
    assert in_processes(2, run_task, "sonnet_generation", again) == [0, 0]
    for file in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors", "last/state.json"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file

    flags += ["--dropout", "0"]
    of_one(without(flags, "--batch_size"))
    assert in_processes(2, killed, 3, [*flags, "--run_dir", "moved", "--shard"]) == [-signal.SIGKILL] * 2
    again = ["--resume", "--run_dir", "moved", "--batch_size", "8"]
    assert in_processes(1, run_task, "sonnet_generation", again) == [0]
    check_same_losses([tmp_path / "one", tmp_path / "moved"], steps=6)
    check_same_tensors(tmp_path / "one", tmp_path / "moved")


@pytest.mark.slow
def test_pairs_whose_processes_have_other_numbers_of_batches(pair_flags, tmp_path):
    """13 training rows, a last step without a row for the second process; 10 dev rows in batches of 4: two and one."""
    write_pairs(tmp_path / "train.csv", 13)
    flags = [*pair_flags, *FULL, "--eval_batch_size", "4"]
    for world, size, more in ((1, 4, []), (2, 2, ["--shard"])):
        options = [*flags, "--batch_size", str(size), "--run_dir", f"of{world}", *more]
        assert in_processes(world, run_task, "paraphrase_detection", options) == [0] * world
        check_prediction_file(tmp_path / "out/dev.csv", [f"id{row}" for row in range(10)])
    check_same_losses([tmp_path / "of1", tmp_path / "of2"], "dev accuracy", steps=8)


def same_gradients(folder, report):
    """For every choice of tuning methods: those of the sharded model, put together, beside those of the whole one."""
    accelerator, lines = Accelerator(cpu=True), []
    rank = accelerator.process_index
    for name, methods in {"full": {}, **CHOICES}.items():
        if any(METHODS[method].whole for method in methods):
            continue
        torch.manual_seed(1)
        gpt2 = GPT2Model.from_pretrained(str(folder), **dict.fromkeys(DROPOUTS, 0.0))
        attach(gpt2, methods)
        model = SonnetGPT(gpt2)
        loss, _ = model(INPUT_IDS, MASK, return_loss=True)
        loss.backward()
        wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        values = {key: p.detach().clone() for key, p in model.named_parameters()}
        twin = shard(model, accelerator.device)
        mine = slice(rank, rank + 1)
        part, _ = twin(INPUT_IDS[mine], MASK[mine], return_loss=True)
        part.backward()
        found = {key: put_together(p.grad) for key, p in twin.named_parameters() if p.grad is not None}
        unshard(twin, model)
        same = all(torch.equal(p, values[key]) for key, p in model.named_parameters())
        near = found.keys() == wanted.keys() and all(
            torch.allclose(found[key], wanted[key], atol=1e-3, rtol=1e-4) for key in wanted
        )
        lines.append(f"{name}: {same} {near}\n")
    if rank == 0:
        report.write_text("".join(lines))


@pytest.mark.slow
def test_every_tuning_method_has_the_gradients_of_one_process(model_folder, tmp_path):
    assert in_processes(2, same_gradients, model_folder, tmp_path / "report") == [0, 0]
    lines = (tmp_path / "report").read_text().splitlines()
    assert len(lines) > 15 and [line for line in lines if not line.endswith(": True True")] == []


# --- what is refused --------------------------------------------------------------------------------------------------


def test_one_process_has_nothing_to_split(sonnets):
    with pytest.raises(UserError, match="--shard has no effect in one process"):
        run(sonnet_generation, [*sonnets, "--shard"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("sonnet_generation", "--tuning qlora", "--shard --tuning qlora: they do not combine, its base is packed"),
        ("sonnet_generation", "--tuning adalora", "--shard --tuning adalora: they do not combine, it compares"),
        ("classifier", "--only sst", "--shard: a frozen GPT-2 is read once"),
    ],
)
def test_what_cannot_be_split_is_one_line(request, tmp_path, script, flags, message):
    given = request.getfixturevalue("sonnet_flags" if script == "sonnet_generation" else "review_flags")
    command = [*given, "--shard", *flags.split()]
    assert in_processes(2, told, tmp_path / "err", run_task, script, command) == [2, 2]
    err = (tmp_path / "err").read_text()
    assert err.count(f"error: {message}") == 1 and "Traceback" not in err
