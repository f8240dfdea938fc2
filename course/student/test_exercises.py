"""Every test of every exercise: `python -m pytest -k lora` runs those of one."""

import pytest

from course.check import check_test, read_numbers
from course.exercises import load_exercises

TESTS = [(exercise, test) for exercise in load_exercises().values() for test in exercise.tests]


@pytest.fixture(scope="session")
def numbers():
    return read_numbers()


@pytest.mark.parametrize(("exercise", "test"), TESTS, ids=[f"{exercise.name}-{test}" for exercise, test in TESTS])
def test_exercise(exercise, test, numbers):
    message = check_test(exercise, test, numbers)
    assert message is None, message
