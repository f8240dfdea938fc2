"""Several processes: their memory, their users' errors."""

import json
import os
import subprocess
import sys

import pytest
from accelerate import Accelerator

from cli.script import run_script
from config import TrainingSettings
from errors import UserError
from models.sonnet_gpt import language_model_loss
from tests.inputs import ROOT
from tests.small_run import in_processes, train
from training.assembly import make_accelerator
from training.processes import in_first_process


def without_dropout(model, batch):
    model.eval()
    return language_model_loss(model, batch)


def little_memory_in_the_second(model, batch):
    """At most one row fits into the memory of the second process; in the backward pass, as it often is."""
    loss, count = without_dropout(model, batch)
    if len(batch["token_ids"]) > 1 and os.environ["RANK"] == "1":
        loss.register_hook(run_out)
    return loss, count


def run_out(gradient):
    raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")


def no_memory_in_the_second(model, batch):
    if os.environ["RANK"] == "1":
        run_out(None)
    return without_dropout(model, batch)


def told(file, main, *arguments):
    """A script whose stderr is a file, which several processes share."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.stderr.fileno())
    run_script(main, *arguments)


@pytest.mark.slow
def test_where_the_memory_of_one_process_runs_out_all_take_smaller_parts(model_folder, tmp_path):
    losses = {}
    for name, loss_fn in (("whole", without_dropout), ("parts", little_memory_in_the_second)):
        assert in_processes(2, train, model_folder, tmp_path / name, False, loss_fn) == [0, 0]
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in lines if "step" in line]
    assert len(losses["whole"]) == 6 and losses["parts"] == pytest.approx(losses["whole"], abs=1e-5)
    assert json.loads((tmp_path / "parts/last/state.json").read_text())["rows_at_once"] == 1


@pytest.mark.slow
def test_a_row_that_does_not_fit_ends_all_processes_in_one_line(model_folder, tmp_path):
    training = (train, model_folder, tmp_path / "run", False, no_memory_in_the_second)
    assert in_processes(2, told, tmp_path / "err", *training) == [2, 2]
    err = (tmp_path / "err").read_text()
    assert err.count("a single row does not fit into memory") == 1 and "Traceback" not in err


def refuse():
    raise UserError("the first process alone sees that this is wrong")


def find_it_in_the_first():
    Accelerator(cpu=True)
    in_first_process(refuse)


@pytest.mark.slow
def test_an_error_that_one_process_finds_ends_all(tmp_path):
    assert in_processes(2, told, tmp_path / "err", find_it_in_the_first) == [2, 2]
    err = (tmp_path / "err").read_text()
    assert err.count("error: the first process alone") == 1 and "Traceback" not in err


def refuse_at_once():
    make_accelerator(TrainingSettings(precision="fp32"))
    refuse()


@pytest.mark.slow
def test_an_error_of_all_just_after_they_have_met(tmp_path):
    """Under load two of five starts ended in "Connection reset by peer": the first had left while others connected."""
    for _ in range(3):
        assert in_processes(3, told, tmp_path / "err", refuse_at_once) == [2, 2, 2]
    err = (tmp_path / "err").read_text()
    assert err.count("error: the first process alone") == 3 and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [("--para_train", "nothing.csv"), ("--run_dir", "taken")], ids=["file", "folder"])
def test_a_users_error_under_torchrun_is_one_line(pair_flags, tmp_path, wrong):
    """The launcher adds its own report, with its own traceback and the exit codes; of ours there is none."""
    (tmp_path / "taken").write_text("a file, not a folder")
    script = [f"{ROOT}/paraphrase_detection.py", *pair_flags, *wrong]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and done.stderr.count("error: ") == 1, done.stderr
    root_cause = done.stderr.split("Root Cause")[1]
    # (the other one may have been stopped by then)
    assert "exitcode  : 2 " in root_cause and "SIGABRT" not in done.stderr
    assert str(ROOT / "training") not in done.stderr


SHORT = """
import sys

sys.path.insert(0, sys.argv[1])
from accelerate import Accelerator

from cli.script import run_script
from training.processes import in_first_process


def main():
    Accelerator(cpu=True)
    assert in_first_process(max, 2, 3) == 3


run_script(main)
"""


@pytest.mark.slow
def test_a_script_that_is_done_ends_all_its_processes_well(tmp_path):
    """Six at once: with the processes' group left to the interpreter's end, three in four of these ended in SIGABRT."""
    (tmp_path / "short.py").write_text(SHORT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "short.py"]
    runs = [subprocess.Popen([*command, str(ROOT)], cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    told = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 6, "".join(told)
