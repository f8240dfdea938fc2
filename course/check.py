"""The student's check: the code at hand against numbers that were recorded from the solution."""

from course.exercises import TABLE
from course.judging import verdict
from files import read_json

NUMBERS = TABLE.with_name("numbers.json")
SEED = 0
REMEDY = "check works in a handout; make one with `python -m course handout OUT`"


def read_numbers():
    """{exercise: {test: [right answer, [[message, what an error gives]]]}}. Raises UserError."""
    return read_json(NUMBERS, remedy=REMEDY)


def check_test(exercise, test, numbers):
    """None where the code at hand passes a test, else what a student is told."""
    from course.checks import answer, cases_of  # torch

    case, (right, mistakes) = cases_of(exercise.name)[test], numbers[exercise.name][test]
    return verdict(answer(exercise.name, test, SEED), right, mistakes, case.tolerance, case.asks)


def report(exercises, say):
    """Check exercises and say how each test went. Returns whether all passed."""
    numbers, passed, total = read_numbers(), 0, 0
    for exercise in exercises:
        say(f"{exercise.name}: {exercise.title}")
        for test, points in exercise.tests.items():
            message = check_test(exercise, test, numbers)
            total, passed = total + points, passed + (points if message is None else 0)
            say(f"    {'ok  ' if message is None else 'FAIL'}  {test}{'' if message is None else f': {message}'}")
    say(f"{passed} of {total} points")
    return passed == total
