"""Flags and defaults of the course, and the sizes of the released models."""

import pytest

from cli.flags import parse_flags
from config import MODEL_SIZES, ClassifierSettings, GPT2Config, ParaphraseSettings, SonnetSettings
from errors import UserError
from tests.helpers import BOTH, flat
from tuning.register import chosen_methods, default_learning_rate

# Typed from the course's contract: flag, default, another value. --lr is each method's own, see below.
FLAGS_OF_BOTH = [
    ("seed", 11711, 7),
    ("epochs", 10, 2),
    ("use_gpu", False, True),
    ("batch_size", 8, 16),
    ("lr", None, 3e-4),
    ("model_size", "gpt2", "gpt2-medium"),
    ("model_size", "gpt2", "gpt2-large"),
]


FLAGS = {
    ParaphraseSettings: [
        *FLAGS_OF_BOTH,
        ("para_train", "data/quora-train.csv", "t"),
        ("para_dev", "data/quora-dev.csv", "d"),
        ("para_test", "data/quora-test-student.csv", "e"),
        ("para_dev_out", "predictions/para-dev-output.csv", "o"),
        ("para_test_out", "predictions/para-test-output.csv", "p"),
    ],
    ClassifierSettings: [
        *FLAGS_OF_BOTH,
        ("fine_tune_mode", "last-linear-layer", "full-model"),
        ("hidden_dropout_prob", 0.3, 0.1),
        *(
            (f"{name}_{split}", f"data/ids-{name}-{file}.csv", "f")
            for name in ("sst", "cfimdb")
            for split, file in (("train", "train"), ("dev", "dev"), ("test", "test-student"))
        ),
    ],
    SonnetSettings: [
        *FLAGS_OF_BOTH,
        ("model_size", "gpt2", "gpt2-xl"),
        ("sonnet_path", "data/sonnets.txt", "s"),
        ("held_out_sonnet_path", "data/sonnets_held_out.txt", "h"),
        ("sonnet_out", "predictions/generated_sonnets.txt", "o"),
        ("temperature", 1.2, 0.7),
        ("top_p", 0.9, 1.0),
    ],
}


def as_arguments(values):
    return [
        word
        for name, value in values.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


@pytest.mark.parametrize(
    "settings_class, name, default, other", [(cls, *row) for cls, rows in FLAGS.items() for row in rows]
)
def test_every_flag_of_the_course_has_its_default(settings_class, name, default, other):
    settings, given = parse_flags(settings_class, [])
    defaults = flat(settings)
    assert defaults[name] == default and type(defaults[name]) is type(default) and given == set()
    settings, given = parse_flags(settings_class, as_arguments({name: other}))
    assert flat(settings) == defaults | {name: other} and given == {name}


def test_the_courses_flags_can_all_be_given_at_once():
    for settings_class, rows in FLAGS.items():
        values = {name: other for name, _, other in rows}
        settings, given = parse_flags(settings_class, as_arguments(values))
        assert values.items() <= flat(settings).items() and given == set(values)


@pytest.mark.parametrize("settings_class", BOTH)
@pytest.mark.parametrize(
    "flags, rate", [([], 1e-5), (["--lora"], 2e-4), (["--adapter"], 1e-4), (["--lora", "--adapter"], 1e-4)]
)
def test_each_method_has_its_own_default_learning_rate(settings_class, flags, rate):
    settings, _ = parse_flags(settings_class, flags)
    assert settings.training.lr is None
    assert default_learning_rate(chosen_methods(settings)) == rate


def test_sizes_are_the_courses():
    shapes = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20)}
    for name, shape in (shapes | {"gpt2-xl": (1600, 48, 25)}).items():
        config = GPT2Config.of_size(name)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == shape
        assert MODEL_SIZES[name][1:] == shape and config.intermediate_size == 4 * shape[0]
    assert GPT2Config() == GPT2Config.of_size("gpt2")
    with pytest.raises(UserError, match="hidden_size 30 is not divisible by num_attention_heads 4"):
        GPT2Config(hidden_size=30, num_attention_heads=4)
