"""What the reference and each common mistake give, for a seed: what answers are held against."""

import functools

from course.checks import answer, cases_of
from course.exercises import load_exercises
from course.mistakes import answers_of, mistakes_of


@functools.cache
def expectations(name, seed):
    """{test: [right answer, [[message, what a mistake gives], ...]]} of an exercise. A mistake that a test does not see
    is not listed for it."""
    exercise = load_exercises()[name]
    if set(exercise.tests) != set(cases_of(name)):
        raise ValueError(f"{name}: the table and course/checks name different tests")
    right = {test: answer(name, test, seed) for test in exercise.tests}
    wrong = [(message, answers_of(exercise, functions, seed)) for message, functions in mistakes_of(name)]
    return {
        test: [right[test], [[m, given[test]] for m, given in wrong if given[test] != right[test]]] for test in right
    }
