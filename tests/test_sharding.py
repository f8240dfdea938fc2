"""Sharded training (--shard) on two CPU processes: the steps and the tensors of one process, and kept for either."""

import importlib
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import training.loop
from cli.script import run_script
from errors import UserError
from tests.inputs import run, without
from tests.small_run import in_processes
from tests.test_processes import told
from tests.test_scale import FULL, LORA, check_same_losses, figures
from tests.test_scale import run_script as run_task


@pytest.fixture
def sonnets(sonnet_flags):
    """12 rows, two steps an epoch of 8 and 4 rows, two epochs."""
    return [*without(sonnet_flags, "--score_seeds"), "--score_seeds", "1", "--max_new_tokens", "1"]


def of_one(flags, folder="one"):
    assert in_processes(1, run_task, "sonnet_generation", [*flags, "--batch_size", "8", "--run_dir", folder]) == [0]


def check_same_tensors(one, other):
    """What is kept, to 1e-5. (The gradient of a key's bias is zero but for rounding, of which AdamW makes whole steps.)"""
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
