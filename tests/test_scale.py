"""Several processes take the very steps of one with the same rows: losses to 1e-5, whatever is left for the last step.

Dropout is off: its masks are drawn by each process for its own rows.
"""

import importlib
import itertools
import json
import shlex

import pytest

from cli.flags import parse_flags
from config import PretrainSettings, TranslationSettings
from errors import UserError
from tests import inputs
from tests.helpers import WORDS, prose
from tests.inputs import without, write_pairs, write_sonnets
from tests.small_run import in_processes

SETTINGS = {"pretrain": PretrainSettings, "translation": TranslationSettings}
FULL = ("--dropout", "0", "--precision", "fp32")
LORA = (*FULL, "--lora", "--lora_dropout", "0")


def run_script(name, flags):
    """In this process, which may be one of several. name: the script's."""
    script = importlib.import_module(name)
    if name in SETTINGS:
        script.main(*parse_flags(SETTINGS[name], list(flags)))
    else:
        inputs.run(script, flags)


def figures(folder, name):
    """A figure of every line of metrics that has it."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def check_same_losses(folders, dev="dev loss", steps=None):
    """Those of every step and of every epoch's end."""
    first, *others = folders
    losses = figures(first, "loss")
    assert len(losses) == (steps or len(losses)) > 1 and abs(losses[0] - losses[-1]) > 1e-3
    for folder in others:
        for name in ("loss", "train_loss", dev):
            assert figures(folder, name) == pytest.approx(figures(first, name), abs=1e-5, rel=0), (folder, name)


def train_with(tmp_path, script, flags, sizes, size_flag="--batch_size"):
    """The script with {processes: rows of each}; the run folders."""
    for world, size in sizes.items():
        options = [*flags, size_flag, str(size), "--run_dir", f"of{world}"]
        assert in_processes(world, run_script, script, options) == [0] * world
    return [tmp_path / f"of{world}" for world in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_sonnets(sonnet_flags, tmp_path, tuning):
    """11 rows: the second batch is one short, and so is what the last process has of it."""
    write_sonnets(tmp_path / "train.txt", range(1, 12))
    flags = [*without(sonnet_flags, "--score_seeds"), "--score_seeds", "1", "--max_new_tokens", "1", *tuning]
    check_same_losses(train_with(tmp_path, "sonnet_generation", flags, {1: 6, 2: 3, 3: 2}), steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [(*FULL, "--lm_weight", "0.5"), LORA], ids=["full", "lora"])
def test_pairs_with_a_last_batch_of_one_row(pair_flags, tmp_path, tuning):
    """13 rows: of the last batch two of three processes have nothing, and the accumulated step has one batch only."""
    write_pairs(tmp_path / "train.csv", 13)
    flags = [*pair_flags, *tuning, "--gradient_accumulation", "2"]
    folders = train_with(tmp_path, "paraphrase_detection", flags, {1: 6, 2: 3, 3: 2})
    check_same_losses(folders, "dev accuracy", steps=4)


@pytest.mark.slow
def test_reviews_of_both_modes(review_flags, tmp_path):
    """32 rows: the last batch of 12 has 8. Where GPT-2 is frozen its vectors are computed once."""
    rate = ["--hidden_dropout_prob", "0", "--precision", "fp32", "--only", "sst"]
    for mode in (["--fine-tune-mode", "last-linear-layer"], ["--fine-tune-mode", "full-model", "--dropout", "0"]):
        (tmp_path / mode[1]).mkdir()
        flags = [*review_flags, *rate, *mode]
        sizes = {1: 12, 3: 4}
        for world, size in sizes.items():
            options = [*flags, "--batch_size", str(size), "--run_dir", f"{mode[1]}/of{world}"]
            assert in_processes(world, run_script, "classifier", options) == [0] * world
        check_same_losses([tmp_path / mode[1] / f"of{world}/sst" for world in sizes], "dev accuracy", steps=6)


@pytest.mark.slow
def test_pre_training(tmp_path, monkeypatch):
    """Endless windows: every step is whole."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for seed in (1, 2):
        (tmp_path / f"corpus/{seed}.txt").write_text(prose(seed, words=20_000))
    flags = shlex.split(
        "--corpus corpus --context 32 --layers 2 --hidden_size 32 --heads 2 --lr 1e-2 --precision fp32 --steps 6 "
        "--eval_every 3"
    )
    check_same_losses(train_with(tmp_path, "pretrain", flags, {1: 6, 2: 3, 3: 2}), "held-out loss", steps=6)


@pytest.mark.slow
def test_translation(tmp_path, monkeypatch):
    """Every process fills a budget of its own: N of them are one with N times the accumulated batches."""
    monkeypatch.chdir(tmp_path)
    pairs = "".join(f"{a} is {b} now .\t{b} , {a} !\n" for a, b in itertools.product(WORDS, WORDS))
    (tmp_path / "pairs.tsv").write_text(pairs)
    flags = shlex.split(
        "--train_pairs pairs.tsv --dev_pairs pairs.tsv --test_pairs pairs.tsv --translation_out out.txt --layers 1 "
        "--vocab_size 300 --hidden_size 16 --heads 2 --ffn_size 16 --decode greedy --batch_tokens 120 --steps 6 "
        "--eval_every 3 --dropout 0 --precision fp32 --average 1"
    )
    folders = train_with(tmp_path, "translation", flags, {1: 6, 2: 3, 3: 2}, "--gradient_accumulation")
    check_same_losses(folders, steps=6)


# --- going on with other processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_where_a_batch_stays_what_it_is(sonnet_flags, tmp_path):
    """Begun by two with 3 rows each: one with 6 and three with 2 take the steps that are left, others are refused."""
    flags = [*without(sonnet_flags, "--score_seeds"), "--score_seeds", "1", "--max_new_tokens", "1", *FULL]
    begin = [*without(flags[: -len(FULL)], "--epochs"), *FULL, "--epochs", "1", "--schedule", "constant"]
    one = [*flags, "--schedule", "constant", "--batch_size", "6", "--run_dir", "one-rate"]
    assert in_processes(1, run_script, "sonnet_generation", one) == [0]
    for world, size in ((1, 6), (3, 2)):
        folder = f"then{world}"
        begun = [*begin, "--batch_size", "3", "--run_dir", folder]
        assert in_processes(2, run_script, "sonnet_generation", begun) == [0, 0]
        again = ["--resume", "--run_dir", folder, "--epochs", "2", "--batch_size", str(size)]
        assert in_processes(world, run_script, "sonnet_generation", again) == [0] * world
    check_same_losses([tmp_path / name for name in ("one-rate", "then1", "then3")], steps=4)
    with pytest.raises(UserError, match=r"rows a batch \(--batch_size times processes\) = 6, not 3"):
        run_script("sonnet_generation", ["--resume", "--run_dir", "then1", "--batch_size", "3"])
