"""From flags to what a script works with: all definite before it is recorded, whatever the machine and environment."""

import json

import pytest
import torch

import sonnet_generation
import training.assembly
from cli.flags import parse_flags
from config import SonnetSettings, TrainingSettings
from errors import UserError
from tests.helpers import mostly_slow
from tests.inputs import run, without
from tests.tiny import forget_accelerate_state
from training.assembly import assemble, has_native_bf16, make_accelerator, open_session


def test_rate_and_precision_are_definite_in_the_record_and_may_be_typed_again(sonnet_flags, tmp_path):
    flags = [*without(sonnet_flags, "--lr"), "--lora", "--run_dir", "run"]
    run(sonnet_generation, flags)
    saved = json.loads((tmp_path / "run/settings.json").read_text())["settings"]["training"]
    assert saved["lr"] == 2e-4 and saved["precision"] in ("fp32", "bf16")
    run(sonnet_generation, ["--resume", "--run_dir", "run", "--lr", "2e-4", "--precision", saved["precision"]])
    with pytest.raises(UserError, match=r"run was trained with lr = 0\.0002, not 0\.001: leave --lr out"):
        run(sonnet_generation, ["--resume", "--run_dir", "run", "--lr", "1e-3"])


@pytest.mark.slow
def test_a_resumed_run_keeps_its_precision(sonnet_flags, tmp_path, capsys):
    """Also where auto would take another one here."""
    run(sonnet_generation, [*sonnet_flags, "--lora", "--precision", "bf16", "--run_dir", "run"])
    capsys.readouterr()
    run(sonnet_generation, ["--resume", "--run_dir", "run"])
    assert "precision bf16 (asked for)" in capsys.readouterr().out


def test_a_folder_that_is_called_like_a_size_is_that_folder(tmp_path, monkeypatch, model_folder):
    (tmp_path / "gpt2").symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    settings, _ = parse_flags(SonnetSettings, ["--model_path", "gpt2"])
    assert assemble(settings).gpt2.config.hidden_size == 32


@pytest.mark.parametrize("name", sorted(training.assembly.FOREIGN_SETTINGS))
def test_a_runs_own_settings_hold_over_the_environment(monkeypatch, name):
    forget_accelerate_state()
    monkeypatch.setenv(name, "8" if "STEPS" in name else "bf16" if "PRECISION" in name else "inductor")
    accelerator = make_accelerator(TrainingSettings(precision="fp32"))
    assert accelerator.gradient_accumulation_steps == 1 and accelerator.mixed_precision == "no"
    assert str(accelerator.state.dynamo_plugin.backend).endswith("NO")


@pytest.mark.parametrize("flags, native", [("fpu avx2 avx512_bf16", True), ("fpu avx2", False), (None, False)])
def test_a_torch_that_cannot_be_asked_is_helped_by_linux(monkeypatch, tmp_path, flags, native):
    """torch 2.8 and 2.9 have no torch.cpu.get_capabilities."""
    monkeypatch.undo()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    path = tmp_path / "cpuinfo"
    if flags:
        path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(training.assembly, "Path", lambda _: path)
    assert has_native_bf16("cpu") is native and has_native_bf16("mps") is False


def test_an_old_torch_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")
    settings, given = parse_flags(SonnetSettings, [])
    with pytest.raises(UserError, match=r"torch 2\.7\.1\+cpu is too old: this project needs 2\.8 or newer"):
        open_session("sonnet_generation", settings, given, "sonnet")


def test_a_gpu_that_is_gone_is_no_reason_to_refuse_a_run_that_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="--use_gpu: torch sees no CUDA and no MPS device"):
        make_accelerator(TrainingSettings(use_gpu=True))
    forget_accelerate_state()
    assert make_accelerator(TrainingSettings(use_gpu=True), insist=False).device.type == "cpu"


@pytest.mark.parametrize("seed", mostly_slow([10**40, 2**31 - 2, 2**31 + 5, 1764055123456]))
def test_a_seed_of_any_size(sonnet_flags, tmp_path, seed):
    run(sonnet_generation, [*sonnet_flags, "--lora", "--seed", str(seed), "--run_dir", "run"])
    assert (tmp_path / "out/sonnets.txt").exists()
