"""A course on this project. `check` is the student's; a handout has it alone, the others are the teacher's."""

import argparse
from pathlib import Path

from cli.flags import FlagParser
from cli.script import run_script, say, start

EXAMPLES = {
    "check": """python -m course check lora
    whether an exercise is done; without a name: all of them""",
    "handout": """python -m course handout OUT
    a copy of the project without the solutions, for students""",
    "grade": """python -m course grade STUDENTS --out board.csv --feedback FOLDER
    points for one student's tree, or for a folder of such trees""",
}
NEEDS = {"check": "check", "handout": "handout", "grade": "grading"}  # the file that an action is in
ACTIONS = [name for name, file in NEEDS.items() if Path(__file__).with_name(f"{file}.py").exists()]


def parse(arguments=None):
    description = __doc__ + "\n" + "\n".join(EXAMPLES[action] for action in ACTIONS)
    parser = FlagParser(
        prog="python -m course", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("names", nargs="*", help="check: exercises; handout: the new folder; grade: the folder")
    if "grade" in ACTIONS:
        group = parser.add_argument_group("grade")
        group.add_argument("--exercises", nargs="+", metavar="NAME", help="these alone")
        group.add_argument("--out", help="write the board as CSV here")
        group.add_argument("--feedback", help="write what each student is told into this folder, NAME.txt")
        group.add_argument(
            "--gradescope", help="one tree: write Gradescope's results.json here; always ends with code 0"
        )
        group.add_argument("--seconds", type=float, default=60, help="time for the tests of an exercise (default: 60)")
        group.add_argument(
            "--memory", type=float, default=4, help="GB that a process may take besides torch (default: 4)"
        )
        group.add_argument("--seed", type=int, help="of the inputs, to grade again with the same; by default a new one")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

import secrets
import sys

from cli.tables import format_table
from course.exercises import chosen
from errors import UserError, check
from files import check_writable, write_json, write_text


def main(options):
    refuse_idle_flags(options)
    if options.action == "check":
        sys.exit(0 if check_exercises(options.names) else 1)
    check(len(options.names) == 1, f"{options.action} wants one folder (--help shows examples)")
    if options.action == "handout":
        write(options.names[0])
    else:
        grade(options.names[0], options)


def refuse_idle_flags(options):
    """A flag of `grade` given with another action would be ignored."""
    defaults = vars(parse([options.action]))
    idle = [name for name, value in vars(options).items() if name != "names" and value != defaults[name]]
    check(options.action == "grade" or not idle, f"--{' --'.join(idle)} is for grade: leave it out")


def check_exercises(names):
    from course.check import read_numbers, report

    exercises = chosen(names)
    read_numbers()  # its absence is said before torch is loaded
    return report(exercises, say)


def write(out):
    from course.handout import write_handout

    number = write_handout(out)
    say(f"{out}: {number} files; it is checked there by: python -m course check")


def grade(folder, options):
    exercises = chosen(options.exercises or [])
    for path in filter(None, (options.out, options.gradescope)):
        check_writable(path)
    check(options.seconds > 0 and options.memory > 0, "--seconds and --memory must be positive")
    from course import grading, running

    limits = running.Limits(options.seconds, int(options.memory * 2**30))
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    try:
        trees = grading.trees_in(folder)
        one = len(trees) == 1
        check(one or not options.gradescope, "--gradescope is for one tree, not for a folder of students")
        say(f"seed {seed}; {running.protections()}")
        students = grading.grade_trees(trees, exercises, seed, limits, say)
    except UserError as error:
        if not options.gradescope:
            raise
        say(f"error: {error}")
        return write_json(options.gradescope, {"score": 0.0, "output": str(error), "tests": []})
    write_results(students, options, grading)


def write_results(students, options, grading):
    if len(students) == 1:
        ((name, results),) = students.items()
        say("\n" + grading.feedback(name, results), end="")
        say("\n" + format_table(grading.table_of(results), name), end="")
        if options.gradescope:
            write_json(options.gradescope, grading.gradescope(results))
    if options.feedback:
        grading.write_feedback(options.feedback, students)
    if options.out:
        write_text(options.out, grading.board(students))


if __name__ == "__main__":
    run_script(main, *[OPTIONS])
