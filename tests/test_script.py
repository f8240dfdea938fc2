"""How scripts end, and that --help needs nothing heavy."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.script import on_stop, run_script
from config import ClassifierSettings, ParaphraseSettings, SonnetSettings, TranslationSettings
from errors import UserError

ROOT = Path(__file__).resolve().parents[1]


SCRIPTS = {
    "sonnet_generation.py": SonnetSettings,
    "paraphrase_detection.py": ParaphraseSettings,
    "classifier.py": ClassifierSettings,
    "translation.py": TranslationSettings,
}


def test_run_script_turns_user_errors_into_one_line_and_leaves_bugs_alone(capsys):
    def fail(error):
        raise error

    assert run_script(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(SystemExit) as stop:
        run_script(fail, UserError("a message\n  in two lines"))
    assert stop.value.code == 2 and capsys.readouterr() == ("", "error: a message in two lines\n")
    on_stop("go on with: --resume")
    with pytest.raises(SystemExit) as stop:
        run_script(fail, KeyboardInterrupt())
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_script(fail, ZeroDivisionError())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_and_imports_nothing_heavy(script):
    """Python lists each imported module on stderr; that list, unlike a stopwatch, is the same on every machine."""
    outcome = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / script, "--help"], capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0 and max(map(len, outcome.stdout.splitlines())) <= 80
    imported = {line.rsplit("|", 1)[1].strip() for line in outcome.stderr.splitlines() if "import time:" in line}
    assert {"argparse", "config"} <= imported  # the list is there
    heavy = {"torch", "numpy", "accelerate", "transformers", "tokenizers", "sacrebleu", "huggingface_hub", "datasets"}
    assert not heavy & imported
    settings_class = SCRIPTS[script]
    assert " ".join(settings_class.__doc__.split()) in " ".join(outcome.stdout.split())
    for group in dataclasses.fields(settings_class):
        title, _, description = " ".join(group.type.__doc__.split()).partition(": ")
        section = outcome.stdout.split(f"\n{title}:\n", 1)[1]
        if description:
            shown, section = section.split("\n\n", 1)
            assert " ".join(shown.split()) == description
        section = section.split("\n\n")[0]
        assert re.findall(r"^  --(\w+)", section, re.MULTILINE) == [s.name for s in dataclasses.fields(group.type)]
