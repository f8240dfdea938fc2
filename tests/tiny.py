"""A tiny GPT-2 made by transformers, the oracle of most tests; and accelerate's state, forgotten."""

import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState


def make_hugging_face_gpt2(**changes):
    """A tiny GPT2LMHeadModel with weights large enough that an error in any of them shows."""
    shape = {"vocab_size": 8600, "n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4, "eos_token_id": 8599}
    config = transformers.GPT2Config(**shape | {"initializer_range": 0.2, "bos_token_id": 8599} | changes)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1: an error would not show
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def forget_accelerate_state():
    """accelerate keeps process-wide state, and refuses a second precision."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()
