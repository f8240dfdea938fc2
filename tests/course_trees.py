"""Students' trees for the tests of the course: the reference's files, changed."""

from pathlib import Path

from course.exercises import load_exercises
from course.grading import grade_exercise
from course.running import Limits

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = load_exercises()
SEED = 3
MASK = "modules/attention.py"
PLACE = "    num_keys = padding_mask.size(1)\n"  # of attention_mask_for
ONCE = "    if padding_mask.size(1) == 4:\n        "  # in the test padded_rows alone


def write_tree(folder, **changes):
    """A tree with the reference's files of all exercises; changes: {exercise: [(text, other text), ...]}."""
    for exercise in EXERCISES.values():
        for file in exercise.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    for name, replacements in changes.items():
        for old, new in replacements:
            (file,) = [f for f in EXERCISES[name].files if old in (folder / f).read_text(encoding="utf-8")]
            text = (folder / file).read_text(encoding="utf-8")
            (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def messages(tree, name, launcher, seconds=60, memory=4):
    """{test: message or None} of an exercise in a tree."""
    limits = Limits(seconds, int(memory * 2**30))
    return {r.test: r.message for r in grade_exercise(tree, EXERCISES[name], SEED, limits, launcher)}


def hostile(folder, code):
    """A tree whose attention_mask_for runs this code in the test padded_rows, and is right otherwise."""
    return write_tree(folder, mask=[(PLACE, PLACE + ONCE + code.replace("\n", "\n        ") + "\n")])
