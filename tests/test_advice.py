"""What an error advises gets further: the advice is followed, and the flags are taken, or the next question comes."""

import json

import pytest

from cli.flags import parse_flags
from config import (
    ClassifierSettings,
    ParaphraseSettings,
    PretrainSettings,
    SonnetSettings,
    TaskSettings,
    TranslationSettings,
)
from errors import Diverged, UserError
from models.gpt2 import GPT2Model
from tests import small_run
from tests.small_run import BASE
from training.runs import Run, open_run
from tuning.attach import attach, check_mergeable
from tuning.register import chosen_methods, default_learning_rate

SONNETS, PAIRS, REVIEWS = SonnetSettings, ParaphraseSettings, ClassifierSettings
HEADS = "--pooling generalized --pooling_penalty parameters"
SAYS = [  # script, what was typed, the advice, what follows it
    (SONNETS, "--lora_rank 8", "without --tuning lora|qlora: add it", "--lora_rank 8 --tuning lora"),
    (SONNETS, "--lora_rank 8", "or leave the flag out", ""),
    (SONNETS, "--lora_rank 8 --tuning adapter", "without --tuning lora|qlora: add it", "--lora_rank 8 --tuning qlora"),
    (SONNETS, "--adapter_size 8", "without --tuning adapter: add it", "--adapter_size 8 --tuning adapter"),
    (SONNETS, "--prefix_length 3", "without --tuning prefix: add it", "--prefix_length 3 --tuning prefix"),
    (SONNETS, "--beams 2", "without --decode beam: add it", "--beams 2 --decode beam"),
    (SONNETS, "--decode beam --top_p 0.5", "--decode sample|mbr|template: add it", "--decode mbr --top_p 0.5"),
    (SONNETS, "--decode template --form sonnet", "--decode sample|greedy|beam|mbr: add it", "--form sonnet"),
    (SONNETS, "--decode mbr --num_samples 2", "must be at least 3", "--decode mbr --num_samples 3"),
    (SONNETS, "--epochs 3 --patience 5", "give a smaller one", "--epochs 3 --patience 2"),
    (SONNETS, "--epochs 1 --patience 5", "give a smaller one", "--epochs 1 --patience 0"),
    (SONNETS, "--model_path m --model_size gpt2", "give one of them", "--model_path m"),
    (SONNETS, "--resume --checkpoint r", "give one of them", "--checkpoint r"),
    (SONNETS, "--lora --tuning adalora", "choose one", "--tuning adalora"),
    (SONNETS, "--lora --lora_targets c_attn", "choose from query,key,value", "--lora --lora_targets query,key,value"),
    (SONNETS, "--tuning adalora --adalora_rank 13", "between 1 and", "--tuning adalora --adalora_rank 12"),
    (SONNETS, "--tuning adalora --adalora_warmup 0.7", "less than 1", "--tuning adalora --adalora_warmup 0.6"),
    (SONNETS, "--sonnet_out a --sonnet_dev_out a", "choose another", "--sonnet_out a --sonnet_dev_out b"),
    (SONNETS, "--temperature -1", "must be 0 (greedy) or more", "--temperature 0"),
    (SONNETS, "--top_p 0", "must be in (0, 1]", "--top_p 1"),
    (SONNETS, "--epochs 0", "must be at least 1", "--epochs 1"),
    (SONNETS, "--epochs 1e3", "give a whole number", "--epochs 1000"),
    (SONNETS, "--lr 1,5e-5", "give a number such as 0.1 or 5e-5", "--lr 1.5e-5"),
    (SONNETS, "--lora true", "leave it out", "--lora"),
    (
        PAIRS,
        "--pooling_heads 4",
        "--pooling generalized: add it",
        "--pooling_heads 4 --pooling generalized --head linear",
    ),
    (PAIRS, HEADS, "give --pooling_heads 2 or more", f"{HEADS} --pooling_heads 2 --head linear"),
    (PAIRS, f"{HEADS} --pooling_heads 2", "or --head linear", f"{HEADS} --pooling_heads 2 --head linear"),
    (PAIRS, f"{HEADS} --pooling_heads 2", "use --pooling_heads 1", "--pooling generalized --pooling_heads 1"),
    (PAIRS, "--eda_alpha 0.2", "without --augment eda: add it", "--eda_alpha 0.2 --augment eda"),
    (PAIRS, "--augment_count 3", "--augment eda|back_translation: add it", "--augment_count 3 --augment eda"),
    (REVIEWS, "--lora --fine-tune-mode last-linear-layer", "leave one out", "--lora"),
    (REVIEWS, "--dropout 0.2", "give --fine-tune-mode full-model", "--dropout 0.2 --fine-tune-mode full-model"),
    (REVIEWS, "--dropout 0.2", "or leave the flag out", ""),
    (PretrainSettings, "--hidden_size 250", "choose one", "--hidden_size 256"),
    (PretrainSettings, "--steps 300 --eval_every 200", "choose one", "--steps 400 --eval_every 200"),
    (PretrainSettings, "--vocab_size 500", "must be at least 8507", "--vocab_size 8507"),
    (TranslationSettings, "--hidden_size 100 --heads 8", "choose one", "--hidden_size 96 --heads 8"),
    (TranslationSettings, "--decode greedy --beams 3", "without --decode beam: add it", "--decode beam --beams 3"),
]


@pytest.mark.parametrize("script, wrong, advice, right", SAYS, ids=[f"{row[1]} -> {row[3]}" for row in SAYS])
def test_flags_that_follow_the_advice_are_taken(script, wrong, advice, right):
    with pytest.raises(UserError) as error:
        parse_flags(script, wrong.split())
    assert advice in str(error.value)
    parse_flags(script, right.split())


# --- of runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """begun(folder, script, flags): a run of which nothing but its record is there; where we are."""
    monkeypatch.chdir(tmp_path)

    def begin(folder, script, flags=""):
        settings, _ = parse_flags(script, flags.split())
        settings.training.lr = settings.training.lr or default_learning_rate(settings.tuning.methods)
        run = Run(tmp_path / folder)
        run.begin({SONNETS: "sonnet_generation", PAIRS: "paraphrase_detection"}[script], settings, BASE)
        run.close()

    return begin


def opened(script, flags):
    """What a script does with its flags and the run that they name; the settings."""
    task = {SONNETS: "sonnet_generation", PAIRS: "paraphrase_detection"}[script]
    return open_run(task, "x", *parse_flags(script, flags.split()))[1]


IDLE = "--lora_rank has no effect without --tuning lora|qlora, and R has"
OF_RUNS = [  # the run's flags, what was typed, the advice, what follows it (None: there is nothing to try)
    ("--lora", "--checkpoint R --lora_rank 8", "R was trained with lora_rank = 4, not 8: leave --lora_rank out", ""),
    ("--lora", "--resume --run_dir R --lora_rank 8", "with lora_rank = 4, not 8: leave --lora_rank out", None),
    ("", "--checkpoint R --lora_rank 8", f"{IDLE} no tuning method: leave the flag out", "--checkpoint R"),
    ("", "--checkpoint R --lora_rank 4", f"{IDLE} no tuning method: leave the flag out", "--checkpoint R"),
    ("--adapter", "--checkpoint R --lora_rank 8", f"{IDLE} adapter: leave the flag out", "--checkpoint R"),
    (
        "--lora",
        "--checkpoint R --adapter",
        "R was trained with lora, not adapter: leave --adapter out",
        "--checkpoint R",
    ),
    ("", "--checkpoint R --lora", "R was trained with no tuning method, not lora: leave --lora out", "--checkpoint R"),
    ("", "--checkpoint R --epochs 3", "which trains nothing: leave it out", "--checkpoint R"),
    ("", "--checkpoint R --beams 2", "without --decode beam: add it", "--checkpoint R --beams 2 --decode beam"),
    (
        "",
        "--resume --run_dir R --beams 2",
        "without --decode beam, and R has sample: add it, or leave",
        "--resume --run_dir R --beams 2 --decode beam",
    ),
    ("", "--run_dir R", "R holds a run already: continue it with --resume", "--run_dir R --resume"),
    ("", "--run_dir R", "or choose another --run_dir", "--run_dir other"),
    ("", "--resume", "there is no run to resume under runs/: leave --resume out", ""),
    ("", "--resume", "or name one with --run_dir", "--resume --run_dir R"),
    (
        "",
        "--resume --run_dir R --seed 3",
        "R was trained with seed = 11711, not 3: leave --seed out",
        "--resume --run_dir R",
    ),
    ("", "--checkpoint r", "r is no run folder: it has no settings.json; check the path", "--checkpoint R"),
]


@pytest.mark.parametrize("trained, wrong, advice, right", OF_RUNS, ids=[f"{row[0]}: {row[1]}" for row in OF_RUNS])
def test_advice_about_a_run_is_right(begun, trained, wrong, advice, right):
    begun("R", SONNETS, trained)
    with pytest.raises(UserError) as error:
        opened(SONNETS, wrong)
    assert advice in str(error.value)
    opened(SONNETS, right if right is not None else "--resume --run_dir R")


FITTING = [
    ("--lora", "--checkpoint R --lora_rank 4"),
    ("--lora", "--checkpoint R --lora"),
    ("--tuning lora", "--resume --run_dir R --lora --lora_rank 4"),
    ("--decode beam", "--resume --run_dir R --beams 2"),
    ("--decode beam --beams 3", "--resume --run_dir R --length_penalty 2"),
    ("--tuning prefix lora", "--checkpoint R --prefix_length 20"),
]


@pytest.mark.parametrize("trained, flags", FITTING)
def test_a_flag_that_the_run_makes_sense_of_is_taken(begun, trained, flags):
    begun("R", SONNETS, trained)
    opened(SONNETS, flags)


def test_a_run_of_the_other_script_names_it(begun):
    begun("R", SONNETS)
    with pytest.raises(
        UserError, match=r"R is a run of sonnet_generation, not of .*: give it to sonnet_generation\.py"
    ):
        opened(PAIRS, "--checkpoint R")
    opened(SONNETS, "--checkpoint R")


def test_a_folder_of_runs_names_those_in_it(begun):
    begun("all/a", SONNETS)
    begun("all/b", SONNETS)
    with pytest.raises(UserError, match=r"all is no run folder: .*; give one of those in it, all/a or all/b$"):
        opened(SONNETS, "--checkpoint all")
    opened(SONNETS, "--checkpoint all/b")


def test_a_run_without_a_whole_epoch_is_gone_on_with(begun, tmp_path):
    begun("R", SONNETS)
    with pytest.raises(UserError) as error:
        Run(tmp_path / "R").load_best(None)
    advice = f"{tmp_path}/R has no complete epoch yet: go on with it first, by --resume --run_dir {tmp_path}/R"
    assert str(error.value) == advice
    opened(SONNETS, advice.split("by ")[1])


# --- of training ------------------------------------------------------------------------------------------------------


def spoilt_at(step, model_folder, folder):
    """A training whose weights are not finite after a step."""
    real, seen = small_run.TrainingLoop.__init__, []

    def init(self, model, *arguments):
        real(self, model, *arguments)
        seen.append(model)

    def spoil(now, total):
        if now == step:
            next(p for p in seen[0].parameters() if p.requires_grad).data.fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_run.TrainingLoop, "__init__", init)
        small_run.train(model_folder, folder, after_step=spoil)


def test_weights_that_are_not_finite_let_a_lower_rate_go_on(model_folder, tmp_path):
    """The error says so: --resume and a lower --lr."""
    with pytest.raises(Diverged, match="go on with --resume and a lower --lr"):
        spoilt_at(6, model_folder, tmp_path / "run")
    assert "not finite" in json.loads((tmp_path / "run/diverged.json").read_text())["what"]
    small_run.train(model_folder, tmp_path / "run", resumed=True, lr=1e-3)


def test_an_epoch_without_a_finite_step_lets_a_lower_rate_go_on(model_folder, tmp_path):
    def nan(model, batch):
        loss, count = small_run.language_model_loss(model, batch)
        return loss * float("nan"), count

    with pytest.raises(Diverged, match=r"not one step of epoch 1 had a finite loss: --resume .*; give it a lower --lr"):
        small_run.train(model_folder, tmp_path / "run", loss_fn=nan, **small_run.SHORT)
    assert (tmp_path / "run/diverged.json").exists()
    small_run.train(model_folder, tmp_path / "run", resumed=True, lr=1e-3, **small_run.SHORT)


@pytest.mark.parametrize(
    "wrong, advice, right",
    [
        ("--tuning top_layers --top_layers_count 4", "has 3 layers; give at most so many", "--top_layers_count 3"),
        ("--tuning llama_adapter --llama_layers 4", "has 3 layers; give at most so many", "--llama_layers 3"),
    ],
)
def test_layers_that_a_model_does_not_have(model_folder, wrong, advice, right):
    def tuned(flags):
        attach(GPT2Model.from_pretrained(str(model_folder)), chosen_methods(parse_flags(SONNETS, flags.split())[0]))

    with pytest.raises(UserError) as error:
        tuned(wrong)
    assert advice in str(error.value)
    tuned(f"{' '.join(wrong.split()[:2])} {right}")


def test_merging_what_cannot_be_merged():
    for methods, advice in (({}, "leave it out"), ({"adapter": None}, "leave --merge out")):
        with pytest.raises(UserError, match=advice):
            check_mergeable(methods)
    check_mergeable({"lora": TaskSettings().lora})
