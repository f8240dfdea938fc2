"""Tuned tensors to peft's form and back, by what the register says of each method."""

import torch

from errors import UserError
from formats import peft
from formats.peft_config import check_fields, check_types
from tuning.register import METHODS


def to_peft(methods, tensors, config, base):
    """(adapter_config, tensors) in peft's form. Raises UserError for what peft cannot say.

    methods: {name: settings}. tensors: `trainable_state_dict` of the GPT-2 (for prompts: `prompt_tensors`, too).
    config: GPT2Config. base: name or folder of the base model, for whoever opens it.
    """
    for name in methods:
        if isinstance(METHODS[name].in_peft, str):
            raise UserError(f"{name} cannot be exported: {METHODS[name].in_peft}")
    if len(methods) != 1:
        raise UserError(f"{' and '.join(methods) or 'a full fine-tuning'} cannot be exported: peft holds one method")
    name, settings = next(iter(methods.items()))
    common = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "inference_mode": True}
    record, converted = METHODS[name].in_peft.export(settings, tensors, config)
    return common | record, {key: tensor.detach().float().cpu().contiguous() for key, tensor in converted.items()}


def from_peft(record, tensors, config):
    """({name: settings}, tensors) in our form; the opposite of `to_peft`. Raises UserError for what we cannot say."""
    forms = {m.in_peft.kind: m.in_peft for m in METHODS.values() if isinstance(m.in_peft, peft.Form)}
    kind = record.get("peft_type")
    if not isinstance(kind, str) or kind not in forms:
        raise UserError(f"peft_type {kind} is not known here: {', '.join(forms)} are")
    check_fields(record)
    check_types(record)
    for name in forms[kind].required:
        if record.get(name) is None:
            raise UserError(
                f"adapter_config.json names no {name}: peft would take its default in silence; write it there"
            )
    return forms[kind].read(record, tensors, config)


def prompt_tensors(gpt2):
    """What gpt2's virtual tokens or prefix come to, networks applied: {"prompt.written": (P, D) or (P, 2 L D)}."""
    if gpt2.prompt is None:
        return {}
    with torch.no_grad():
        return {"prompt.written": gpt2.prompt.written().detach().clone()}
