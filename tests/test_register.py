"""What the register says of methods: rates, selections, counts."""

import pytest
import torch

from cli.flags import parse_flags
from config import (
    GPT2Config,
    SonnetSettings,
)
from errors import UserError
from models.gpt2 import GPT2Model
from tuning.register import METHODS, all_biases, chosen_methods, default_learning_rate


def test_methods_come_from_the_flags_and_exclude_each_other():
    flags = "--tuning prompt bitfit --lora --prompt_length 3 --lora_rank 2"
    settings, _ = parse_flags(SonnetSettings, flags.split())
    methods = chosen_methods(settings)
    assert list(methods) == ["lora", "prompt", "bitfit"]
    assert methods["lora"].lora_rank == 2 and methods["prompt"].prompt_length == 3 and methods["bitfit"] is None
    assert chosen_methods(SonnetSettings()) == {}
    for flags, reason in {
        "--lora --tuning ia3": "lora ia3|ia3 lora): they do not combine, each replaces the linears",
        "--tuning prefix llama_adapter": "prefix llama_adapter): they do not combine, both change what a layer attends",
        "--tuning prompt ptuning": "prompt ptuning): they do not combine, each claims the first positions",
        "--tuning qlora top_layers": "qlora top_layers): they do not combine, what is stored in 4 bits",
    }.items():
        with pytest.raises(UserError, match=f"--tuning ({reason}"):
            parse_flags(SonnetSettings, flags.split())


def test_bitfit_with_and_without_the_layer_norms():
    with torch.device("meta"):
        gpt2 = GPT2Model(GPT2Config())
    assert sum(p.numel() for p in all_biases(gpt2)) == 102_144
    norms = sum(p.numel() for name, p in gpt2.named_parameters() if "norm" in name and name.endswith("bias"))
    assert 102_144 - norms == 82_944


def test_learning_rates():
    assert default_learning_rate([]) == 1e-5
    assert default_learning_rate(["lora"]) == 2e-4
    assert default_learning_rate(["lora", "adapter"]) == min(2e-4, METHODS["adapter"].learning_rate)


@pytest.mark.slow
def test_the_documented_counts_are_what_the_command_prints():
    from pathlib import Path

    from benchmarks.count_parameters import ROWS, table

    assert {name for methods in ROWS.values() for name in methods} == set(METHODS)
    assert "\n".join(table()) in (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
