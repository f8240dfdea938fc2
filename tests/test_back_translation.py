"""Back-translation against transformers, its cache, and a kill half-way."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.back_translation import MarianTranslator, TranslationCache, back_translate, translate_all
from errors import UserError
from tests.helpers import WORDS

ROOT = Path(__file__).resolve().parents[1]


QUESTIONS = [f"is it {word} ?" for word in WORDS] + [f"how do i see the {word} {word} {word} ?" for word in WORDS]


@pytest.mark.usefixtures("short_translations")
def test_translations_are_those_of_transformers(marian_folders, tmp_path):
    import transformers

    folder = marian_folders[0]
    cache = TranslationCache(tmp_path / "cache.sqlite")
    found = translate_all(QUESTIONS, MarianTranslator(str(folder), beams=2), cache, 4)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    model = transformers.MarianMTModel.from_pretrained(folder).eval()
    for text in QUESTIONS:
        ids = model.generate(**tokenizer(text, return_tensors="pt"), num_beams=2, do_sample=False, max_length=12)
        assert found[text] == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert len(set(found.values())) > 3


@pytest.mark.usefixtures("short_translations")
def test_the_cache_is_keyed_by_text_and_model(marian_folders, tmp_path, monkeypatch):
    forward, backward = (MarianTranslator(str(folder), beams=1) for folder in marian_folders)
    path = tmp_path / "new" / "cache.sqlite"
    first = back_translate(QUESTIONS, forward, backward, TranslationCache(path), 4)
    assert set(first) == set(QUESTIONS) and forward.key != backward.key

    def forbidden(self, texts):
        raise AssertionError(f"translated again: {texts}")

    monkeypatch.setattr(MarianTranslator, "translate", forbidden)
    again = [MarianTranslator(str(folder), beams=1) for folder in marian_folders]
    assert back_translate(QUESTIONS, *again, TranslationCache(path), 4) == first
    with pytest.raises(AssertionError, match="translated again"):
        back_translate(QUESTIONS, *reversed(again), TranslationCache(path), 4)
    with pytest.raises(AssertionError, match="translated again"):  # other beams, other translations
        back_translate(QUESTIONS, *(MarianTranslator(str(f), beams=3) for f in marian_folders), TranslationCache(path))


PROGRAM = """
import os, signal, sys
import datasets.back_translation as bt
folders, cache, log, batches = sys.argv[1:3], sys.argv[3], sys.argv[4], int(sys.argv[5])
bt.LONGEST = 12
translate = bt.MarianTranslator.translate
def logged(self, texts):
    global batches
    if batches == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    batches -= 1
    done = translate(self, texts)
    with open(log, "a") as file:
        file.writelines(f"{self.name}\\t{text}\\n" for text in texts)
    return done
bt.MarianTranslator.translate = logged
texts = open(sys.argv[6]).read().splitlines()
models = [bt.MarianTranslator(folder, beams=1) for folder in folders]
back = bt.back_translate(texts, *models, bt.TranslationCache(cache), 3)
open(log + ".result", "w").write("".join(f"{text}\\t{back[text]}\\n" for text in texts))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_killed_half_way_it_translates_nothing_twice(marian_folders, tmp_path):
    (tmp_path / "texts").write_text("\n".join(QUESTIONS))

    def start(name, batches):
        command = [sys.executable, "-c", PROGRAM, *map(str, marian_folders), str(tmp_path / f"{name}.sqlite")]
        command += [str(tmp_path / name), str(batches), str(tmp_path / "texts")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert start("stopped", 4).returncode == -signal.SIGKILL
    assert not (tmp_path / "stopped.result").exists()
    for name in ("stopped", "whole"):
        done = start(name, -1)
        assert done.returncode == 0, done.stderr
    lines = (tmp_path / "stopped").read_text().splitlines()
    assert len(lines) == len(set(lines)) and sorted(lines) == sorted((tmp_path / "whole").read_text().splitlines())
    assert (tmp_path / "stopped.result").read_text() == (tmp_path / "whole.result").read_text()


def test_models_that_are_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no Marian translation model"):
        MarianTranslator(str(tmp_path)).translate(["a"])
    with pytest.raises(UserError, match="cannot be had"):
        MarianTranslator("nobody/no-such-model")
    (tmp_path / "cache").write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(UserError, match="cannot be opened"):
        TranslationCache(tmp_path / "cache")


def test_a_damaged_cache_is_one_line_or_as_it_was(tmp_path):
    """150 damages of the file; what is still read is what was written."""
    draw, path = random.Random(0), tmp_path / "cache.sqlite"
    written = {f"text {number} " * 9: f"translation {number} " * 9 for number in range(60)}
    cache = TranslationCache(path)
    cache.add("model", written)
    cache.file.close()
    whole, refused = path.read_bytes(), 0
    for number in range(150):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: draw.randrange(len(data))]
        else:
            start = draw.randrange(0, len(data), 512) if number % 3 == 1 else draw.randrange(100)
            data[start : start + 64] = draw.randbytes(64)
        path.write_bytes(data)
        try:
            cache = TranslationCache(path)
            assert cache.known("model").items() <= written.items()
            cache.add("model", {"a": "b"})
        except UserError as error:
            assert "cache.sqlite" in str(error)
            refused += 1
        else:
            cache.file.close()
        for leftover in tmp_path.glob("cache.sqlite-*"):
            leftover.unlink()
    assert refused > 75
