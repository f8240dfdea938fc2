"""The corpus that comes back in other words: the reader of WordNet, the rewriter, the files."""

import csv
import random
import subprocess
import sys
from collections import Counter

import pytest

from datasets.echoes.__main__ import clean, sentences
from datasets.echoes.questions import Phrases, QuestionPairs
from datasets.echoes.rewording import FILLERS, Rewriter
from datasets.echoes.wordnet import PARTS_OF_SPEECH, WordNet
from datasets.paraphrase import load_paraphrase_data
from errors import UserError
from tests.inputs import ROOT

# lines as wndb(5WN) has them: place, file, kind, number of words (hexadecimal), the words, pointers, the gloss
DATA = {
    "noun": """  1 This software and database is being provided to you, the LICENSEE, by Princeton University
00000010 03 n 02 animal 0 beast 0 002 ~ 00000020 n 0000 ~ 00000030 n 0000 | a living being; it moves; "the animal ran"
00000020 05 n 02 dog 0 hound 0 001 @ 00000010 n 0000 | a friend of man; "the dog barked at the old man"
00000030 05 n 01 cat 0 001 @ 00000010 n 0000 | a hunter of mice
00000040 09 n 01 guinea_pig 0 001 @i 00000010 n 0000 | a small pet
""",
    "verb": """00000050 30 v 02 learn 0 study 2 001 @ 00000060 v 0000 01 + 08 00 | get to know; "we learn to swim"
00000060 30 v 01 get 0 000 02 + 08 00 + 09 00 | come to have
""",
    "adj": '00000070 00 a 02 quick(a) 0 fast 0 000 | with speed; "a quick answer"\n',
    "adv": "00000080 02 r 01 quickly 0 000 | with speed\n",
}
INDEX = {
    "noun": [("animal", 10), ("beast", 10), ("dog", 20), ("hound", 20), ("cat", 30), ("guinea_pig", 40)],
    "verb": [("learn", 50), ("study", 50), ("get", 60)],
    "adj": [("quick", 70), ("fast", 70)],
    "adv": [("quickly", 80)],
}
TEXT = """The dog of the Old Town wants to learn a quick dance. Do you want to study the dog, the cat or the animal?
A cat likes the Old Town, and the guinea pig likes to get a fast answer. What does the beast of the Old Town want?
We learn that the hound can get quick answers. The animal likes to study the fast dance.
The quick fast dog, the cat, the animal, the beast, the hound learn, study, get answers, dance in the Old Town.
"""
TEXT += f"{TEXT.splitlines()[-1]}\n" * 8
# as many commoner words as have no content in English
WORDS = [f"{first * 2}{second * 2}" for first in "abcdefghijklmno" for second in "pqrstuvwxy"]
FILLER = "\n" + "\n".join(f"{word} " * 27 + "." for word in WORDS)


@pytest.fixture
def dictionary(tmp_path):
    folder = tmp_path / "dict"
    folder.mkdir()
    for part in PARTS_OF_SPEECH:
        kind = DATA[part].split("\n")[-2].split()[2]
        (folder / f"data.{part}").write_text(DATA[part])
        lines = [f"{word} {kind} 1 1 @ 1 0 {place:08}  \n" for word, place in INDEX[part]]
        (folder / f"index.{part}").write_text("".join(lines))
    return folder


@pytest.fixture
def rewriter(dictionary):
    counts = Counter(clean(TEXT).split())
    counts.update(FILLER.split())
    counts.update(["the", "and", "that"] * 99)
    return Rewriter(counts, WordNet(dictionary), random.Random(0))


def test_wordnet(dictionary):
    wordnet = WordNet(dictionary)
    dog = wordnet.senses["noun"]["00000020"]
    assert (dog.words, dog.definition, dog.wider) == (["dog", "hound"], "a friend of man", "00000010")
    assert dog.examples == ["the dog barked at the old man"]
    assert wordnet.senses["noun"]["00000010"].definition == "a living being; it moves"
    assert wordnet.senses["adj"]["00000070"].words == ["quick", "fast"]  # without its marker
    assert wordnet.synonyms("dog") == ["hound"] and wordnet.synonyms("quick") == ["fast"]
    assert wordnet.siblings("dog") == ["cat", "guinea pig"] and wordnet.siblings("animal") == []
    assert wordnet.is_a("guinea pig", "noun") and not wordnet.is_a("learn", "noun")
    (dictionary / "index.adv").unlink()
    with pytest.raises(UserError, match=r"index\.adv"):
        WordNet(dictionary)


def test_other_words_and_other_things(rewriter):
    kept, found = {"dog": {"dog", "hound"}, "quick": {"quick", "fast"}, "learn": {"learn", "study"}}, set()
    for _ in range(60):
        words = [word for word in rewriter.same("dog quick learn").split() if word not in FILLERS]
        assert all(word in either for word, either in zip(words, kept.values(), strict=True))
        found |= set(words)
        changed = rewriter.other("the dog and the cat", number=1).split()
        assert [old == new for old, new in zip(["the", "dog", "and", "the", "cat"], changed, strict=False)].count(
            False
        ) == 1
    assert found == set().union(*kept.values())
    assert rewriter.other("the and that") is None and rewriter.same("the", 9) == "the"
    assert rewriter.synonym("dogs") == "hounds"


def test_questions_that_ask_the_same(rewriter):
    lines = sentences(TEXT)
    assert lines[:2] == [
        "The dog of the Old Town wants to learn a quick dance.",
        "Do you want to study the dog, the cat or the animal?",
    ]
    rewriter.counts["learn"] = rewriter.counts["study"] = 8
    pairs = QuestionPairs(Phrases(lines, lines, rewriter), rewriter)
    drawn = [pairs.draw() for _ in range(2000)]
    share = sum(same for *_, same in drawn) / len(drawn)
    assert 0.37 < share < 0.47
    assert {"learn a quick dance", "get a fast answer"} & {pairs.phrases.action() for _ in range(50)}
    assert any(first == second for first, second, same in drawn if same)
    differing = [(first, second) for first, second, same in drawn if not same]
    assert sum(first == second for first, second in differing) < 0.05 * len(differing)


@pytest.mark.slow
def test_the_files(dictionary, tmp_path):
    for name in ("books", "modern"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(TEXT + FILLER)
    (tmp_path / "books/kept.txt").write_text(TEXT.replace("Old", "Kept"))
    command = [sys.executable, "-m", "datasets.echoes", "--books", "books", "--modern", "modern", "--wordnet", "dict"]
    command += ["--held_out", "kept.txt"]
    command += ["--glosses", "20", "--passages", "20", "--questions", "30", "--pairs", "40"]
    for out in ("one", "two"):
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        done = subprocess.run([*command, "--out", out], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "held-out/a.txt" in done.stdout, done.stderr
    files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    assert all((tmp_path / "two" / name).read_bytes() == content for name, content in files.items())
    assert (tmp_path / "one/modern/a.txt").read_text() + (tmp_path / "one/held-out/a.txt").read_text() == TEXT + FILLER
    assert {name.as_posix() for name, content in files.items() if b"kept" in content.lower()} == {"held-out/kept.txt"}
    rows = load_paraphrase_data(tmp_path / "one/pairs.csv")
    assert len(rows) == 40 and {row[2] for row in rows} == {0, 1}
    with open(tmp_path / "one/pairs.csv", encoding="utf-8") as file:
        assert next(csv.reader(file, delimiter="\t")) == ["id", "sentence1", "sentence2", "is_duplicate"]
    done = subprocess.run([*command, "--out", "one"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "there is one already" in done.stderr and "Traceback" not in done.stderr
    unknown = [*command, "--held_out", "kept.txt,gone.txt", "--out", "three"]
    done = subprocess.run(unknown, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no gone.txt in books" in done.stderr and not (tmp_path / "three").exists()
