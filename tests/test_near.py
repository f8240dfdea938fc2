"""Near misses: of flags, choices, keys of files; hyphens; and files that are not where they were looked for."""

from pathlib import Path

import pytest

import exchange
import submission
from cli.flags import parse_flags
from cli.near import nearest
from comparison.experiment import plan, read_experiment
from config import (
    ClassifierSettings,
    ParaphraseSettings,
    PretrainSettings,
    SonnetSettings,
    TranslationSettings,
)
from errors import UserError
from files import PROJECT, read_text, where_it_may_be

FLAGS = [  # script, what was typed, what was meant
    (SonnetSettings, "--loara", "--lora"),
    (SonnetSettings, "--lr_rate 1e-3", "--lr"),
    (SonnetSettings, "--batchsize 4", "--batch_size"),
    (SonnetSettings, "--learning_rate 1e-3", "--lr"),
    (SonnetSettings, "--lerning_rate 1e-3", "--lr"),
    (SonnetSettings, "--num_train_epochs 3", "--epochs"),
    (SonnetSettings, "--gpu", "--use_gpu"),
    (SonnetSettings, "--fp16", "--precision"),
    (SonnetSettings, "--temprature=0.7", "--temperature"),
    (SonnetSettings, "--lora_r 8", "--lora_rank"),
    (SonnetSettings, "--output_dir x", "--run_dir"),
    (SonnetSettings, "lora", "--lora"),
    (SonnetSettings, "-lora", "--lora"),
    (ParaphraseSettings, "--paratrain x", "--para_train"),
    (PretrainSettings, "--n_layers 3", "--layers"),
    (TranslationSettings, "--trainpairs x", "--train_pairs"),
    (SonnetSettings, "--tuning lora2", "lora"),
    (SonnetSettings, "--decode samples", "sample"),
    (SonnetSettings, "--model_size gpt2_medium", "gpt2-medium"),
    (ParaphraseSettings, "--pooling attn", "attention"),
    (ParaphraseSettings, "--augment EDA", "eda"),
    (ClassifierSettings, "--fine-tune-mode full", "full-model"),
    (ClassifierSettings, "--only SST", "sst"),
    (SonnetSettings, "--lora --lora_targets querys", "query"),
]


@pytest.mark.parametrize("settings_class, typed, meant", FLAGS, ids=[typed for _, typed, _ in FLAGS])
def test_a_near_miss_is_asked_about_and_what_is_meant_is_taken(settings_class, typed, meant):
    with pytest.raises(UserError) as error:
        parse_flags(settings_class, typed.split())
    assert f"; did you mean {meant}?" in str(error.value)


@pytest.mark.parametrize("typed", ["--no_such_flag", "stray", "--xyz 3", "--decode hello", "--top_p_k_z 3"])
def test_what_is_like_nothing_is_not_guessed_at(typed):
    with pytest.raises(UserError) as error:
        parse_flags(ParaphraseSettings, typed.split())
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("word", ["true", "False", "1"])
def test_a_switch_with_a_value_is_told(word):
    with pytest.raises(UserError, match=f"unrecognized arguments: {word}; a switch takes no value"):
        parse_flags(SonnetSettings, ["--lora", word])


HYPHENS = [
    (SonnetSettings, "--batch-size 4 --use-gpu --top-p 0.5 --lora --lora-rank=8"),
    (ClassifierSettings, "--fine-tune-mode full-model --hidden-dropout-prob 0.1"),
    (ClassifierSettings, "--fine_tune_mode full-model --hidden_dropout-prob 0.1"),
]


@pytest.mark.parametrize("settings_class, flags", HYPHENS)
def test_hyphens_are_underscores(settings_class, flags):
    values = [word for word in flags.replace("=", " ").split() if not word.startswith("--")]
    settings, given = parse_flags(settings_class, flags.split())
    found = {name: value for group in vars(settings).values() for name, value in vars(group).items() if name in given}
    assert len(given) == flags.count("--") and {str(value) for value in found.values()} - {"True"} == set(values)


def test_values_keep_their_hyphens():
    settings, _ = parse_flags(SonnetSettings, ["--run-dir", "my-run", "--sonnet-path=a-b_c.txt"])
    assert (settings.run.run_dir, settings.data.sonnet_path) == ("my-run", "a-b_c.txt")


@pytest.mark.parametrize("parse", [exchange.parse, submission.parse])
def test_scripts_without_settings_ask_too(parse):
    with pytest.raises(UserError, match=r"--oout; did you mean --out\?"):
        parse(["zip" if parse is submission.parse else "show", "x", "--oout"])
    with pytest.raises(UserError, match=r"invalid choice: '.*did you mean (check|show)\?"):
        parse(["chek" if parse is submission.parse else "shwo", "x"])


@pytest.mark.parametrize(
    "key, meant", [("batch-size", "--batch_size"), ("epoch", "--epochs"), ("learning_rate", "--lr"), ("beauty", None)]
)
def test_a_key_of_a_settings_file(tmp_path, key, meant):
    (tmp_path / "a.toml").write_text(f"{key} = 4\n")
    with pytest.raises(UserError) as error:
        parse_flags(SonnetSettings, ["--settings", str(tmp_path / "a.toml")])
    asked = f"; did you mean {meant}?" if meant else ""
    assert str(error.value) == f"{tmp_path}/a.toml: there is no flag --{key} here{asked} (--help lists the flags)"


EXPERIMENT = 'task = "pairs"\nseeds = [1]\n[flags]\nepochs = 1\n[variants.a]\n'


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("seeds", "sedes", "unknown key sedes: compare.py --help lists them; did you mean seeds?"),
        ('"pairs"', '"pair"', "task must be one of sonnets, pairs, sst, cfimdb, translation; did you mean pairs?"),
        ("epochs", "epoch", "a: unrecognized arguments: --epoch=1; did you mean --epochs?"),
        (EXPERIMENT, "lora = true\n", "unknown key lora: a file of flags is for a script, by --settings"),
    ],
)
def test_a_key_of_an_experiment(tmp_path, old, new, message):
    path = tmp_path / "a.toml"
    path.write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(UserError) as error:
        plan(read_experiment(path), path, tmp_path)
    assert message in str(error.value)


def test_words_are_compared_without_their_hyphens_and_capitals():
    assert nearest("FULL_MODEL", ["last-linear-layer", "full-model"]) == "full-model"
    assert nearest("", ["a"]) is None and nearest("-", ["a"]) is None


# --- files that are not there -----------------------------------------------------------------------------------------


def test_a_file_of_the_project_is_told_with_the_folder_to_run_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    advice = where_it_may_be("data/sample/sonnets.txt")
    assert advice == f"it is in the project's folder, so run from there: cd {PROJECT}"
    monkeypatch.chdir(PROJECT)
    read_text("data/sample/sonnets.txt")  # which gets further
    monkeypatch.chdir(PROJECT / "data")
    assert where_it_may_be("data/sample/sonnets.txt") == advice


@pytest.mark.parametrize(
    "path, sample",
    [("data/sonnets.txt", "sonnets.txt"), ("data/quora-train.csv", "para-train.csv"), ("data/other.txt", None)],
)
def test_a_file_of_the_course_is_told_with_how_to_get_it(tmp_path, monkeypatch, path, sample):
    monkeypatch.setattr("files.PROJECT", tmp_path)  # a project without the course's data, but with the sample
    (tmp_path / "data/sample").mkdir(parents=True)
    for name in ("sonnets.txt", "para-train.csv"):
        (tmp_path / "data/sample" / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    wanted = "`python data/download.py` gets the course's files"
    wanted += f", data/sample/{sample} is a small one to try" if sample else ""
    assert where_it_may_be(path) == wanted and (PROJECT / "data/download.py").exists()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert where_it_may_be(path) == f"{wanted}; run from the project's folder: cd {tmp_path}"


def test_a_misspelt_file_is_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sonnet-lora-1").mkdir()
    Path("train.tsv").write_text("x")
    assert where_it_may_be("train.csv") == "did you mean train.tsv?"
    assert where_it_may_be("sonnet_lora-1") == "did you mean sonnet-lora-1?"
    assert where_it_may_be("nothing/at/all") == where_it_may_be("train.tsv") == "check the path"
