"""Prompt tuning and P-tuning against peft."""

import peft
import pytest

from config import (
    PromptSettings,
    PTuningSettings,
)
from tests.peft_hosts import compare_with_peft_on_hugging_face, randomise
from tuning.attach import attach


def test_prompt_tuning_equals_peft(gpt2, hugging_face_gpt2):
    attach(gpt2, {"prompt": PromptSettings(prompt_length=7)})
    randomise(gpt2)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
    compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, {"embedding.weight": "embedding"})


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_p_tuning_equals_peft(gpt2, hugging_face_gpt2, encoder):
    settings = PTuningSettings(ptuning_length=7, ptuning_hidden=6, ptuning_encoder=encoder)
    attach(gpt2, {"ptuning": settings})
    randomise(gpt2)
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=7,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
        encoder_dropout=0.0,
    )
    names = {name: name for name, _ in gpt2.prompt.named_parameters()}
    names = {name.replace("lstm.", "lstm_head.").replace("mlp.", "mlp_head."): ours for name, ours in names.items()}
    names["embedding.weight"] = names.pop("embedding")
    compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, names)


def test_a_soft_prompt_starts_from_real_words(gpt2):
    attach(gpt2, {"prompt": PromptSettings(prompt_length=7)})
    vocabulary = gpt2.word_embedding.weight
    assert all((vocabulary == vector).all(dim=1).any() for vector in gpt2.prompt.embedding)
