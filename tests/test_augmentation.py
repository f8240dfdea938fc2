"""Which augmented pairs survive, and augmentation from the shell."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

import paraphrase_detection
from config import AugmentationSettings
from datasets import load_paraphrase_data
from datasets.augmentation import augment, check_augmentation, differs, drawn, natural
from errors import UserError
from tests.inputs import check_prediction_file, run

ROWS = [("is it one ?", "is it an eye ?", 1, "a"), ("is it a hen ?", "is it a bee ?", 0, "b")]


OUTCOMES = {"Is it one?": "is it ONE ?", "Is it an eye?": "eye it is?", "Is it a hen?": "hen?", "Is it a bee?": ""}


class FakeTranslator:
    def __init__(self, name, *_):
        self.name = self.key = name

    def translate(self, texts):
        return [text + "!" if self.name == "there" else OUTCOMES[text[:-1]] for text in texts]


def test_a_pair_survives_only_if_both_questions_do(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.back_translation.MarianTranslator", FakeTranslator)
    settings = AugmentationSettings(
        augment=("back_translation",), bt_forward="there", bt_backward="back", bt_cache=str(tmp_path / "c.sqlite")
    )
    assert augment(ROWS, settings, seed=1) == ([], {"back_translation": {"made": 0, "dropped": 2}})
    monkeypatch.setitem(OUTCOMES, "Is it one?", "it's one?")
    settings.bt_cache = str(tmp_path / "other.sqlite")
    rows, counts = augment(ROWS, settings, seed=1)
    assert rows == [("it 's one ?", "eye it is ?", 1, "a-bt")]
    assert counts == {"back_translation": {"made": 1, "dropped": 1}}


def test_what_counts_as_changed():
    assert natural("what 's up , doc ? no .") == "What's up, doc? No."
    assert natural('can i ski ? i \'m in st . moritz . "i"') == 'Can I ski? I\'m in st. Moritz. "I"'
    assert not differs("Is IT so?", "is it so ?") and not differs("  ", "is it") and differs("it is", "is it")


def test_eda_keeps_labels_and_is_a_function_of_the_seed(tiny_wordnet):
    pytest.importorskip("nltk")
    settings = AugmentationSettings(augment=("eda",), wordnet=str(tiny_wordnet), eda_copies=3, eda_alpha=0.5)
    rows, counts = augment(ROWS, settings, seed=1)
    assert counts["eda"]["made"] + counts["eda"]["dropped"] == 6 and len(rows) == counts["eda"]["made"] > 3
    originals = {identifier: (first, second, label) for first, second, label, identifier in ROWS}
    for first, second, label, identifier in rows:
        old = originals[identifier.split("-")[0]]
        assert label == old[2] and (first, second) != old[:2] and first and second
    assert augment(ROWS, settings, seed=1)[0] == rows != augment(ROWS, settings, seed=2)[0]
    assert augment(ROWS[::-1], settings, seed=1)[0] == rows[-3:] + rows[:-3] or counts["eda"]["dropped"]


def test_as_many_pairs_are_drawn_as_were_asked_for():
    """Every pair is as likely as the others; the seed decides; the file's order stays; None is all, as it was."""
    rows = [("a", "b", 0, f"id{number}") for number in range(20)]
    assert drawn(rows, None, seed=1) is rows and drawn(rows, 20, seed=1) == rows
    assert drawn(rows, 5, seed=1) == drawn(rows, 5, seed=1) != drawn(rows, 5, seed=2)
    counts = Counter()
    for seed in range(2000):
        chosen = drawn(rows, 5, seed)
        assert len(set(chosen)) == 5 and chosen == sorted(chosen, key=rows.index)
        counts.update(chosen)
    assert min(counts.values()) > 430 and max(counts.values()) < 570  # 500 +- 4 deviations
    with pytest.raises(UserError, match=r"^--augment_count 21: there are 20 training pairs; give a smaller number$"):
        drawn(rows, 21, seed=1)


def test_both_methods_change_the_drawn_pairs_and_no_others(monkeypatch, tmp_path, tiny_wordnet, capsys):
    pytest.importorskip("nltk")
    translated = []

    class Reversing(FakeTranslator):
        def translate(self, texts):
            translated.extend(texts if self.name == "there" else [])
            return [" ".join(text.split()[::-1]) + (" x" if self.name == "there" else "") for text in texts]

    monkeypatch.setattr("datasets.back_translation.MarianTranslator", Reversing)
    rows = [(f"is it one car {n} ?", f"is it an eye {n} ?", n % 2, f"id{n}") for n in range(30)]
    settings = AugmentationSettings(
        *(("eda", "back_translation"), 7, ("synonyms",)),
        wordnet=str(tiny_wordnet), bt_forward="there", bt_backward="back", bt_cache=str(tmp_path / "c.sqlite"),
    )  # fmt: skip
    new, counts = augment(rows, settings, seed=3)
    assert "augmentation: 7 of 30 training pairs drawn (seed 3)" in capsys.readouterr().out
    chosen = [row[3] for row in drawn(rows, 7, seed=3)]
    assert [row[3] for row in new] == [f"{name}-{kind}" for kind in ("eda1", "bt") for name in chosen]
    assert counts == {name: {"made": 7, "dropped": 0} for name in ("eda", "back_translation")}
    assert len(translated) == 14  # two questions a pair: nothing is translated for nothing
    assert augment(rows, settings, seed=3)[0] == new != augment(rows, settings, seed=4)[0]


def test_operations_without_synonyms_need_no_wordnet():
    settings = AugmentationSettings(augment=("eda",), wordnet="nowhere", eda_operations=("deletion", "swap"))
    assert settings.eda_operations == ("swap", "deletion")  # the order of the flag means nothing
    check_augmentation(settings)
    rows, counts = augment([(*pair[:2], 1, pair[3]) for pair in ROWS], settings, seed=1)
    assert len(rows) == counts["eda"]["made"] > 0
    with pytest.raises(UserError, match=r"nowhere has no WordNet|needs the package nltk"):
        check_augmentation(AugmentationSettings(augment=("eda",), wordnet="nowhere", eda_operations=("insertion",)))


@pytest.mark.slow
@pytest.mark.usefixtures("short_translations")
def test_augmentation_from_the_shell(pair_flags, tmp_path, capsys, tiny_wordnet, marian_folders):
    pytest.importorskip("nltk")
    more = f"--augment eda back_translation --wordnet {tiny_wordnet} --eda_copies 2 --bt_forward {marian_folders[0]} "
    more += f"--bt_backward {marian_folders[1]} --bt_beams 1 --run_dir run --swap_questions"
    run(paraphrase_detection, [*pair_flags, *more.split()])
    shown = capsys.readouterr().out
    rows = load_paraphrase_data("run/augmented.csv")
    assert f"augmentation: {len(rows)} more training pairs" in shown and "augmentation, eda: " in shown
    assert len(rows) > 40 and {row[3].split("-")[1] for row in rows} == {"eda1", "eda2", "bt"}
    labels = {row[3]: row[2] for row in load_paraphrase_data("train.csv")}
    assert all(labels[row[3].split("-")[0]] == row[2] for row in rows)
    assert (tmp_path / "runs/back_translations.sqlite").is_file()
    check_prediction_file(tmp_path / "out/dev.csv", [f"id{row}" for row in range(10)])


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--eda_alpha 0.2", "--eda_alpha has no effect without --augment eda"),
        ("--augment eda --eda_alpha 0", r"--eda_alpha must be in \(0, 1\]"),
        ("--augment eda --bt_beams 2", "--bt_beams has no effect without --augment back_translation"),
        ("--augment eda --wordnet nowhere", "nowhere has no WordNet"),
        ("--augment back_translation --bt_forward nobody/nothing", "nobody/nothing cannot be had"),
        ("--augment eda --eda_operations swap --augment_count 33", "--augment_count 33: there are 32 training pairs;"),
        ("--augment back_translation --bt_batch_size 0", "--bt_batch_size must be at least 1"),
    ],
)
def test_flags_that_cannot_be_meant(pair_flags, flags, message):
    pytest.importorskip("nltk")
    with pytest.raises(UserError, match=message):
        run(paraphrase_detection, [*pair_flags, *flags.split()])
    assert not Path("runs").exists()  # nothing was begun


def test_a_missing_package_is_said(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sentencepiece" else real(name))
    with pytest.raises(UserError, match=r"needs the package sentencepiece: pip install -r requirements-extra\.txt"):
        check_augmentation(AugmentationSettings(augment=("back_translation",)))
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(UserError, match=r"needs the package nltk: pip install -r requirements-extra\.txt"):
        check_augmentation(AugmentationSettings(augment=("eda",), wordnet="nowhere"))
