"""(IA)^3 against peft and the equation."""

import peft
import torch
from torch import nn

from config import (
    IA3Settings,
)
from modules.ia3 import IA3Linear
from tests.peft_hosts import PeftHost, compare_with_injected, randomise
from tuning.attach import attach


def test_ia3_equals_peft(gpt2, fresh):
    attach(gpt2, {"ia3": IA3Settings()})
    randomise(gpt2)
    config = peft.IA3Config(target_modules=["key", "value", "out_dense"], feedforward_modules=["out_dense"])
    theirs = peft.inject_adapter_in_model(config, PeftHost(fresh()))
    compare_with_injected(gpt2, theirs, lambda n: n.removeprefix("gpt2.").replace("ia3_l.default", "ia3_scale"))


def test_ia3_against_the_equation():
    base, x = nn.Linear(6, 4), torch.randn(3, 6)
    outputs, inputs = IA3Linear(base, scales_input=False), IA3Linear(base, scales_input=True)
    with torch.no_grad():
        outputs.ia3_scale.normal_()
        inputs.ia3_scale.normal_()
    torch.testing.assert_close(outputs(x), base(x) * outputs.ia3_scale)
    torch.testing.assert_close(inputs(x), base(x * inputs.ia3_scale))
