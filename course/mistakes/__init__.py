"""Common mistakes, as code: what each gives is held against what a student's code gives, so that a message can name it.

For the teacher alone: a wrong body is nearly a right one. `answers_of` runs the cases with a wrong function in the
place of the reference's. A message says what happens, and what should, not how it is written.
"""

import contextlib
import importlib

from course.checks import FILES, answer

MISTAKES = {}  # exercise -> [(message, {"module:Class.function": wrong function})]


def mistake(exercise, message, *targets):
    """Register a wrong function, for each of the targets (or a dict of them)."""

    def register(wrong):
        MISTAKES.setdefault(exercise, []).append((message, dict.fromkeys(targets, wrong)))
        return wrong

    return register


def answers_of(exercise, wrong, seed):
    """{test: answer} with these wrong functions."""
    with contextlib.ExitStack() as stack:
        for target, function in wrong.items():
            stack.enter_context(_patched(target, function))
        return {test: answer(exercise.name, test, seed) for test in exercise.tests}


def mistakes_of(exercise):
    """[(message, wrong functions)] of an exercise, by name."""
    for name in FILES:
        importlib.import_module(f"course.mistakes.{name}")
    return MISTAKES.get(exercise, [])


@contextlib.contextmanager
def _patched(target, function):
    module, _, path = target.partition(":")
    owner, *names = importlib.import_module(module), *path.split(".")
    for name in names[:-1]:
        owner = getattr(owner, name)
    kept = vars(owner)[names[-1]]
    setattr(owner, names[-1], function)
    try:
        yield
    finally:
        setattr(owner, names[-1], kept)
