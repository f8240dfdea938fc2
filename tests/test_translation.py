"""translation.py end to end, on a few made-up pairs."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import torch
from safetensors.torch import load_file

import translation
from cli.flags import parse_flags
from config import TranslationSettings
from errors import UserError
from evaluation import bleu, translation_floors
from tests.helpers import mostly_slow
from tests.inputs import ROOT, without
from tests.tiny import forget_accelerate_state

NOUNS = {"cat": "Katze", "dog": "Hund", "bird": "Vogel", "fish": "Fisch", "horse": "Pferd", "cow": "Kuh"}
VERBS = {"sleeps": "schläft", "runs": "rennt", "sings": "singt", "eats": "frisst"}


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [f"the {n} {v} .\tdas {d} {w} .\n" for n, d in NOUNS.items() for v, w in VERBS.items()]
    for name, part in (("train", pairs[:16]), ("dev", pairs[16:20]), ("test", pairs[20:])):
        (tmp_path / f"{name}.tsv").write_text("".join(part), encoding="utf-8")
    shape = "--vocab_size 300 --layers 2 --hidden_size 16 --heads 2 --ffn_size 32 --batch_tokens 60"
    training = "--steps 6 --eval_every 2 --average 2 --precision fp32 --beams 2"
    files = "--train_pairs train.tsv --dev_pairs dev.tsv --test_pairs test.tsv --translation_out out/test.txt"
    return f"{files} {shape} {training}".split()


def run(flags):
    forget_accelerate_state()
    translation.main(*parse_flags(TranslationSettings, flags))


@pytest.mark.parametrize("precision", mostly_slow(["fp32", "bf16", "fp16"]))
@pytest.mark.parametrize("model", ["base", "parallel --layer_teacher_forcing 0.5"])
def test_trains_translates_and_comes_back(flags, tmp_path, model, precision, capsys):
    flags = [*without(flags, "--precision"), "--precision", precision]
    run([*flags, "--model", *model.split(), "--run_dir", "run"])
    out, first = capsys.readouterr().out, (tmp_path / "out/test.txt").read_bytes()
    assert len(first.decode().splitlines()) == 4
    assert "mean of the measurements 2 to 3" in out and "floor: nearest training sentence" in out
    assert "sacrebleu: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in out
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["scores"]["model"]["of 1"] == report["scores"]["model"]["BLEU-4"] / 100
    (tmp_path / "out/test.txt").unlink()
    for name in ("train.tsv", "dev.tsv"):  # prediction needs them no more
        (tmp_path / name).unlink()
    # a prediction's precision is its own: that of the machine, where it is not said
    run(["--checkpoint", "run", *flags[6:8], "--beams", "2", "--precision", precision])
    assert (tmp_path / "out/test.txt").read_bytes() == first


def test_a_run_is_predicted_with_as_it_was_trained(flags, tmp_path, capsys):
    """What cannot be typed with --checkpoint is what the run says: here that there is no mean of weights."""
    run([*without(flags, "--average"), "--average", "1", "--run_dir", "run"])
    first = (tmp_path / "out/test.txt").read_bytes()
    capsys.readouterr()
    run(["--checkpoint", "run", *flags[6:8], "--beams", "2", "--precision", "fp32"])
    assert (tmp_path / "out/test.txt").read_bytes() == first
    out = capsys.readouterr().out
    assert "of 2 steps each" in out and "mean of the measurements" not in out


def test_sentences_without_translations_are_translated(flags, tmp_path, capsys):
    run([*flags, "--run_dir", "run"])
    (tmp_path / "new.txt").write_text("the cow runs .\nthe cat sings .\n")
    run(["--checkpoint", "run", *flags[6:8], "--test_pairs", "new.txt"])
    assert len((tmp_path / "out/test.txt").read_text().splitlines()) == 2
    assert "2 sentences without translations" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_result(flags, tmp_path, monkeypatch):
    flags = [*flags, "--save_minutes", "1e-9"]
    run([*flags, "--run_dir", "whole"])
    real, calls = translation.translation_loss, []

    def stop(model, batch, smoothing=0.0):
        calls.append(1)
        if len(calls) == stop.at:
            raise KeyboardInterrupt
        return real(model, batch, smoothing)

    for at in (1, 2, 4, 6, 9):
        stop.at, name = at, f"stopped{at}"
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(translation, "translation_loss", stop)
            run([*flags, "--run_dir", name])
        run(["--resume", "--run_dir", name])
        for file in ("last/model.safetensors", "last/optimizer.safetensors", "snapshots/000002/model.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (at, file)
        assert sorted(path.name for path in (tmp_path / name / "snapshots").iterdir()) == ["000002", "000003"]


def test_the_mean_of_snapshots_is_their_mean_and_a_damaged_one_is_left_out(flags, tmp_path, capsys):
    run([*flags, "--run_dir", "run"])
    files = [tmp_path / f"run/snapshots/00000{n}/model.safetensors" for n in (2, 3)]
    one, other = map(load_file, files)
    settings = parse_flags(TranslationSettings, ["--checkpoint", "run"])[0]
    from training.runs import Run

    record = Run(tmp_path / "run").record()["settings"]["shape"]
    tokenizer = translation.load_tokenizer(tmp_path / "run")
    model = translation.Transformer(translation.transformer_config(type(settings.shape)(**record), tokenizer))
    assert Run(tmp_path / "run").load_average(model) == [2, 3]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, (one[name] + other[name]) / 2, atol=1e-7, rtol=1e-6)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    assert Run(tmp_path / "run").load_average(model) == [3]
    assert "snapshots/000002/model.safetensors is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("--hidden_size 18 --heads 4", "no multiple of twice --heads"),
        ("--steps 5 --eval_every 2", "no multiple of --eval_every"),
        ("--decode greedy --beams 3", "--beams has no effect without --decode beam"),
        ("--layers 1 --layer_teacher_forcing 0.5", "--layer_teacher_forcing has no effect with --layers 1"),
        ("--train_pairs nothing.tsv", "nothing.tsv does not exist"),
        ("--layer_teacher_forcing 2", "--layer_teacher_forcing must"),
    ],
)
def test_what_is_wrong_is_one_line(flags, wrong, said):
    with pytest.raises(UserError, match=said):
        run([*without(flags, *wrong.split()[::2], "--beams"), *wrong.split()])


@pytest.mark.parametrize(
    "wrong, said", [("--batch_tokens 3", "raise --batch_tokens"), ("--max_length 1", "--max_length")]
)
def test_pairs_that_fit_nowhere_leave_no_run_behind(flags, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        run([*without(flags, wrong.split()[0]), *wrong.split(), "--run_dir", "run"])
    assert not (tmp_path / "run").exists()


def test_other_pairs_are_refused_on_resume(flags, tmp_path):
    run([*flags, "--run_dir", "run"])
    text = (tmp_path / "train.tsv").read_text(encoding="utf-8")
    (tmp_path / "train.tsv").write_text(text + "the cow eats .\tdie Kuh frisst .\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.tsv is not what run was trained with"):
        run(["--resume", "--run_dir", "run"])


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("translation-*.toml")), ids=lambda path: path.name)
def test_every_experiment_runs(path, flags, tmp_path):
    """Its comment gives the command; here it takes two small steps on a few pairs."""
    assert f"python translation.py --settings experiments/{path.name}" in path.read_text(encoding="utf-8")
    tiny = "--steps 2 --eval_every 1 --average 1 --hidden_size 16 --ffn_size 16 --layers 1 --precision fp32"
    small = tiny.split()
    run(["--settings", str(path), *flags[:8], *small, "--run_dir", "run"])
    record = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    for name, value in tomllib.loads(path.read_text(encoding="utf-8")).items():
        kept = next(group[name] for group in record.values() if name in group)
        assert kept == value or f"--{name}" in (*small, *flags[:8])


def test_floors_and_bleu():
    training = [("the cat sleeps .", "A"), ("a dog runs fast .", "B"), ("the cat runs .", "C")]
    pairs = [("the cat sings .", "x"), ("fast dog", "y"), ("nothing known", "z")]
    floors = translation_floors(pairs, training)
    assert floors["nearest training sentence"] == ["A", "B", "A"] and floors["source as it is"][1] == "fast dog"
    value, signature = bleu(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert value == pytest.approx(100) and "tok:13a" in signature


@pytest.mark.slow
def test_two_processes_train_like_one(flags, tmp_path):
    """The budget of one is the budget of two together only if batches are the same: two halves are not. So: the loss of
    the first step, over the same two batches, accumulated by one."""
    script = [f"{ROOT}/translation.py", *without(flags, "--steps", "--eval_every"), "--dropout", "0"]
    script += ["--steps", "2", "--eval_every", "1"]
    runs = {"one": [sys.executable, *script, "--gradient_accumulation", "2"]}
    runs["two"] = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *script]
    losses = {}
    for name, command in runs.items():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [*command, "--run_dir", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in lines if "step" in line]
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5) and len(losses["one"]) == 2
