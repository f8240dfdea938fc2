"""Runs that are stopped anywhere, damaged, or resumed with something changed: exact, or refused by name."""

import json
import os
import shutil

import pytest
import torch

from config import SonnetSettings, TrainingSettings
from errors import Diverged, UserError
from models.sonnet_gpt import language_model_loss
from tests import small_run
from tests.helpers import mostly_slow
from tests.small_run import BASE, SETTINGS, SHORT, contents
from training.inputs import fingerprint
from training.loop import TrainingLoop, learning_rate_factor
from training.runs import Run


class Stop(BaseException):
    """What a SIGKILL is from the inside: nothing runs any more."""


@pytest.fixture
def train(model_folder, tmp_path):
    """train(name, ...): the small training, kept in tmp_path / name."""
    return lambda name, resumed=False, **options: small_run.train(model_folder, tmp_path / name, resumed, **options)


def stopping(at):
    def after_step(step, total):
        if step == at:
            raise Stop

    return after_step


@pytest.mark.parametrize("minutes", mostly_slow([0, 1e-9]), ids=["epochs only", "every step"])
def test_a_run_killed_at_every_step_ends_where_the_unbroken_one_does(train, tmp_path, minutes):
    """Killed at step 1, gone on with, killed at step 2, ...: data order, dropout, optimizer, metrics, byte for byte."""
    whole = contents(train("whole", save_minutes=minutes))
    for step in range(1, 13):
        shutil.rmtree(tmp_path / "parts", ignore_errors=True)
        with pytest.raises(Stop):
            train("parts", after_step=stopping(step), save_minutes=minutes)
        assert contents(train("parts", resumed=True, save_minutes=minutes)) == whole, step
    shutil.rmtree(tmp_path / "parts")
    for step in range(1, 13):
        with pytest.raises(Stop):
            train("parts", after_step=stopping(step), resumed=step > 1, save_minutes=1e-9)
    assert contents(train("parts", resumed=True)) == whole


def test_files_are_on_the_disk_before_the_folder_has_its_name(train, monkeypatch):
    """The order of syncs and renames: every file, the manifest, the folder, then the renames, then their folder."""
    log, real = [], {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(handle):
        log.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        real["fsync"](handle)

    def rename(source, target):
        log.append(("rename", os.path.basename(source), os.path.basename(target)))
        real["rename"](source, target)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no /proc to ask what a file is called")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "rename", rename)
        train("run", **SHORT)
    second = [entry for entry in log if "manifest" not in str(entry)]
    start = max(place for place, entry in enumerate(second) if entry == ("sync", "model.safetensors"))
    tail = second[start:]
    names = [entry[1] for entry in tail if entry[0] == "sync"]
    assert names[:3] == ["model.safetensors", "optimizer.safetensors", "random.safetensors"]
    renames = [place for place, entry in enumerate(tail) if entry[0] == "rename"]
    assert [tail[place][1:] for place in renames] == [("last", "last.old"), ("last.new", "last")]
    assert tail[renames[0] - 1] == ("sync", "last.new") and tail[renames[-1] + 1] == ("sync", "run")
    assert all("metrics.jsonl" not in str(entry) for entry in tail[renames[0] :])  # it was synced before


# --- damage -----------------------------------------------------------------------------------------------------------


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"one bit": flip_a_bit, "cut short": truncate, "deleted": lambda path: path.unlink()}
FILES = ("last/model.safetensors", "last/optimizer.safetensors", "last/random.safetensors", "last/state.json")
FILES += ("last/metrics.json", "last/manifest.json", "best/model.safetensors", "best/score.json", "best/manifest.json")


@pytest.mark.parametrize("damage", mostly_slow(DAMAGES))
def test_damage_of_any_file_of_a_state_is_said_and_the_state_before_is_taken(train, tmp_path, capsys, damage):
    whole = contents(train("whole"))
    with pytest.raises(Stop):
        train("stopped", after_step=stopping(10))
    for file in FILES:
        shutil.rmtree(tmp_path / "parts", ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", tmp_path / "parts")
        DAMAGES[damage](tmp_path / "parts" / file)
        capsys.readouterr()
        assert contents(train("parts", resumed=True)) == whole, file
        if file.startswith("last"):
            assert "last" in (out := capsys.readouterr().out) and "the complete state before it is taken" in out, file


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_the_state_before_is_damaged_too_the_run_is_refused(train, tmp_path, damage):
    train("run")
    for folder in ("best", "best.old"):
        DAMAGES[damage](tmp_path / "run" / folder / "model.safetensors")
    with pytest.raises(UserError, match=r"best/model.safetensors .*there is no whole state before it"):
        Run(tmp_path / "run", resumed=True).load_best(None)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_settings_and_metrics_are_said(train, tmp_path, capsys, damage):
    with pytest.raises(Stop):
        train("run", after_step=stopping(10))
    DAMAGES[damage](tmp_path / "run" / "metrics.jsonl")
    train("run", resumed=True)
    assert "metrics.jsonl is damaged or cut short" in capsys.readouterr().out
    DAMAGES[damage](tmp_path / "run" / "settings.json")
    with pytest.raises(UserError, match=r"settings\.json|is no run folder"):
        train("run", resumed=True)


def test_a_lost_state_begins_at_the_first_step(train, tmp_path, capsys):
    whole = contents(train("whole"))
    with pytest.raises(Stop):
        train("parts", after_step=stopping(10))
    for name in ("last", "last.old"):
        shutil.rmtree(tmp_path / "parts" / name)
    assert contents(train("parts", resumed=True)) == whole
    assert "has kept no state of its training (last/): it begins at the first step" in capsys.readouterr().out


# --- what differs -----------------------------------------------------------------------------------------------------


def test_other_data_are_refused_by_name(train):
    with pytest.raises(Stop):
        train("run", after_step=stopping(5))
    with pytest.raises(UserError, match=r"rows\.txt is not what .*run was trained with \(rows: 13 rows.*there 14 rows"):
        train("run", resumed=True, rows=13)


def test_more_epochs_are_said_and_the_rate_stays_within_its_peak(train, tmp_path, capsys):
    train("run", epochs=2)
    train("run", resumed=True, epochs=4)
    assert "the learning rate now follows 16 steps in all, not 8" in capsys.readouterr().out
    rates = [json.loads(line).get("lr", 0) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rates) == 20 and all(0 <= rate <= 3e-3 for rate in rates)
    late = TrainingSettings(**SETTINGS)
    assert all(0 <= learning_rate_factor(step, 10, late) <= 1 for step in range(40))


def test_a_base_model_is_all_its_bytes_its_config_and_its_tokenizer(gpt2, model_folder):
    from datasets import load_tokenizer
    from training.inputs import check_base

    tokenizer = load_tokenizer(model_folder)
    record = {"base": fingerprint(gpt2, tokenizer)}
    check_base(record, fingerprint(gpt2, tokenizer), "the run")
    gpt2.gpt_layers[1].out_dense.weight.data[5, 7] += 1e-6  # one number of one row
    with pytest.raises(UserError, match="its weights differ"):
        check_base(record, fingerprint(gpt2, tokenizer), "the run")
    tokenizer.add_tokens(["thou"])
    gpt2.config.num_attention_heads = 8
    with pytest.raises(UserError, match="its num_attention_heads is 8, not 4"):
        check_base(record, fingerprint(gpt2, tokenizer), "the run")
    changed = fingerprint(gpt2, tokenizer) | {name: record["base"][name] for name in ("weights", "config")}
    with pytest.raises(UserError, match="its tokenizer differs"):
        check_base(record, changed, "the run")


def test_a_second_writer_is_refused_and_a_dead_ones_lock_is_taken_over(train, tmp_path):
    train("run", epochs=1)
    first = Run(tmp_path / "run", resumed=True)
    first.begin("test", SonnetSettings(training=TrainingSettings(**SETTINGS)), BASE, first.record()["inputs"], 4)
    with pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on .*: wait for it, or stop it"):
        train("run", resumed=True)
    first.lock.release()  # as the operating system does when a process dies; its files stay
    assert (tmp_path / "run" / ".lock.json").exists()
    train("run", resumed=True)
    assert not (tmp_path / "run" / ".lock.json").exists()


def test_a_default_folder_is_claimed_by_making_it(tmp_path):
    runs = [Run(tmp_path / "sonnet-lora", claims=True) for _ in range(3)]
    for run in runs:
        run.begin("test", SonnetSettings(), BASE)
    assert [run.folder.name for run in runs] == ["sonnet-lora", "sonnet-lora-2", "sonnet-lora-3"]
    for run in runs:
        run.close()


def test_a_full_disk_at_the_start_leaves_no_half_made_run(train, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        train("run")
    assert list(tmp_path.iterdir()) == []


# --- numbers that are not finite --------------------------------------------------------------------------------------


def nan_at(*numbers, forward=True):
    """The loss, but for some calls, which give NaN (or a finite loss with NaN gradients)."""
    calls = []

    def loss_fn(model, batch):
        calls.append(batch["sent_ids"])
        loss, count = language_model_loss(model, batch)
        if len(calls) in numbers:
            bad = loss * float("nan")
            loss = bad if forward else loss.detach() + (bad - bad.detach()).nan_to_num(0) + 0 * bad.nan_to_num(0)
        return loss, count

    return loss_fn, calls


def test_a_bad_step_is_left_out_and_told_with_its_rows(train, tmp_path, capsys):
    loss_fn, calls = nan_at(3)
    folder = train("run", loss_fn=loss_fn)
    out = capsys.readouterr().out
    assert "step 3 is left out: the loss is nan (rows " in out
    assert all(row in out.split("(rows ")[1] for row in calls[2])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "skipped" in line] == [3] and len(lines) == 15
    state = json.loads((folder / "last/state.json").read_text())
    assert (state["step"], state["updates"], state["bad_steps"]) == (12, 11, 0)


def test_three_bad_steps_in_a_row_end_the_run_and_a_lower_rate_goes_on(train, tmp_path):
    loss_fn, _ = nan_at(6, 7, 8)
    with pytest.raises(
        Diverged, match=r"the loss is nan at step 8, the third in a row: --resume .*lower --lr"
    ) as error:
        train("run", loss_fn=loss_fn)
    assert error.value.exit_code == 1 and (tmp_path / "run/diverged.json").exists()
    train("run", resumed=True)
    tensors = (tmp_path / "run/last/model.safetensors").read_bytes()
    assert b"NaN" not in tensors and json.loads((tmp_path / "run/last/state.json").read_text())["epoch"] == 3


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_dev_figures_that_are_not_finite_are_never_the_best(train, tmp_path, score):
    with pytest.raises(Diverged, match=r"score is .* after epoch 1"):
        train("run", score=score)
    assert not (tmp_path / "run/best").exists()


def test_weights_that_are_not_finite_are_never_kept(train, tmp_path):
    def spoil(step, total):
        if step == 6:
            for p in spoil.model.parameters():
                if p.requires_grad:
                    p.data.fill_(float("nan"))

    real = TrainingLoop.__init__

    def init(self, model, *arguments):
        real(self, model, *arguments)
        spoil.model = model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "__init__", init)
        with pytest.raises(Diverged, match="is not finite any more"):
            train("run", after_step=spoil)
    assert json.loads((tmp_path / "run/last/state.json").read_text())["step"] == 5


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_halves_the_rows_and_gives_the_same_steps(train, tmp_path, capsys, monkeypatch):
    """At most two rows fit: the losses and the weights are those of whole batches, to rounding (no dropout)."""
    monkeypatch.setattr("modules.dropout.Dropout.forward", lambda self, x: x)

    def small(model, batch):
        if len(batch["token_ids"]) > 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return language_model_loss(model, batch)

    whole, parts = train("whole"), train("parts", loss_fn=small)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"step"' in line]
        for folder in (whole, parts)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[0]) == 12
    assert capsys.readouterr().out.count("out of memory: from now on a batch goes in parts of 2 rows") == 1
    assert json.loads((parts / "last/state.json").read_text())["rows_at_once"] == 2


def test_a_row_that_does_not_fit_is_one_line(train):
    def never(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="a single row does not fit into memory"):
        train("run", loss_fn=never)


def test_an_error_that_is_none_of_memory_is_a_bug_and_shows(train):
    def broken(model, batch):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train("run", loss_fn=broken)
