"""Inputs of the task scripts for tests: files, flags, and checks of what comes out."""

import re
from pathlib import Path

import classifier
import paraphrase_detection
import sonnet_generation
from cli.flags import parse_flags
from config import CLASSES, ClassifierSettings, ParaphraseSettings, SonnetSettings
from tests.helpers import WORDS
from tests.tiny import forget_accelerate_state

SETTINGS = {
    sonnet_generation: SonnetSettings,
    paraphrase_detection: ParaphraseSettings,
    classifier: ClassifierSettings,
}
ROOT = Path(__file__).resolve().parents[1]


def sonnet(number, lines=14):
    return "\n".join(" ".join(WORDS[(number * 3 + line + k) % 8] for k in range(3)) + "," for line in range(lines))


def write_sonnets(path, numbers, lines=14):
    blocks = "".join(f"\n\n{number}\n\n{sonnet(number, lines)}\n" for number in numbers)
    path.write_text("A header\n" + blocks, encoding="utf-8")


def sonnet_inputs(folder, model_folder):
    """The flags of a training on files that are written into a folder, which is to be the current one."""
    write_sonnets(folder / "train.txt", range(1, 13))
    write_sonnets(folder / "prompts.txt", range(20, 23), lines=3)
    write_sonnets(folder / "gold.txt", range(30, 34))
    return (
        f"--model_path {model_folder} --sonnet_path train.txt --held_out_sonnet_path prompts.txt --epochs 2 --lr 1e-3 "
        "--gold_sonnet_path gold.txt --max_new_tokens 40 --score_seeds 2 --sonnet_out out/sonnets.txt"
    ).split()


def write_pairs(path, number, labelled=True):
    lines = ["\tid\tsentence1\tsentence2" + ("\tis_duplicate" if labelled else "")]
    for row in range(number):
        same = row % 2
        first, second = f"is it {WORDS[row % 8]} ?", f"is it {WORDS[(row if same else row + 3) % 8]} ?"
        lines.append(f"{row}\tid{row}\t{first}\t{second}" + (f"\t{float(same)}" if labelled else ""))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_reviews(path, classes, number, labelled=True):
    """Reviews as the course has them; the first word tells the class."""
    lines = ["\tid\tsentence\tsentiment"] if labelled else ["0\t\tid\tsentence"]
    for row in range(number):
        text = f" {WORDS[row % classes]} it is , {WORDS[(3 * row) % 8]} or {WORDS[(5 * row + 1) % 8]} ."
        lines.append(f"{row}\tid{row}\t{text}\t{row % classes}" if labelled else f"{row + 1}\t{row}.0\tid{row}\t{text}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_sentiment(folder, training=32, dev=10, test=7):
    """All files of classifier.py at their default places below a folder."""
    (folder / "data").mkdir()
    for name, classes in CLASSES.items():
        write_reviews(folder / f"data/ids-{name}-train.csv", classes, training)
        write_reviews(folder / f"data/ids-{name}-dev.csv", classes, dev)
        write_reviews(folder / f"data/ids-{name}-test-student.csv", classes, test, labelled=False)


def without(flags, *names):
    """The flags less these and their values."""
    pairs = [flags[i : i + 2] for i in range(0, len(flags), 2)]
    return [part for pair in pairs if pair[0] not in names for part in pair]


def run(script, flags):
    settings = SETTINGS[script]
    forget_accelerate_state()
    script.main(*parse_flags(settings, flags))


def check_sonnet_file(path, prompts):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("--Generated Sonnets-- \n\n\n0\n")
    blocks = re.split(r"\n\d+\n", text)[1:]
    assert len(blocks) == len(prompts)
    for block, prompt in zip(blocks, prompts, strict=True):
        assert block.endswith("\n\n") and block.startswith(prompt + "\n")
        assert 3 <= len(block.strip().splitlines()) <= 14


def check_prediction_file(path, ids):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id \t Predicted_Is_Paraphrase "
    assert [line.split(", ")[0] for line in lines[1:]] == ids
    assert {line.split(", ")[1] for line in lines[1:]} <= {"3919 ", "8505 "}


def check_class_file(path, ids, classes):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[0] == "id \t Predicted_Sentiment " and lines[-1] == ""
    assert [line.split(", ")[0] for line in lines[1:-1]] == ids
    assert {line.split(", ")[1] for line in lines[1:-1]} <= {f"{label} " for label in range(classes)}
