"""EDA against its definition, WordNet real and tiny, back-translation with a tiny Marian pair, stops included."""

import importlib.util
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import paraphrase_detection
from config import AugmentationSettings
from datasets import eda, load_paraphrase_data
from datasets.augmentation import augment, check_augmentation, differs, natural
from datasets.back_translation import MarianTranslator, TranslationCache, back_translate, translate_all
from errors import UserError
from tests.test_scripts import check_prediction_file, pair_flags, run  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]
TEXT = "how do i learn to drive a fast car , and why ?"
SYNONYMS = {"learn": ["acquire", "study"], "drive": ["motor"], "fast": ["quick"], "car": ["auto", "motor vehicle"]}


def synonyms(word):
    return SYNONYMS.get(word, [])


def apply(operation, alpha=0.2, seed=0, text=TEXT):
    tokens = text.split()
    places = [place for place, token in enumerate(tokens) if token[0].isalnum()]
    return operation(tokens, places, alpha, random.Random(seed), synonyms)


def test_replacement_takes_synonyms_and_leaves_stop_words():
    tokens, seen = TEXT.split(), Counter()
    for seed in range(200):
        changed = apply(eda.replace, seed=seed)
        assert len(changed) == len(tokens)
        places = [place for place, (old, new) in enumerate(zip(tokens, changed, strict=True)) if old != new]
        assert len(places) == 2  # a fifth of eleven words
        assert all(changed[place] in SYNONYMS[tokens[place]] for place in places)
        seen.update(tokens[place] for place in places)
    assert set(seen) == set(SYNONYMS) and max(seen.values()) < 1.5 * min(seen.values())  # each alike


def test_insertion_adds_synonyms_between_the_words():
    tokens = TEXT.split()
    for seed in range(100):
        changed = apply(eda.insert, seed=seed)
        added = Counter(changed) - Counter(tokens)
        assert sum(added.values()) == 2 and set(added) <= {name for names in SYNONYMS.values() for name in names}
        assert changed[-1] == "?"  # nothing comes after the mark
        left = list(changed)
        for name in added.elements():
            left.remove(name)
        assert left == tokens


def test_swaps_move_words_and_no_marks():
    tokens = TEXT.split()
    for seed in range(100):
        changed = apply(eda.swap, seed=seed)
        assert sorted(changed) == sorted(tokens) and changed[-1] == "?" and changed[9] == tokens[9] == ","
        assert sum(a != b for a, b in zip(tokens, changed, strict=True)) in (0, 3, 4)
    assert apply(eda.swap, text="why ?") == ["why", "?"]


def test_deletion_has_its_rate_and_leaves_a_word():
    left = [len(apply(eda.delete, alpha=0.3, seed=seed)) for seed in range(2000)]
    assert sum(left) / len(left) == pytest.approx(2 + 11 * 0.7, abs=0.15)
    for seed in range(50):
        assert len(apply(eda.delete, alpha=1.0, seed=seed)) == 3  # one word and two marks


def test_change_is_one_operation_and_a_function_of_the_draw():
    outcomes = {eda.change(TEXT, 0.2, random.Random(seed), synonyms) for seed in range(100)}
    assert len(outcomes) > 30
    assert eda.change(TEXT, 0.2, random.Random(7), synonyms) == eda.change(TEXT, 0.2, random.Random(7), synonyms)
    assert eda.change("? !", 0.2, random.Random(7), synonyms) == "? !"


# ---------------------------------------------------------------------------------------------------------------------
# WordNet
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_wordnet(tmp_path_factory):
    """WordNet's file format (wndb(5WN)) with two synsets: car, auto, motor_vehicle; one, eye."""
    folder = tmp_path_factory.mktemp("wordnet")
    for kind in ("noun", "verb", "adj", "adv"):
        (folder / f"{kind}.exc").write_text("")
        (folder / f"data.{kind}").write_text("")
        (folder / f"index.{kind}").write_text("")
    data, index = "", ""
    for words in (["car", "auto", "motor_vehicle"], ["one", "eye"]):
        offset = f"{len(data):08d}"
        data += f"{offset} 03 n {len(words):02x} " + " ".join(f"{word} 0" for word in words) + " 000 | a gloss  \n"
        index += "".join(f"{word} n 1 0 1 0 {offset}  \n" for word in words)
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text("\n".join(sorted(index.splitlines())) + "\n")
    return folder


def test_synonyms_from_files_in_wordnets_format(tiny_wordnet):
    pytest.importorskip("nltk")
    found = eda.load_synonyms(tiny_wordnet)
    assert found("car") == ["auto", "motor vehicle"] and found("eye") == ["one"] and found("zorp") == []


def test_synonyms_from_the_real_wordnet():
    pytest.importorskip("nltk")
    if not Path("/usr/share/wordnet/index.noun").is_file():
        pytest.skip("Debian's wordnet-base is not installed")
    found = eda.load_synonyms()
    assert "automobile" in found("car") and "car" not in found("car")
    assert {"rapid", "quick"} & set(found("fast")) or "firm" in found("fast")
    assert found("qwertyuiop") == []


def test_a_missing_wordnet_says_how_to_get_it(tmp_path):
    pytest.importorskip("nltk")
    with pytest.raises(UserError, match=r"has no WordNet .*python -m nltk\.downloader wordnet"):
        eda.load_synonyms(tmp_path)
    for name in ("index.noun", "data.noun"):
        (tmp_path / name).write_text("damaged")
    with pytest.raises(UserError, match="cannot be read"):
        eda.load_synonyms(tmp_path)("car")


# ---------------------------------------------------------------------------------------------------------------------
# Back-translation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marian_folders(tmp_path_factory):
    """Two tiny random Marian models, saved as the real ones are."""
    sentencepiece, transformers = pytest.importorskip("sentencepiece"), pytest.importorskip("transformers")
    import torch

    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"marian{seed}")
        text = folder / "text.txt"
        text.write_text("\n".join(f"is it {a} or {b} ? how do i see the {b}" for a in WORDS for b in WORDS))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / "source"), vocab_size=28, minloglevel=2
        )
        (folder / "source.model").rename(folder / "source.spm")
        (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
        vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "tokenizer_config.json").write_text('{"source_lang": "eng", "target_lang": "fra"}')
        torch.manual_seed(seed)
        pad = vocabulary["<pad>"]
        config = transformers.MarianConfig(
            vocab_size=len(vocabulary), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.8,
            pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, forced_eos_token_id=0,
        )  # fmt: skip
        model = transformers.MarianMTModel(config)
        model.generation_config.max_length = 20
        model.save_pretrained(folder)
        folders.append(folder)
    return folders


WORDS = ["yes", "no", "eye", "one", "noon", "yonder", "hen", "bee"]
QUESTIONS = [f"is it {word} ?" for word in WORDS] + [f"how do i see the {word} {word} {word} ?" for word in WORDS]


@pytest.fixture
def short_translations(monkeypatch):
    monkeypatch.setattr("datasets.back_translation.LONGEST", 12)


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


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------

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


@pytest.mark.usefixtures("short_translations")
def test_augmentation_from_the_shell(pair_flags, tmp_path, capsys, tiny_wordnet, marian_folders):  # noqa: F811
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
        ("--augment back_translation --bt_batch_size 0", "--bt_batch_size must be at least 1"),
    ],
)
def test_flags_that_cannot_be_meant(pair_flags, flags, message):  # noqa: F811
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
