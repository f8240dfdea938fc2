"""The sample data in data/sample: form, uniqueness, no leak between splits, and no label that shows in the surface.

End-rhymes are not tested: English spelling does not tell them (through/who, laughed/raft) without a dictionary.
"""

import csv
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from config import CLASSES
from datasets.paraphrase import load_paraphrase_data
from datasets.sentiment import load_sentiment_data
from datasets.sonnets import load_sonnets
from evaluation import accuracy, bag_of_words

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
SONNET_FILES = {  # name: (first number, how many, lines of each)
    "sonnets.txt": (1, 100, 14),
    "TRUE_sonnets_held_out_dev.txt": (101, 12, 14),
    "sonnets_held_out_dev.txt": (101, 12, 3),
    "sonnets_held_out.txt": (113, 12, 3),
}
REVIEW_FILES = {  # (data set, split): (name, how many)
    ("sst", "train"): ("ids-sst-train.csv", 200),
    ("sst", "dev"): ("ids-sst-dev.csv", 60),
    ("sst", "test"): ("ids-sst-test-student.csv", 40),
    ("cfimdb", "train"): ("ids-cfimdb-train.csv", 80),
    ("cfimdb", "dev"): ("ids-cfimdb-dev.csv", 30),
    ("cfimdb", "test"): ("ids-cfimdb-test-student.csv", 20),
}
PAIR_FILES = {"train": ("para-train.csv", 1040), "dev": ("para-dev.csv", 200), "test": ("para-test-student.csv", 200)}

TRANSLATION_FILES = {"train": 1309, "dev": 60, "test": 60}  # split: how many pairs


def sonnets_of(name):
    return load_sonnets(SAMPLE / name)


def pairs_of(split):
    """The rows as the file has them, as dicts."""
    with open(SAMPLE / PAIR_FILES[split][0], encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def words_of(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def normalised(text):
    return " ".join(words_of(text.replace("'", "")))


def lines_of(sonnet):
    return [normalised(line) for line in sonnet.split("\n")]


@pytest.mark.parametrize(
    "name", [*SONNET_FILES, *(name for name, _ in [*PAIR_FILES.values(), *REVIEW_FILES.values()]), "README.md"]
)
def test_files_are_ascii_with_plain_line_ends(name):
    data = (SAMPLE / name).read_bytes()
    assert data.isascii() and b"\r" not in data and data.endswith(b"\n")


@pytest.mark.parametrize("name", SONNET_FILES)
def test_sonnet_files_have_the_form_of_the_course(name):
    first, count, num_lines = SONNET_FILES[name]
    text = (SAMPLE / name).read_text(encoding="utf-8")
    assert "CC0 1.0" in text.split("\n\n")[0]
    assert [int(n) for n in re.findall(r"\n\n\n?(\d+)\n\n", text)] == list(range(first, first + count))
    sonnets = sonnets_of(name)
    assert len(sonnets) == count
    for sonnet in sonnets:
        lines = sonnet.split("\n")
        assert len(lines) == num_lines, sonnet
        for place, line in enumerate(lines, start=1):
            indent = "  " if place > 12 else ""
            assert line == indent + line.strip() and line.strip(), line
            assert 5 <= len(words_of(line.replace("'", ""))) <= 11, line  # pentameter, roughly
        assert num_lines == 3 or re.search(r"[.?!]\"?$", lines[-1]), lines[-1]


def test_dev_prompts_are_the_first_three_lines_of_the_gold():
    gold = sonnets_of("TRUE_sonnets_held_out_dev.txt")
    assert sonnets_of("sonnets_held_out_dev.txt") == ["\n".join(sonnet.split("\n")[:3]) for sonnet in gold]


def test_no_line_of_verse_comes_twice():
    names = [name for name in SONNET_FILES if name != "sonnets_held_out_dev.txt"]  # that one repeats the gold by design
    lines = Counter(line for name in names for sonnet in sonnets_of(name) for line in lines_of(sonnet))
    assert [line for line, times in lines.items() if times > 1] == []
    assert lines.total() == 14 * 112 + 3 * 12


@pytest.mark.parametrize("split", PAIR_FILES)
def test_pairs_are_read_by_the_loader_without_a_malformed_row(split, capsys):
    name, count = PAIR_FILES[split]
    rows = load_paraphrase_data(SAMPLE / name, split="test" if split == "test" else "train")
    assert len(rows) == count == len(pairs_of(split))
    assert "malformed" not in capsys.readouterr().out
    assert all(row[0] and row[1] for row in rows)


@pytest.mark.parametrize("split", PAIR_FILES)
def test_pairs_have_the_columns_and_labels_of_the_course(split):
    rows = pairs_of(split)
    label = [] if split == "test" else ["is_duplicate"]
    assert list(rows[0]) == ["", "id", "sentence1", "sentence2", *label]
    for row in rows:
        assert re.fullmatch(r"[0-9a-f]{25}", row["id"])
        for question in (row["sentence1"], row["sentence2"]):
            assert question == " ".join(question.split()) and question.endswith("?"), question
    if label:
        labels = Counter(row["is_duplicate"] for row in rows)
        assert set(labels) == {"0.0", "1.0"}
        assert abs(labels["1.0"] / len(rows) - 0.5) <= 0.01  # the two within 2 percentage points of each other
        runs = sum(a["is_duplicate"] != b["is_duplicate"] for a, b in pairwise(rows))
        assert 0.4 < runs / len(rows) < 0.6  # shuffled


def test_ids_and_questions_are_unique_over_all_splits():
    rows = [row for split in PAIR_FILES for row in pairs_of(split)]
    for column in ("", "id"):
        assert len({row[column] for row in rows}) == len(rows) == 1440
    questions = Counter(normalised(row[column]) for row in rows for column in ("sentence1", "sentence2"))
    assert [question for question, times in questions.items() if times > 1] == []


def test_no_split_holds_the_words_of_another_splits_question():
    """Also not in another order: the same bag of words would be the same question, asked again."""
    places = defaultdict(set)
    for split in PAIR_FILES:
        for row in pairs_of(split):
            for column in ("sentence1", "sentence2"):
                places[tuple(sorted(normalised(row[column]).split()))].add(split)
    assert [words for words, splits in places.items() if len(splits) > 1] == []


def labelled(split):
    return [(row["sentence1"], row["sentence2"], row["is_duplicate"] == "1.0") for row in pairs_of(split)]


def overlap(first, second):
    first, second = set(words_of(first)), set(words_of(second))
    return len(first & second) / len(first | second)


def threshold_accuracy(feature):
    """Dev accuracy of the threshold on `feature`, and the side of it, that are best on train."""

    def accuracy(split, threshold, above):
        return sum((feature(a, b) >= threshold) == (label == above) for a, b, label in split) / len(split)

    train, dev = labelled("train"), labelled("dev")
    thresholds = {feature(a, b) for a, b, _ in train}
    best = max(((t, above) for t in sorted(thresholds) for above in (True, False)), key=lambda c: accuracy(train, *c))
    return accuracy(dev, *best)


def majority_accuracy(key):
    """Dev accuracy of answering, for each key, what is more frequent with it on train ("no" for an unseen key)."""
    votes = defaultdict(Counter)
    for first, second, label in labelled("train"):
        votes[key(first, second)][label] += 1
    dev = labelled("dev")
    return sum((votes[key(a, b)][True] > votes[key(a, b)][False]) == label for a, b, label in dev) / len(dev)


SURFACE_BASELINES = {
    "word overlap": lambda: threshold_accuracy(overlap),
    "difference in length": lambda: threshold_accuracy(lambda a, b: abs(len(words_of(a)) - len(words_of(b)))),
    "first word of the first": lambda: majority_accuracy(lambda a, b: words_of(a)[0]),
    "first word of the second": lambda: majority_accuracy(lambda a, b: words_of(b)[0]),
    "both first words": lambda: majority_accuracy(lambda a, b: (words_of(a)[0], words_of(b)[0])),
}


@pytest.mark.parametrize("name", SURFACE_BASELINES)
def test_the_surface_does_not_give_the_label_away(name):
    accuracy = SURFACE_BASELINES[name]()
    print(f"{name}: dev accuracy {accuracy:.3f}")
    assert accuracy < 0.65


def translations_of(split):
    """The pairs (English, Korean) as the file has them."""
    text = (SAMPLE / f"translation-{split}.tsv").read_text(encoding="utf-8")
    return [tuple(line.split("\t")) for line in text.removesuffix("\n").split("\n")]


def english_words(sentence):
    return re.findall(r"[a-z']+", sentence.lower())


def korean_words(sentence):
    return re.findall(r"[가-힣]+", sentence)


@pytest.mark.parametrize("split", TRANSLATION_FILES)
def test_translations_have_two_fields_in_their_own_script(split):
    data = (SAMPLE / f"translation-{split}.tsv").read_bytes()
    assert b"\r" not in data and data.endswith(b"\n") and not data.startswith(b"\xef\xbb\xbf")
    pairs = translations_of(split)
    assert len(pairs) == TRANSLATION_FILES[split] and {len(pair) for pair in pairs} == {2}
    for english, korean in pairs:
        assert re.fullmatch(r"[A-Z][A-Za-z']*(,? [A-Za-z']+)+[.?!]", english), english
        assert 3 <= len(english.split()) <= 9 and len(english) <= 60, english
        assert re.fullmatch(r"[가-힣]+( [가-힣]+)*[.?!]", korean), korean
        assert korean == unicodedata.normalize("NFC", korean) and korean[-1] == english[-1], korean


def test_translations_are_unique_in_a_file_and_do_not_leak_into_another():
    for language in (0, 1):
        for split in TRANSLATION_FILES:
            sentences = Counter(pair[language] for pair in translations_of(split))
            assert [sentence for sentence, times in sentences.items() if times > 1] == []
        places = defaultdict(set)
        for split in TRANSLATION_FILES:
            for pair in translations_of(split):
                words = (english_words, korean_words)[language](pair[language])
                places[tuple(words)].add(split)  # without punctuation and capitals
        assert [words for words, splits in places.items() if len(splits) > 1] == []


def test_dev_and_test_translations_are_made_of_the_words_of_train():
    train = translations_of("train")
    english = Counter(word for pair in train for word in english_words(pair[0]))
    korean = {word for pair in train for word in korean_words(pair[1])}
    assert 350 <= len(english) <= 470
    for split in ("dev", "test"):
        for pair in translations_of(split):
            assert [word for word in english_words(pair[0]) if english[word] < 3] == []
            assert [word for word in korean_words(pair[1]) if word not in korean] == []


@pytest.mark.parametrize("split", TRANSLATION_FILES)
def test_korean_particles_fit_the_syllable_before_them(split):
    """Object and topic particles have a form after a vowel and one after a consonant."""
    adjectives = {"있는", "맛있는", "재미있는", "좋은", "작은", "짧은", "검은"}
    for _, korean in translations_of(split):
        for word in set(korean_words(korean)) - adjectives:
            if len(word) > 1 and word[-1] in "을를은는":
                closed = (ord(word[-2]) - ord("가")) % 28 > 0  # a syllable block with a final consonant
                assert closed == (word[-1] in "을은"), korean


# --- reviews ----------------------------------------------------------------------------------------------------------


def reviews_of(name, split):
    """The rows as the loader has them."""
    return load_sentiment_data(SAMPLE / REVIEW_FILES[name, split][0], CLASSES[name], split)


@pytest.mark.parametrize("name, split", REVIEW_FILES)
def test_reviews_have_the_columns_and_labels_of_the_course(name, split, capsys):
    file, count = REVIEW_FILES[name, split]
    with open(SAMPLE / file, encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text, delimiter="\t"))
    assert list(rows[0]) == (["0", "", "id", "sentence"] if split == "test" else ["", "id", "sentence", "sentiment"])
    for place, row in enumerate(rows):
        assert (row["0"], row[""]) == (str(place + 1), f"{place}.0") if split == "test" else row[""] == str(place)
        assert re.fullmatch(r"[0-9a-f]{25}", row["id"])
        assert row["sentence"] == " " + " ".join(row["sentence"].split()) and row["sentence"].endswith((" .", " ?"))
        assert 3 <= len(re.findall(r" [.?](?= |$)", row["sentence"])) <= 6 if name == "cfimdb" else True
    read = reviews_of(name, split)
    assert len(read) == len(rows) == count and "malformed" not in capsys.readouterr().out
    if split != "test":
        labels = Counter(row[1] for row in read)
        assert set(labels.values()) == {count // CLASSES[name]} and set(labels) == set(range(CLASSES[name]))


def test_no_sentence_of_a_review_is_in_two_reviews():
    """Nor as a bag of words; so nothing leaks from one split into another."""
    rows = [row for name, split in REVIEW_FILES for row in reviews_of(name, split)]
    assert len({row[-1] for row in rows}) == len(rows) == 430
    sentences = [s for row in rows for s in re.split(r"(?<= [.?]) ", row[0])]
    bags = Counter(" ".join(sorted(normalised(s).split())) for s in sentences)
    assert [bag for bag, times in bags.items() if times > 1] == []


@pytest.mark.parametrize("name, low, high", [("sst", 0.2, 0.5), ("cfimdb", 0.5, 0.95)])
def test_words_alone_tell_something_and_not_all(name, low, high):
    training, dev = reviews_of(name, "train"), reviews_of(name, "dev")
    score = accuracy(bag_of_words(training, [row[0] for row in dev]), [row[1] for row in dev])
    print(f"{name}: bag of words, dev accuracy {score:.3f}")
    assert low < score < high
