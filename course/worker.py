"""The student's process: completes the student's files with the reference's other parts, runs an exercise's cases.

python -m course.worker ORDER    ORDER: a JSON file, see `Order` in course/running.py

It runs in a scratch copy of the project. What it gives back are the numbers that the student's code computed, a line of
JSON each; the right ones are not in this process. So code that ends the process, prints what it likes or changes the
tests gets no point by that.
"""

import json
import sys
from pathlib import Path

from course.sandbox import confine, limit_resources


def main(path):
    order = json.loads(Path(path).read_text(encoding="utf-8"))
    limit_resources(order["seconds"], order["memory"], order["file_bytes"])
    confine(order["scratch"])
    fault = assemble(order["exercise"], Path(order["student"]), Path.cwd())
    from course.checks import answer  # torch: after the limits

    with open(order["answers"], "a", encoding="utf-8") as file:
        for test in order["tests"]:
            given = {"fault": fault} if fault else answer(order["exercise"], test, order["seed"])
            print(json.dumps({"test": test, "given": given}), file=file, flush=True)


def assemble(exercise, student, project):
    """Put the student's files, with all other exercises as in the reference, into the project. Returns None or why not.

    student: a folder with the files that were handed in. project: the reference, without this exercise's solution.
    """
    from course.cutting import complete
    from course.exercises import load_exercises

    exercises = load_exercises()
    for file in exercises[exercise].files:
        others = [e for e in exercises.values() if e.name != exercise]
        names = [name for other in others for name in other.named(("write", "remove", "withheld"), file)]
        try:
            text = complete((student / file).read_text("utf-8"), (project / file).read_text("utf-8"), names)
        except SyntaxError as error:
            return f"{file} is no Python (line {error.lineno}: {error.msg})"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"{file} cannot be read ({type(error).__name__}: {str(error)[:100]})"
        (project / file).write_text(text, encoding="utf-8")
    return None


if __name__ == "__main__":
    main(sys.argv[1])
