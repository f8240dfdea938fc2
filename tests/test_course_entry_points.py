"""What the course's own scripts import and call, called as they call it; and its two checks."""

import argparse
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import evaluation
import optimizer_test
import sanity_check
import utils
from config import MODEL_SIZES, GPT2Config
from datasets import (
    ParaphraseDetectionDataset,
    ParaphraseDetectionTestDataset,
    SonnetsDataset,
    load_paraphrase_data,
    load_tokenizer,
)
from errors import UserError
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from optimizer import AdamW
from tests.inputs import ROOT, write_pairs, write_sonnets


@pytest.fixture
def released(monkeypatch, model_folder):
    """ "gpt2" is the tests' tiny model, as if the hub had it; returns the names that were asked for."""
    asked = []

    def find_model(name):
        asked.append(name)
        return model_folder

    for place in ("datasets.tokenizer", "formats.hugging_face", "sanity_check"):
        monkeypatch.setattr(f"{place}.find_model", find_model)
    monkeypatch.setitem(MODEL_SIZES, "gpt2", ("somewhere/gpt2", 32, 3, 4))
    return asked


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_sonnets_from_a_path_alone(released, tmp_path, model_folder):
    write_sonnets(tmp_path / "sonnets.txt", range(1, 6))
    dataset = SonnetsDataset(tmp_path / "sonnets.txt")
    expected = SonnetsDataset(tmp_path / "sonnets.txt", load_tokenizer(model_folder))
    assert released == ["gpt2"] and dataset.rows == expected.rows and len(dataset) == 5
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=dataset.collate_fn)))
    assert batch["token_ids"].shape == batch["attention_mask"].shape and batch["sent_ids"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ({"model_size": "gpt2-large"}, "gpt2-large"),
        ({"model_path": "folder", "model_size": "gpt2"}, "folder"),
        ({}, "gpt2"),
    ],
)
def test_pairs_with_the_parsed_flags(released, tmp_path, model_folder, flags, asked):
    """And the course's loop over them: training batches, then both of its evaluations."""
    args = argparse.Namespace(lr=1e-3, use_gpu=False, **flags)
    write_pairs(tmp_path / "dev.csv", 10)
    write_pairs(tmp_path / "test.csv", 7, labelled=False)
    rows, test_rows = (
        load_paraphrase_data(tmp_path / "dev.csv"),
        load_paraphrase_data(tmp_path / "test.csv", split="test"),
    )
    dev, test = ParaphraseDetectionDataset(rows, args), ParaphraseDetectionTestDataset(test_rows, args)
    assert set(released) == {asked}
    ours = ParaphraseDetectionDataset(rows, load_tokenizer(model_folder))
    assert all(torch.equal(a, b) for a, b in zip(dev.token_ids, ours.token_ids, strict=True))

    model = ParaphraseGPT(GPT2Model.from_pretrained(model="gpt2", **utils.model_size_to_params("gpt2"))).eval()
    loader = DataLoader(dev, shuffle=False, batch_size=4, collate_fn=dev.collate_fn)
    accuracy, f1, predictions, truths, ids = evaluation.model_eval_paraphrase(loader, model, torch.device("cpu"))
    assert ids == [f"id{row}" for row in range(10)] and 0 <= accuracy <= 1 and 0 <= f1 <= 1
    again, same_ids = evaluation.model_test_paraphrase(loader, model, torch.device("cpu"))
    assert (again, same_ids) == (predictions, ids) and set(again) | set(truths) <= {3919, 8505}
    loader = DataLoader(test, shuffle=True, batch_size=4, collate_fn=test.collate_fn)
    predictions, ids = evaluation.model_test_paraphrase(loader, model, torch.device("cpu"))
    assert sorted(ids) == [f"id{row}" for row in range(7)] and len(predictions) == 7


@pytest.mark.parametrize("given", [transformers.GPT2Config(), "gpt2", 1024])
def test_what_is_no_tokenizer_is_one_line(given):
    message = rf"^a {type(given).__name__} is no tokenizer here: give datasets\.load_tokenizer\(MODEL_FOLDER\)$"
    with pytest.raises(UserError, match=message):
        SonnetsDataset(["a\nb"], given)
    with pytest.raises(UserError, match=message):
        ParaphraseDetectionDataset([("a", "b", 1, "c")], given)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_the_courses_score_of_two_files(tmp_path):
    write_sonnets(tmp_path / "gold.txt", range(1, 5))
    write_sonnets(tmp_path / "generated.txt", range(2, 6))
    gold, generated = (evaluation.load_sonnets(tmp_path / f"{name}.txt") for name in ("gold", "generated"))
    score = evaluation.test_sonnet(tmp_path / "generated.txt", tmp_path / "gold.txt")
    assert score == evaluation.score_sonnets(generated, gold)["chrF whole"] and 0 < score < 100
    assert evaluation.test_sonnet(tmp_path / "gold.txt", gold_path=tmp_path / "gold.txt") == pytest.approx(100)
    write_sonnets(tmp_path / "fewer.txt", range(1, 4))
    with pytest.raises(UserError, match=r"fewer\.txt holds 3 sonnets, .*gold\.txt 4: give files that belong together"):
        evaluation.test_sonnet(tmp_path / "fewer.txt", tmp_path / "gold.txt")


# --- the two checks ---------------------------------------------------------------------------------------------------


def test_the_check_of_the_optimizer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there is no file
    optimizer_test.main(optimizer_test.parse([]))
    assert "passed: after 1000 steps AdamW differs from torch.optim.AdamW by" in capsys.readouterr().out
    weight = optimizer_test.regression(lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=1e-4))
    np.save("optimizer_test.npy", weight.numpy())
    optimizer_test.main(optimizer_test.parse([]))
    assert "differs from optimizer_test.npy by 0.0e+00" in capsys.readouterr().out
    np.save("optimizer_test.npy", weight.numpy() + 1e-3)
    with pytest.raises(UserError, match=r"differs from optimizer_test\.npy by 1\.0e-03: optimizer\.py is wrong"):
        optimizer_test.main(optimizer_test.parse([]))


def test_the_courses_own_array(real_data, capsys):
    optimizer_test.main(optimizer_test.parse([str(real_data / "optimizer_test.npy")]))
    assert "Optimizer test passed" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_an_array_that_is_none_is_one_line(tmp_path, content):
    file = tmp_path / "array.npy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"array\.npy cannot be read"):
        optimizer_test.main(optimizer_test.parse([str(file)]))
    np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"array\.npy holds \[3\] numbers, not 2 x 3"):
        optimizer_test.main(optimizer_test.parse([str(file)]))


def test_the_check_of_the_model(released, model_folder, monkeypatch, capsys):
    for arguments in (["--model_path", str(model_folder)], []):
        sanity_check.main(sanity_check.parse(arguments))
        assert "Your GPT2 implementation is correct!" in capsys.readouterr().out
    exact = torch.nn.functional.gelu
    monkeypatch.setattr("torch.nn.functional.gelu", lambda x, approximate: exact(x))  # one of the usual mistakes
    with pytest.raises(UserError, match=r"the hidden states of .* differ by"):
        sanity_check.main(sanity_check.parse([]))


@pytest.mark.slow
def test_both_checks_run_from_the_root_without_a_hub(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    for script, words in (
        ("optimizer_test.py", "Optimizer test passed"),
        ("sanity_check.py", "implementation is correct"),
    ):
        done = subprocess.run([sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and words in done.stdout, done.stderr
    assert "a random model stands in" in done.stdout


def test_the_names_that_the_courses_sanity_check_imports(released, model_folder):
    """Its own file may be put in the place of ours: these are its calls."""
    for size in MODEL_SIZES.keys() - {"gpt2"}:
        config = GPT2Config.of_size(size)
        expected = {"d": config.hidden_size, "l": config.num_hidden_layers, "num_heads": config.num_attention_heads}
        assert utils.model_size_to_params(size) == expected
    ids, mask = torch.tensor([[101, 75, 20, 102, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    theirs = transformers.GPT2Model.from_pretrained(model_folder)
    ours = GPT2Model.from_pretrained(model="gpt2", **utils.model_size_to_params("gpt2")).eval()
    wanted = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    found = ours(ids, mask)["last_hidden_state"]
    torch.testing.assert_close(found * mask[..., None], wanted * mask[..., None], atol=1e-5, rtol=1e-5)


def test_utils_stays_what_it_is():
    own = {name for name, value in vars(utils).items() if getattr(value, "__module__", None) == "utils"}
    assert own == {"model_size_to_params"}
