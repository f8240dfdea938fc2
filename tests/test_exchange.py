"""exchange.py: show, merge, export, import: whole runs, looked at and carried to transformers and peft."""

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers

from config import DROPOUTS, ClassifierSettings, ParaphraseSettings, SonnetSettings
from errors import UserError
from exchange import main, open_tuned, parse, task_model
from models.gpt2 import GPT2Model
from tests.helpers import assert_close
from tests.peft_hosts import their_logits
from tests.tuned import INPUT_IDS
from training.assembly import assemble
from training.inputs import fingerprint
from training.runs import Run
from tuning.attach import attach
from tuning.register import chosen_methods

ROOT = Path(__file__).resolve().parents[1]


def run(arguments):
    main(parse(arguments))


def make_run(folder, model_folder, *tuning, task="sonnet_generation", **groups):
    """A run with random trained tensors, as the scripts leave them."""
    settings = {
        "sonnet_generation": SonnetSettings,
        "paraphrase_detection": ParaphraseSettings,
        "classifier": ClassifierSettings,
    }[task]()
    settings.model.model_path, settings.tuning.tuning = str(model_folder), tuning
    for group, changes in groups.items():
        for name, value in changes.items():
            setattr(getattr(settings, group), name, value)
    dropout = settings.model.dropout
    gpt2 = GPT2Model.from_pretrained(str(model_folder), **({} if dropout is None else dict.fromkeys(DROPOUTS, dropout)))
    part = folder.name if task == "classifier" else ""
    run = Run(folder, part=part)
    run.begin(task, settings, fingerprint(gpt2))
    run.close()
    attach(gpt2, chosen_methods(settings))
    model = task_model(gpt2, settings, part)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    run.save_best(model, {"epoch": 3, "score": 0.5})
    return model.eval()


@torch.no_grad()
def logits(model):
    return model.gpt.hidden_state_to_token(model.gpt(INPUT_IDS)["last_hidden_state"])


def test_show_says_what_was_tuned(tmp_path, model_folder, capsys):
    make_run(tmp_path / "run", model_folder, "lora", "bitfit", lora={"lora_rank": 2})
    run(["show", str(tmp_path / "run")])
    out = capsys.readouterr().out
    for words in ("lora, bitfit", "best epoch", "3, score 0.5000", "lora_rank", "query.lora_A", str(model_folder)):
        assert words in out


@pytest.mark.parametrize("tuning", [("lora",), ("ia3", "bitfit"), ("qlora",), ("top_layers",), ()])
def test_a_merged_run_opens_in_plain_transformers(tmp_path, model_folder, tuning):
    model = make_run(
        tmp_path / "run",
        model_folder,
        *tuning,
        lora={"lora_targets": "query,key,value,attention_dense,interm_dense,out_dense"},
    )
    run(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(their_logits(theirs), logits(model), atol=1e-5, rtol=1e-5)
    assert (tmp_path / "merged" / "vocab.json").exists()


def test_qlora_merges_whole_where_some_linears_have_no_lora(tmp_path, model_folder):
    model = make_run(tmp_path / "run", model_folder, "qlora")
    run(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(their_logits(theirs), logits(model), atol=1e-5, rtol=1e-5)


def test_a_run_goes_to_peft_and_comes_back_as_a_run(tmp_path, model_folder, capsys):
    model = make_run(tmp_path / "run", model_folder, "lora", task="paraphrase_detection", head={"head": "linear"})
    run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "peft")])
    assert "not part of it: the task's own head" in capsys.readouterr().out
    base = transformers.GPT2LMHeadModel.from_pretrained(model_folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(their_logits(theirs), logits(model), atol=1e-5, rtol=1e-5)

    run(["import", str(tmp_path / "peft"), "--run_dir", str(tmp_path / "again")])  # the folder names its base
    run(["show", str(tmp_path / "again")])
    _, again, *_ = open_tuned(tmp_path / "again")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tuning", "arguments", "message"),
    [
        (("prefix",), ["merge", "run", "--out", "new"], "prefix cannot be merged"),
        (("adapter",), ["export", "run", "--out", "new"], "adapter cannot be exported: peft has no bottleneck"),
        (("lora",), ["merge", "run"], "merge wants --out"),
        (("lora",), ["export", "run", "--out", "run"], "run is not empty"),
        (("lora",), ["show", "nothing"], "nothing is no run folder"),
        (("lora",), ["show", "run", "--model_path", "missing"], "model folder missing does not exist|no folder"),
        (("lora",), ["import", "run", "--run_dir", "new"], "run is no peft folder"),
        (("lora",), ["explode", "run"], "invalid choice: 'explode'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tmp_path, model_folder, monkeypatch, tuning, arguments, message
):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", model_folder, *tuning)
    with pytest.raises(UserError, match=message):
        run(arguments)
    assert not (tmp_path / "new").exists()


def test_another_base_model_is_noticed(tmp_path, model_folder, hugging_face_gpt2):
    make_run(tmp_path / "run", model_folder, "lora")
    other = transformers.GPT2LMHeadModel(hugging_face_gpt2.config)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"this is not the base model that .* was trained on .its weights differ"):
        run(["show", str(tmp_path / "run"), "--model_path", str(tmp_path / "other")])


@pytest.mark.slow
def test_the_command_runs_from_the_shell():
    done = subprocess.run([sys.executable, "exchange.py", "show", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: nothing is no run folder")
    assert done.stderr.count("\n") == 1


def test_a_part_of_a_sentiment_run_is_a_run(model_folder, tmp_path, capsys):
    mode = {"fine_tune_mode": "full-model"}
    model = make_run(tmp_path / "run/sst", model_folder, "lora", task="classifier", head=mode)
    run(["show", str(tmp_path / "run/sst")])
    assert "lora" in capsys.readouterr().out
    run(["merge", str(tmp_path / "run/sst"), "--out", str(tmp_path / "plain")])
    assert "not part of it: the task's own classifier\n" in capsys.readouterr().out
    plain = GPT2Model.from_pretrained(str(tmp_path / "plain")).eval()
    assert_close(plain(INPUT_IDS)["last_hidden_state"], model.gpt(INPUT_IDS)["last_hidden_state"], 1e-5)
    run(["show", str(make_frozen_run(tmp_path / "frozen/cfimdb", model_folder))])
    assert "none, GPT-2 is frozen" in capsys.readouterr().out


def make_frozen_run(folder, model_folder):
    settings = ClassifierSettings()
    settings.model.model_path, settings.training.precision = str(model_folder), "fp32"
    tuned = assemble(settings, with_tokenizer=False)
    kept = Run(folder, part=folder.name)
    kept.begin("classifier", settings, tuned.fingerprint)
    kept.save_best(task_model(tuned.gpt2, settings, folder.name), {"epoch": 1, "score": 0.5})
    kept.close()
    return folder
