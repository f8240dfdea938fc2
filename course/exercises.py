"""The table of exercises, exercises.toml, read and checked."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from errors import check

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("exercises.toml")
LONGEST_HINT = 90


@dataclass(frozen=True)
class Exercise:
    """What the table says of an exercise. Names in write, remove and withheld: "FILE:FUNCTION", as tuples of two."""

    name: str
    week: int
    title: str
    paper: str
    hint: str
    write: list
    tests: dict
    remove: list = field(default_factory=list)
    withheld: list = field(default_factory=list)
    needs: list = field(default_factory=list)

    @property
    def points(self):
        return sum(self.tests.values())

    @property
    def files(self):
        """The files that the student writes in, each once."""
        return list(dict.fromkeys(file for file, _ in self.write))

    def named(self, kinds, file):
        """The names in this file that stand under these of write, remove, withheld."""
        return [name for kind in kinds for path, name in getattr(self, kind) if path == file]


def load_exercises():
    """{name: Exercise}, in the course's order. A table that does not fit itself fails here, not at a student's."""
    entries = tomllib.loads(TABLE.read_text(encoding="utf-8"))["exercise"]
    exercises = {}
    for entry in entries:
        for kind in ("write", "remove", "withheld"):
            entry[kind] = [tuple(name.split(":")) for name in entry.get(kind, [])]
        exercise = Exercise(**entry)
        early = set(exercise.needs) <= exercises.keys()
        if exercise.name in exercises or not early or len(exercise.hint) > LONGEST_HINT:
            raise ValueError(f"{TABLE.name}: {exercise.name} is there twice, needs a later one, or has a long hint")
        exercises[exercise.name] = exercise
    return exercises


def chosen(names):
    """The exercises of these names, of none: all, as a list. Raises UserError."""
    exercises = load_exercises()
    unknown = [name for name in names if name not in exercises]
    check(not unknown, f"there is no exercise {' '.join(unknown)}: choose from {', '.join(exercises)}")
    return [exercise for name, exercise in exercises.items() if not names or name in names]
