"""One task swapped for another on the same base."""

import torch

from config import (
    LoRASettings,
)
from tests.tuned import hidden_states, train_a_little
from tuning.attach import attach, detach
from tuning.state import load_tuning, trainable_state_dict


def test_one_task_is_swapped_for_another_without_loading_the_base_again(gpt2):
    base = hidden_states(gpt2)
    tasks = {}
    for name, rank in (("first", 3), ("second", 5)):
        choice = {"lora": LoRASettings(lora_rank=rank, lora_dropout=0.0)}
        attach(gpt2, choice)
        torch.manual_seed(rank)
        train_a_little(gpt2)
        tensors = {key: tensor.clone() for key, tensor in trainable_state_dict(gpt2).items()}
        tasks[name] = (choice, tensors, hidden_states(gpt2))
        detach(gpt2)
        assert torch.equal(hidden_states(gpt2), base)
    for name in ("first", "second", "first"):
        choice, tensors, expected = tasks[name]
        attach(gpt2, choice)
        load_tuning(gpt2, tensors)
        assert torch.equal(hidden_states(gpt2), expected)
        detach(gpt2)
