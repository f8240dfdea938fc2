"""Prefix tuning against peft."""

import peft
import pytest
import torch

from config import (
    PrefixSettings,
)
from modules.prefix import drop_mlp
from tests.peft_hosts import compare_with_peft_on_hugging_face, randomise
from tests.tuned import INPUT_IDS
from tuning.attach import attach


@pytest.mark.parametrize("hidden", [0, 6])
def test_prefix_tuning_equals_peft(gpt2, hugging_face_gpt2, hidden):
    attach(gpt2, {"prefix": PrefixSettings(prefix_length=7, prefix_hidden=hidden)})
    randomise(gpt2)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=bool(hidden), encoder_hidden_size=hidden or None
    )
    names = (
        {f"transform.{i}.{kind}": f"mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")} if hidden else {}
    )
    names["embedding.weight"] = "embedding"
    compare_with_peft_on_hugging_face(gpt2, hugging_face_gpt2, config, names)


def test_the_prefix_mlp_can_be_thrown_away(gpt2):
    attach(gpt2, {"prefix": PrefixSettings(prefix_length=7, prefix_hidden=6)})
    randomise(gpt2)
    with torch.no_grad():
        before = gpt2(INPUT_IDS)["last_hidden_state"]
        drop_mlp(gpt2)
        assert torch.equal(gpt2(INPUT_IDS)["last_hidden_state"], before)
    assert [tuple(p.shape) for p in gpt2.prompt.parameters()] == [(7, 2 * 3 * 32)]
