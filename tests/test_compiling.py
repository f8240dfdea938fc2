"""Compiled layers (--compile): the losses and gradients of plain ones, in training alone; what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch

import classifier
import sonnet_generation
from config import DROPOUTS
from errors import UserError
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from tests.inputs import ROOT, run, without
from tests.small_run import KILLED, contents, in_a_process, killed_training
from tests.test_scale import figures
from tests.tuned import CHOICES, INPUT_IDS, MASK
from training.compiling import Warmup, compile_layers, compiled_steps
from training.randomness import seed_everything
from tuning.attach import attach


@pytest.fixture(autouse=True)
def as_before():
    """What is compiled, and the stance, are the process's."""
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def gradients(model, ids, mask):
    model.zero_grad()
    seed_everything(3)
    with compiled_steps():
        loss, _ = model(ids, mask, return_loss=True)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_same(model, compiled, batches):
    for ids, mask in batches:
        loss, wanted = gradients(model, ids, mask)
        same, found = gradients(compiled, ids, mask)
        torch.testing.assert_close(same, loss, atol=1e-5, rtol=1e-5)
        assert found.keys() == wanted.keys() and found
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-4)


def twins(folder, methods, dropout, **options):
    """The same model twice, the second one with compiled layers."""
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        gpt2 = GPT2Model.from_pretrained(str(folder), **dict.fromkeys(DROPOUTS, dropout))
        attach(gpt2, methods)
        models.append(SonnetGPT(gpt2).train())
    compile_layers(models[1].gpt, **options)
    return models


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", *{min(methods): name for name, methods in CHOICES.items()}.values()])
def test_every_tuning_method_can_be_traced(model_folder, name):
    """Without what makes machine code of it, which takes most of a minute each."""
    methods = CHOICES.get(name, {})
    plain, compiled = twins(model_folder, methods, 0.0, backend="aot_eager", fullgraph=True)
    check_same(plain, compiled, [(INPUT_IDS, MASK)])


@pytest.mark.slow
def test_compiled_steps_are_plain_ones(model_folder):
    """With dropout, whose draws are the same; of several sizes, a single row and padding on the left among them."""
    plain, compiled = twins(model_folder, CHOICES["lora"], 0.1)
    batches = [(INPUT_IDS, MASK), (INPUT_IDS[:1], MASK[:1]), (INPUT_IDS.flip(1), MASK.flip(1))]
    check_same(plain, compiled, [*batches, (INPUT_IDS.repeat(2, 1), MASK.repeat(2, 1))])


def test_nothing_else_is_compiled(model_folder):
    """Measuring and writing have too many shapes."""
    _, compiled = twins(model_folder, {}, 0.0, backend=refuse)
    with torch.no_grad():
        compiled.eval()(INPUT_IDS, MASK)
    with pytest.raises(Exception, match="asked to compile"), compiled_steps():
        compiled(INPUT_IDS, MASK)


def refuse(graph, inputs):
    raise RuntimeError("asked to compile")


@pytest.mark.slow
def test_a_script_trains_compiled_to_the_same_losses(sonnet_flags, tmp_path, capsys):
    flags = [*without(sonnet_flags, "--run_dir"), "--precision", "fp32"]
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        run(sonnet_generation, [*flags, "--run_dir", str(tmp_path / name), *more])
    assert "--compile: compiling took about" in capsys.readouterr().out
    plain, compiled = (figures(tmp_path / name, "loss") for name in ("plain", "compiled"))
    assert len(plain) > 2 and compiled == pytest.approx(plain, abs=1e-5)
    assert json.loads((tmp_path / "compiled/settings.json").read_text())["settings"]["training"]["compile"] is True


@pytest.mark.slow
def test_a_killed_compiled_run_goes_on_to_the_same_bytes(model_folder, tmp_path):
    options = {"compile": True}
    assert in_a_process(killed_training, (), model_folder, tmp_path / "whole", options) == 0
    assert in_a_process(killed_training, ("step", 6), model_folder, tmp_path / "parts", options) == KILLED
    again = options | {"resumed": True}
    assert in_a_process(killed_training, (), model_folder, tmp_path / "parts", again) == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_how_long_compiling_took(capsys):
    warmup = Warmup(True)
    for seconds in (30.5, 0.5, 0.5, 10.5, 0.5):
        warmup.count(seconds)
    warmup.tell()
    warmup.tell()
    assert capsys.readouterr().out == "--compile: compiling took about 40 s; a step without it takes 0.50 s\n"
    Warmup(False).tell()
    assert capsys.readouterr().out == ""


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_frozen_model(review_flags):
    with pytest.raises(UserError, match="--compile: a frozen GPT-2 is read once"):
        run(classifier, [*review_flags, "--compile"])


@pytest.mark.slow
def test_without_a_compiler_it_is_one_line(sonnet_flags, tmp_path):
    """A compiler that is not there, and none of the results of earlier ones."""
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, f"{ROOT}/sonnet_generation.py", *sonnet_flags, "--compile"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --compile: torch cannot compile here (") and "g++" in line


def test_a_start_is_quick(sonnet_flags, tmp_path):
    """torch's compiler and the hub's client take seconds to import, and are not where a local model is trained."""
    slow = {"torch._dynamo", "sympy", "httpx2", "transformers"}
    code = f"""
import runpy, sys
sys.argv = {[f"{ROOT}/sonnet_generation.py", *sonnet_flags, "--lora"]}
runpy.run_path(sys.argv[0], run_name="__main__")
print(sorted({slow} & sys.modules.keys()))
"""
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
