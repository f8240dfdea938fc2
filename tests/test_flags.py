"""Flags against what they must refuse, word for word, and the way from flags to settings, JSON and back."""

import dataclasses
import json
import re

import pytest

from cli.flags import option, parse_flags, settings_from_dict, settings_to_dict
from config import MODEL_SIZES, ParaphraseSettings, SonnetSettings
from errors import UserError
from tests.helpers import BOTH, flat

LINEARS = "query,key,value,attention_dense,interm_dense,out_dense"


IN_BOTH = [  # arguments, message
    ("--dropout 1", "--dropout must be in [0, 1), got 1.0"),
    ("--dropout -0.1", "--dropout must be in [0, 1), got -0.1"),
    ("--epochs 0", "--epochs must be at least 1, got 0"),
    ("--epochs 1 --patience 50", "--patience 50 has no effect with --epochs 1: give a smaller one"),
    ("--patience 10", "--patience 10 has no effect with --epochs 10: give a smaller one"),
    ("--model_path m --model_size gpt2", "--model_path stands in the place of --model_size: give one of them"),
    ("--batch_size 0", "--batch_size must be at least 1, got 0"),
    ("--gradient_accumulation 0", "--gradient_accumulation must be at least 1, got 0"),
    ("--lr 0", "--lr must be positive, got 0.0"),
    ("--lr -0.001", "--lr must be positive, got -0.001"),
    ("--lr nan", "--lr must be positive, got nan"),
    ("--warmup_ratio 1.1", "--warmup_ratio must be in [0, 1], got 1.1"),
    ("--warmup_ratio -0.1", "--warmup_ratio must be in [0, 1], got -0.1"),
    ("--seed -1", "--seed must not be negative, got -1"),
    ("--weight_decay -0.1", "--weight_decay must not be negative, got -0.1"),
    ("--max_grad_norm -1", "--max_grad_norm must not be negative, got -1.0"),
    ("--patience -1", "--patience must not be negative, got -1"),
    ("--resume --checkpoint x", "--resume trains on, --checkpoint only predicts: give one of them"),
    ("--lora --lora_rank 0", "--lora_rank must be at least 1, got 0"),
    ("--lora --lora_alpha 0", "--lora_alpha must be positive, got 0.0"),
    ("--lora --lora_dropout 1", "--lora_dropout must be in [0, 1), got 1.0"),
    ("--lora --lora_dropout -0.5", "--lora_dropout must be in [0, 1), got -0.5"),
    ("--lora --lora_targets query,c_attn", f"--lora_targets: no linear ['c_attn']; choose from {LINEARS}"),
    ("--lora --lora_targets ,", f"--lora_targets is empty; choose from {LINEARS}"),
    ("--adapter --adapter_size 0", "--adapter_size must be at least 1, got 0"),
    ("--eval_batch_size 0", "--eval_batch_size must be at least 1, got 0"),
    ("--lora_rank 8", "--lora_rank has no effect without --tuning lora|qlora: add it, or leave the flag out"),
    ("--lora_alpha 16", "--lora_alpha has no effect without --tuning lora|qlora: add it, or leave the flag out"),
    ("--lora_dropout 0", "--lora_dropout has no effect without --tuning lora|qlora: add it, or leave the flag out"),
    ("--lora_targets key", "--lora_targets has no effect without --tuning lora|qlora: add it, or leave the flag out"),
    ("--lora --adapter_size 8", "--adapter_size has no effect without --tuning adapter: add it, or leave the flag out"),
    (
        "--adapter_placement pfeiffer",
        "--adapter_placement has no effect without --tuning adapter: add it, or leave the flag out",
    ),
]


IDLE_METHOD_FLAGS = {  # flag and value without the method that it belongs to
    "lora|qlora": "--lora_rank_stabilized; --lora_bias all",
    "adalora": "--adalora_start_rank 9; --adalora_rank 3; --adalora_alpha 3; --adalora_dropout 0; "
    "--adalora_targets key; --adalora_warmup 0; --adalora_final 0; --adalora_interval 3; --adalora_penalty 0",
    "ia3": "--ia3_targets key",
    "prompt": "--prompt_length 3",
    "ptuning": "--ptuning_length 3; --ptuning_encoder lstm; --ptuning_hidden 3",
    "prefix": "--prefix_length 3; --prefix_hidden 3",
    "llama_adapter": "--llama_length 3; --llama_layers 3; --llama_gate head",
    "top_layers": "--top_layers_count 3",
}


IN_BOTH += [
    (flag, f"{flag.split()[0]} has no effect without --tuning {method}: add it, or leave the flag out")
    for method, flags in IDLE_METHOD_FLAGS.items()
    for flag in flags.split("; ")
]


RANKS = "--adalora_rank must be between 1 and --adalora_start_rank"


SHARES = "--adalora_warmup and --adalora_final are shares of the steps: together less than 1"


IN_BOTH += [
    ("--tuning adalora --adalora_rank 13", f"{RANKS}, got 13 and 12"),
    ("--tuning adalora --adalora_rank 0", f"{RANKS}, got 0 and 12"),
    ("--tuning adalora --adalora_alpha 0", "--adalora_alpha must be positive, got 0.0"),
    ("--tuning adalora --adalora_dropout 1", "--adalora_dropout must be in [0, 1), got 1.0"),
    ("--tuning adalora --adalora_warmup 0.7", SHARES),
    ("--tuning adalora --adalora_final -0.1", SHARES),
    ("--tuning adalora --adalora_interval 0", "--adalora_interval must be at least 1, got 0"),
    ("--tuning adalora --adalora_penalty -1", "--adalora_penalty must not be negative, got -1.0"),
    ("--tuning adalora --adalora_targets c_attn", f"--adalora_targets: no linear ['c_attn']; choose from {LINEARS}"),
    ("--tuning ia3 --ia3_targets ,", f"--ia3_targets is empty; choose from {LINEARS}"),
    ("--tuning prompt --prompt_length 0", "--prompt_length must be at least 1, got 0"),
    ("--tuning ptuning --ptuning_length 0", "--ptuning_length must be at least 1, got 0"),
    ("--tuning ptuning --ptuning_hidden 0", "--ptuning_hidden must be at least 1, got 0"),
    ("--tuning prefix --prefix_length 0", "--prefix_length must be at least 1, got 0"),
    ("--tuning prefix --prefix_hidden -1", "--prefix_hidden must be 0 (no MLP) or more, got -1"),
    ("--tuning llama_adapter --llama_length 0", "--llama_length must be at least 1, got 0"),
    (
        "--tuning llama_adapter --llama_layers -1",
        "--llama_layers must be 0 (all but the first) or more, got -1",
    ),
    ("--tuning top_layers --top_layers_count 0", "--top_layers_count must be at least 1, got 0"),
    (
        "--lora --tuning adalora",
        "--tuning adalora lora: they do not combine, each replaces the linears of a layer; choose one",
    ),
]


ADD_IT = "add it, or leave the flag out"


HELP = "(--help lists the flags)"


IN_SONNETS = [
    ("--temperature -1", "--temperature must be 0 (greedy) or more, got -1.0"),
    ("--top_p 0", "--top_p must be in (0, 1], got 0.0"),
    ("--top_p 1.5", "--top_p must be in (0, 1], got 1.5"),
    ("--top_k -1", "--top_k must be 0 (all tokens) or more, got -1"),
    ("--min_p 1.1", "--min_p must be in [0, 1], got 1.1"),
    ("--repetition_penalty 0", "--repetition_penalty must be positive, got 0.0"),
    ("--no_repeat_ngram -1", "--no_repeat_ngram must be 0 (off) or more, got -1"),
    ("--max_new_tokens 0", "--max_new_tokens must be at least 1, got 0"),
    ("--score_seeds 0", "--score_seeds must be at least 1, got 0"),
    ("--beams 0 --decode beam", "--beams must be at least 1, got 0"),
    ("--length_penalty nan --decode beam", "--length_penalty must be a number, got nan"),
    ("--num_samples 0", "--num_samples must be at least 1, got 0"),
    (
        "--num_samples 2 --decode mbr",
        "--num_samples must be at least 3 with --decode mbr, which compares them, got 2",
    ),
    *[
        (f"--{flag} --decode beam", f"--{flag.split()[0]} has no effect without --decode sample|mbr|template: {ADD_IT}")
        for flag in ("temperature 1", "top_p 0.5", "top_k 3", "min_p 0.1", "num_samples 2", "score_seeds 5")
    ],
    *[
        (f"--{flag} --decode greedy", f"--{flag.split()[0]} has no effect without --decode {decode}: {ADD_IT}")
        for flag, decode in (
            ("beams 2", "beam"),
            ("length_penalty 2", "beam"),
            ("early_stopping true", "beam"),
            ("templates t", "template"),
            ("template_tags word", "template"),
        )
    ],
    (
        "--num_samples 2 --temperature 0",
        "--num_samples has no effect with --decode sample --temperature 0.0: leave one of them out",
    ),
    (
        "--decode mbr --temperature 0",
        "--decode mbr compares samples, and --temperature 0 draws none: give one above 0",
    ),
    (
        "--decode template --templates t --template_tags word",
        "--templates stands in the place of --template_tags: give one of them",
    ),
    ("--form sonnet --decode template", f"--form has no effect without --decode sample|greedy|beam|mbr: {ADD_IT}"),
]


PENALTIES = "parameters|attention|embeddings"
GENERALIZED = "has no effect without --pooling generalized: add it, or leave the flag out"


IN_PARAPHRASE = [
    ("--pooling generalized --head linear --pooling_heads 0", "--pooling_heads must be at least 1, got 0"),
    ("--pooling generalized --pooling_hidden 0", "--pooling_hidden must be at least 1, got 0"),
    (
        "--pooling generalized --pooling_penalty parameters",
        "--pooling_penalty parameters compares heads: give --pooling_heads 2 or more",
    ),
    (
        "--pooling generalized --pooling_heads 4",
        "--head cloze reads one vector of the model's width: use --pooling_heads 1, or --head linear",
    ),
    ("--head linear --pooling_heads 4", f"--pooling_heads {GENERALIZED}"),
    (
        "--pooling mean --pooling_hidden 64",
        "--pooling_hidden has no effect without --pooling generalized|aligned: add it, or leave the flag out",
    ),
    ("--head linear --pooling_heads 1", f"--pooling_heads {GENERALIZED}"),
    ("--pooling_penalty none", f"--pooling_penalty {GENERALIZED}"),
    *[
        (f"{pooling} --{flag} 1", f"--{flag} has no effect without --pooling_penalty {PENALTIES}: {ADD_IT}")
        for flag in ("pooling_penalty_weight", "pooling_penalty_margin")
        for pooling in ("", "--pooling generalized", "--pooling generalized --pooling_penalty none")
    ],
    ("--pooling_penalty_weight 1 --pooling_penalty attention", f"--pooling_penalty_weight {GENERALIZED}"),
    ("--lm_weight -1", "--lm_weight must be 0 (off) or more, got -1.0"),
    ("--augment eda --eda_alpha 0", "--eda_alpha must be in (0, 1], got 0.0"),
    ("--augment eda --augment_count 0", "--augment_count must be at least 1, got 0"),
    ("--augment eda --eda_copies 0", "--eda_copies must be at least 1, got 0"),
    ("--augment back_translation --bt_beams 0", "--bt_beams must be at least 1, got 0"),
    ("--augment back_translation --bt_batch_size 0", "--bt_batch_size must be at least 1, got 0"),
    *[
        (f"--{flag}", f"--{flag.split()[0]} has no effect without --augment {method}: {ADD_IT}")
        for flag, method in (
            ("eda_alpha 0.2", "eda"),
            ("eda_copies 2", "eda"),
            ("eda_operations swap", "eda"),
            ("augment_count 3", "eda|back_translation"),
            ("wordnet w", "eda"),
            ("bt_forward a", "back_translation"),
            ("bt_backward a", "back_translation"),
            ("bt_beams 2", "back_translation"),
            ("bt_batch_size 2", "back_translation"),
            ("bt_cache c", "back_translation"),
        )
    ],
    (
        "--augment eda --eda_operations swap deletion --wordnet w",
        f"--wordnet has no effect without --eda_operations synonyms|insertion: {ADD_IT}",
    ),
]


@pytest.mark.parametrize(
    "settings_class, arguments, message",
    [(settings_class, *row) for settings_class in BOTH for row in IN_BOTH]
    + [(SonnetSettings, *row) for row in IN_SONNETS]
    + [(ParaphraseSettings, *row) for row in IN_PARAPHRASE],
)
def test_values_out_of_range_and_idle_flags_are_refused_by_name(settings_class, arguments, message):
    with pytest.raises(UserError) as error:
        parse_flags(settings_class, arguments.split())
    assert str(error.value) == message


def test_every_flag_that_needs_another_is_in_the_table_above():
    needy = {
        setting.name
        for settings_class in BOTH
        for group in dataclasses.fields(settings_class)
        for setting in dataclasses.fields(group.type)
        if any(option(group.type, setting, name) for name in ("requires", "idle_from", "idle_with"))
    }
    refused = {
        message.split()[0][2:] for _, message in IN_BOTH + IN_SONNETS + IN_PARAPHRASE if "has no effect" in message
    }
    assert refused == needy


@pytest.mark.parametrize(
    "settings_class, arguments",
    [
        (SonnetSettings, "--dropout 0 --warmup_ratio 0 --seed 0 --temperature 0 --patience 0"),
        (SonnetSettings, "--lora --lora_dropout 0 --lora_targets query,,query --warmup_ratio 1 --max_grad_norm 0"),
        (ParaphraseSettings, "--pooling generalized --head linear --pooling_heads 2 --pooling_penalty embeddings"),
        (SonnetSettings, "--temperature 0 --top_p 1 --top_k 0 --min_p 0 --score_seeds 5"),  # as greedy as without
        (SonnetSettings, "--decode template --temperature 0 --num_samples 2 --score_seeds 5"),
        (ParaphraseSettings, "--resume --run_dir x --lora --adapter --adapter_placement houlsby"),
        (ParaphraseSettings, "--resume --run_dir x --patience 20"),  # of a run whose epochs only it knows
    ],
)
def test_values_at_the_edge_are_taken(settings_class, arguments):
    _, given = parse_flags(settings_class, arguments.split())
    assert given == set(re.findall(r"--(\w+)", arguments))


def test_targets_are_listed_once():
    settings, _ = parse_flags(SonnetSettings, ["--lora", "--lora_targets", " value ,query,,value"])
    assert settings.lora.targets == ["value", "query"]


@pytest.mark.parametrize("settings_class", BOTH)
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag (--help lists the flags)"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3; did you mean --epochs? (--help lists the flags)"),
        (["stray"], "unrecognized arguments: stray (--help lists the flags)"),
        (
            ["--epochs", "ten"],
            "argument --epochs: invalid int value: 'ten'; give a whole number (--help lists the flags)",
        ),
        (
            ["--epochs", "1.5"],
            "argument --epochs: invalid int value: '1.5'; give a whole number (--help lists the flags)",
        ),
        (
            ["--lr", "fast"],
            "argument --lr: invalid float value: 'fast'; give a number such as 0.1 or 5e-5 (--help lists the flags)",
        ),
        (["--epochs"], "argument --epochs: expected one argument (--help lists the flags)"),
    ],
)
def test_typing_errors_are_one_exact_message(settings_class, arguments, message):
    with pytest.raises(UserError) as error:
        parse_flags(settings_class, arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "settings_class, flag, choices",
    [
        (SonnetSettings, "model_size", MODEL_SIZES),
        (SonnetSettings, "schedule", ["constant", "linear", "cosine"]),
        (SonnetSettings, "precision", ["auto", "fp32", "bf16"]),
        (ParaphraseSettings, "adapter_placement", ["houlsby", "pfeiffer"]),
        (ParaphraseSettings, "head", ["cloze", "linear"]),
        (ParaphraseSettings, "pooling", ["last", "mean", "max", "attention", "generalized"]),
        (ParaphraseSettings, "pooling_penalty", ["none", "parameters", "attention", "embeddings"]),
    ],
)
def test_an_unknown_choice_is_refused_and_the_known_ones_are_listed(settings_class, flag, choices):
    with pytest.raises(UserError) as error:
        parse_flags(settings_class, [f"--{flag}", "gpt3"])
    message = str(error.value)
    assert message.startswith(f"argument --{flag}: invalid choice: 'gpt3' (choose from ")
    assert all(choice in message for choice in choices) and "\n" not in message


NOT_DEFAULT = {  # every flag of both scripts with a value that is not its default
    SonnetSettings: "--sonnet_path é --held_out_sonnet_path b --sonnet_out c --gold_sonnet_path d --sonnet_dev_out e "
    "--score_seeds 5 --temperature 0.3 --top_p 0.123456789012345 --top_k 3 --max_new_tokens 9 "
    "--min_p 0.1 --repetition_penalty 1.2 --no_repeat_ngram 4 --decode mbr --num_samples 5 --form sonnet",
    ParaphraseSettings: "--para_train a --para_dev b --para_test c --para_dev_out d --para_test_out e --head linear "
    "--swap_questions --pooling generalized --pooling_heads 4 --pooling_hidden 2 --pooling_penalty embeddings "
    "--pooling_penalty_weight 1e-9 --pooling_penalty_margin 2 --lm_weight 0.5 --augment back_translation eda "
    "--eda_alpha 0.2 --eda_copies 2 --wordnet w --augment_count 7 --eda_operations swap synonyms --bt_forward a "
    "--bt_backward b --bt_beams 2 --bt_batch_size 3 --bt_cache c",
}


OTHER_DECODERS = (  # what does not go with --decode mbr
    "--int8 --decode beam --beams 2 --length_penalty 2 --early_stopping never",
    "--decode template --templates t",
    "--decode template --template_tags word",
)


NOT_DEFAULT_IN_BOTH = (
    "--model_path m --dropout 0 --lora --lora_rank 2 --lora_alpha 3 --lora_dropout 0.1 "
    "--lora_targets key --lora_rank_stabilized --lora_bias all --adapter --adapter_size 3 "
    "--adapter_placement pfeiffer --seed 1 --epochs 2 --train_rows 50 --batch_size 3 "
    "--lr 3.3e-5 --weight_decay 0.1 --schedule cosine --warmup_ratio 0.5 --gradient_accumulation 2 "
    "--max_grad_norm 0.5 --beta2 0.9 --patience 1 --use_gpu --precision bf16 --eval_batch_size 4 --merge --run_dir r "
    "--resume --tuning prompt llama_adapter top_layers --prompt_length 3 --llama_length 3 --llama_layers 2 "
    "--llama_gate head --top_layers_count 1 --save_minutes 3 --log_with wandb --shard --compile"
)


OTHER_METHODS = (  # what does not combine with those above
    "--tuning adalora prefix --adalora_start_rank 9 --adalora_rank 3 --adalora_alpha 3 --adalora_dropout 0 "
    "--adalora_targets key --adalora_warmup 0 --adalora_final 0 --adalora_interval 3 --adalora_penalty 0 "
    "--prefix_length 3 --prefix_hidden 3",
    "--model_size gpt2-xl --tuning ia3 ptuning --ia3_targets key --ptuning_length 3 --ptuning_encoder lstm "
    "--ptuning_hidden 3",
)


@pytest.mark.parametrize("settings_class", BOTH)
def test_settings_survive_json(settings_class):
    defaults, all_given = settings_class(), set()
    others = OTHER_METHODS + (OTHER_DECODERS if settings_class is SonnetSettings else ())
    for flags in (f"{NOT_DEFAULT_IN_BOTH} {NOT_DEFAULT[settings_class]}", *others):
        settings, given = parse_flags(settings_class, flags.split())
        changed = {name for name, value in flat(settings).items() if value != flat(defaults)[name]}
        assert changed == given
        all_given |= given
        for original in (settings, defaults):
            again = settings_from_dict(settings_class, json.loads(json.dumps(settings_to_dict(original))))
            assert again == original and type(again.lora) is type(original.lora)
    assert set(flat(defaults)) - all_given == {"checkpoint"}  # it excludes --resume


def test_saved_settings_are_checked_like_flags():
    with pytest.raises(UserError, match=re.escape("unknown settings ['rank'] in group lora")):
        settings_from_dict(SonnetSettings, {"lora": {"rank": 4}})
    with pytest.raises(UserError, match="--top_p must be in"):
        settings_from_dict(SonnetSettings, {"decoding": {"top_p": 0.0}})
    assert settings_from_dict(SonnetSettings, {"lora": {"lora_rank": 7}}).lora.lora_rank == 7
