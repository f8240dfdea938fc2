"""EDA's four operations against their definitions; WordNet's files."""

import random
from collections import Counter
from pathlib import Path

import pytest

from datasets import eda
from errors import UserError

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
    outcomes = {eda.change(TEXT, random.Random(seed), synonyms, 0.2) for seed in range(100)}
    assert len(outcomes) > 30
    assert eda.change(TEXT, random.Random(7), synonyms, 0.2) == eda.change(TEXT, random.Random(7), synonyms, 0.2)
    assert eda.change("? !", random.Random(7), synonyms, 0.2) == "? !"


def test_all_four_operations_draw_what_they_drew_before_there_was_a_choice():
    """Oracle: what the version without --eda_operations gave."""
    assert [eda.change(TEXT, random.Random(seed), synonyms, 0.2) for seed in range(4)] == [
        "how do i learn to drive a fast car , and why ?",
        "how motor vehicle do i learn to drive a fast car , study and why ?",
        "how do i study to drive a fast auto , and why ?",
        "how do i learn to drive a fast car , auto motor and why ?",
    ]


@pytest.mark.parametrize("operation", eda.OPERATIONS)
def test_one_operation_alone_is_the_only_one_that_happens(operation):
    tokens = TEXT.split()
    for seed in range(60):
        changed = eda.change(TEXT, random.Random(seed), synonyms, 0.2, (operation,)).split()
        added, gone = Counter(changed) - Counter(tokens), Counter(tokens) - Counter(changed)
        kinds = {
            "synonyms": bool(added) and sum(gone.values()) == 2,  # two words of eleven
            "insertion": bool(added) and not gone,
            "swap": not added and not gone,
            "deletion": not added,
        }
        assert kinds[operation], changed


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


def test_a_wordnet_that_is_a_web_page_is_one_line(tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_text("<html>not found</html>")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(eda, "DEBIANS", tmp_path)
    with pytest.raises(UserError, match=r"wordnet\.zip is damaged or no zip file"):
        eda.load_synonyms.__wrapped__()
