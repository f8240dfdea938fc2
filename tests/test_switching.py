"""Switching between tasks on one base: every method against the model that it alone makes, and back, bit for bit."""

import re

import pytest
import torch

from config import AdapterSettings, LoRASettings
from errors import UserError
from exchange import main, open_tuned, parse
from models.gpt2 import GPT2Model
from tests.inputs import ROOT
from tests.test_exchange import make_frozen_run, make_run
from tests.tuned import CHOICES, INPUT_IDS, MASK, hidden_states
from training.tasks import Tasks
from tuning.attach import attach
from tuning.register import METHODS
from tuning.state import trainable_state_dict
from tuning.switching import Switch


def disturbed(fresh, methods, seed):
    """A model with these methods, its trained tensors moved: (tensors, hidden states)."""
    gpt2 = fresh()
    torch.manual_seed(seed)
    attach(gpt2, methods)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return trainable_state_dict(gpt2), hidden_states(gpt2.eval())


def put_on(switch, name, methods, tensors):
    with switch.fitting(name, methods):
        own = trainable_state_dict(switch.gpt2)
        assert own.keys() == tensors.keys()
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


@pytest.mark.parametrize("choice", CHOICES)
def test_every_method_goes_on_and_off_bit_for_bit(fresh, choice):
    """Oracle: a model of its own for each task. Two tasks of the method, with other numbers, and one of another."""
    base, gpt2 = hidden_states(fresh()), fresh()
    tensors_before = {name: (p.data_ptr(), p.clone()) for name, p in gpt2.named_parameters()}
    switch, expected = Switch(gpt2), {None: base}
    other = {"adapter": AdapterSettings(adapter_size=3), "lora": LoRASettings(lora_rank=2)}
    for seed, (name, methods) in enumerate([("a", CHOICES[choice]), ("b", CHOICES[choice]), ("c", other)]):
        tensors, expected[name] = disturbed(fresh, methods, seed)
        put_on(switch, name, methods, tensors)
        assert torch.equal(hidden_states(gpt2), base)
    assert len({states.sum().item() for states in expected.values()}) == 4  # no two tasks are alike
    for name in ("a", "b", None, "b", "a", "a", "c", "b", "c", None):
        switch.to(name)
        assert torch.equal(hidden_states(gpt2), expected[name]), name
    now = dict(gpt2.named_parameters())
    assert now.keys() == tensors_before.keys()
    for name, (address, tensor) in tensors_before.items():
        assert now[name].data_ptr() == address and torch.equal(now[name], tensor)


def test_every_method_of_the_register_is_in_the_table_above():
    assert {name for choice in CHOICES.values() for name in choice} == set(METHODS)


def test_a_task_takes_the_room_of_its_own_tensors(fresh):
    switch = Switch(fresh())
    for name, methods in (("lora", {"lora": LoRASettings(lora_rank=3)}), ("top_layers", CHOICES["top_layers"])):
        tensors, _ = disturbed(fresh, methods, 1)
        put_on(switch, name, methods, tensors)
        assert switch.bytes(name) == 4 * sum(tensor.numel() for tensor in tensors.values())
        switch.to(name)  # what is on is counted alike
        assert switch.bytes(name) == 4 * sum(tensor.numel() for tensor in tensors.values())
    assert switch.bytes(None) == 0


def test_a_task_that_does_not_fit_leaves_the_base_as_it_was(fresh):
    switch = Switch(fresh())
    base = hidden_states(switch.gpt2)
    for methods in (CHOICES["bitfit"], CHOICES["lora and houlsby"], CHOICES["prefix"]):
        with pytest.raises(UserError, match="wrong"), switch.fitting("a", methods):
            for parameter in switch.gpt2.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(1)
            raise UserError("wrong")
        assert torch.equal(hidden_states(switch.gpt2), base)
    with pytest.raises(UserError, match="there is no task a: none can be switched to"):
        switch.to("a")


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/sonnet-lora", model_folder, "lora", lora={"lora_rank": 2}, model={"dropout": 0.3})
    pairs = {"task": "paraphrase_detection", "head": {"head": "linear"}, "pooling": {"pooling": "attention"}}
    make_run(tmp_path / "runs/paraphrase-lora", model_folder, "lora", "bitfit", **pairs)
    return {"sonnets": "runs/sonnet-lora", "pairs": "runs/paraphrase-lora"}


@torch.no_grad()
def test_runs_of_both_tasks_are_what_they_are_alone(runs, model_folder):
    tasks, expected = Tasks(runs), {}
    for name, folder in runs.items():
        expected[name] = open_tuned(folder)[1](INPUT_IDS, MASK)
    for name in ("pairs", "sonnets", "pairs"):
        model = tasks.switch(name)
        assert not model.training and torch.equal(model(INPUT_IDS, MASK), expected[name])
    assert torch.equal(
        hidden_states(tasks.switch(None)), hidden_states(GPT2Model.from_pretrained(str(model_folder)).eval())
    )
    assert tasks.tokenizer.encode("yes").ids == [8505]
    biases, factors, head = (11 * 3 + 1) * 32, 3 * 4 * (64 + 64 + 160), (32 + 1) + (2 * 32 + 2)  # rank 4, 3 layers
    assert tasks.bytes("pairs") == 4 * (biases + factors + head)


@torch.no_grad()
def test_parts_of_a_sentiment_run_and_a_head_on_a_frozen_gpt2(runs, tmp_path, model_folder):
    make_run(
        tmp_path / "runs/films/sst", model_folder, "lora", task="classifier", head={"fine_tune_mode": "full-model"}
    )
    make_frozen_run(tmp_path / "runs/head/cfimdb", model_folder)
    runs = runs | {"sst": "runs/films/sst", "cfimdb": "runs/head/cfimdb"}
    tasks = Tasks(runs)
    for name in ("cfimdb", "sonnets", "sst", "cfimdb"):
        assert torch.equal(tasks.switch(name)(INPUT_IDS, MASK), open_tuned(runs[name])[1](INPUT_IDS, MASK))
    assert tasks.bytes("cfimdb") == 4 * (2 * 32 + 2)


def test_the_documented_example_runs_and_is_short(runs):
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(from training\.tasks .*?)```", text, re.DOTALL)[1]
    assert len(example.strip().splitlines()) <= 8
    names = {"input_ids": INPUT_IDS, "attention_mask": MASK}
    with torch.no_grad():
        exec(example, names)
    assert names["answers"].shape == (2, 2) and names["logits"].shape == (2, 20, 8600)


def test_a_model_whose_task_is_not_on_is_not_answered_by_another(runs):
    tasks = Tasks(runs)
    model = tasks.switch("sonnets")
    tasks.switch("pairs")
    with pytest.raises(UserError, match=r"the model of sonnets was called while pairs is on: call switch\('sonnets'\)"):
        model(INPUT_IDS, MASK)
    with pytest.raises(UserError, match="there is no task poems: sonnets, pairs can be switched to"):
        tasks.switch("poems")


def test_switch_from_the_shell_shows_costs_and_exactness(runs, capsys):
    main(parse(["switch", *runs.values()]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[-1] == "the same after coming back" and "to load a model" in lines[0]
    for line, folder in zip(lines[1:3], runs.values(), strict=True):
        assert line.startswith(folder) and line.endswith("bit for bit") and line.count(" ms") == 2
    assert lines[3].endswith("at the end bit for bit as it was loaded") and len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("switch runs/sonnet-lora full", "^full fine-tuned the whole model: it shares nothing with the base"),
        ("switch runs/sonnet-lora nothing", "^nothing is no run folder"),
        ("switch runs/sonnet-lora other", "not the base model that other was trained on .its weights differ"),
        ("show runs/sonnet-lora full", "^show takes one folder, not several"),
    ],
)
def test_what_cannot_be_switched_is_one_line(runs, tmp_path, model_folder, hugging_face_gpt2, arguments, message):
    make_run(tmp_path / "full", model_folder)
    torch.manual_seed(3)
    other = type(hugging_face_gpt2)(hugging_face_gpt2.config)
    other.save_pretrained(tmp_path / "base")
    make_run(tmp_path / "other", tmp_path / "base", "ia3")
    with pytest.raises(UserError, match=message):
        main(parse(arguments.split()))
