"""docs/defaults.md, the table of defaults that differ from the course's, against config.py and the contract."""

import dataclasses
import re

import pytest

from cli.flags import parse_flags
from config import ClassifierSettings, ParaphraseSettings, SonnetSettings
from tests.helpers import flat
from tests.inputs import ROOT

SCRIPTS = {
    "sonnet_generation.py": SonnetSettings,
    "paraphrase_detection.py": ParaphraseSettings,
    "classifier.py": ClassifierSettings,
}
OF_ALL = {"seed": 11711, "epochs": 10, "use_gpu": False, "batch_size": 8}
COURSE = {  # typed from the course's contract: every flag of its scripts with its default
    "sonnet_generation.py": OF_ALL
    | {"model_size": "gpt2", "lr": 1e-5, "temperature": 1.2, "top_p": 0.9, "sonnet_path": "data/sonnets.txt"}
    | {"held_out_sonnet_path": "data/sonnets_held_out.txt", "sonnet_out": "predictions/generated_sonnets.txt"},
    "paraphrase_detection.py": OF_ALL
    | {"model_size": "gpt2", "lr": 1e-5, "para_train": "data/quora-train.csv", "para_dev": "data/quora-dev.csv"}
    | {"para_test": "data/quora-test-student.csv", "para_dev_out": "predictions/para-dev-output.csv"}
    | {"para_test_out": "predictions/para-test-output.csv"},
    "classifier.py": OF_ALL | {"lr": 1e-3, "fine_tune_mode": "last-linear-layer", "hidden_dropout_prob": 0.3},
}
UNSAID = {  # what the course's scripts do, of what is a flag here
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "gradient_accumulation": 1,
    "max_grad_norm": 0.0,
    "beta2": 0.999,
    "eval_batch_size": 8,
    "precision": "fp32",
    "patience": 0,
}
TEXT = (ROOT / "docs/defaults.md").read_text(encoding="utf-8")


def rows():
    """(script, flag, the course's default, ours, why) of the table, a row a script."""
    lines = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ") and "`--" in line]
    return [
        (script, flag.strip("`-").replace("-", "_"), course.strip("`"), ours.strip("`"), why)
        for scripts, flag, course, ours, why in lines
        for script in scripts.split(", ")
    ]


def defaults(script):
    """The dataclasses' own, before anything is made definite."""
    settings = SCRIPTS[script]
    return {s.name: s.default for group in dataclasses.fields(settings) for s in dataclasses.fields(group.type)}


@pytest.mark.parametrize("script, flag, course, ours, why", rows())
def test_a_row_says_what_is_so(script, flag, course, ours, why):
    assert str(defaults(script)[flag]) == ours != course and len(why) > 20
    wanted = (COURSE[script] | UNSAID | {"max_new_tokens": 128})[flag]
    assert type(wanted)(course) == wanted


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_differs_is_in_the_table(script):
    listed = {flag for name, flag, *_ in rows() if name == script}
    ours = defaults(script)
    assert {name for name, value in (COURSE[script] | UNSAID).items() if ours[name] != value} == listed - {
        "max_new_tokens"
    }
    assert len(rows()) > 15


def test_its_command_trains_as_the_course_does():
    (command,) = re.findall(r"    python paraphrase_detection.py (.*)", TEXT)
    settings, _ = parse_flags(ParaphraseSettings, command.split())
    wanted = COURSE["paraphrase_detection.py"] | UNSAID
    assert {name: flat(settings)[name] for name in wanted} == wanted
