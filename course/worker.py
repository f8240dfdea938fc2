"""The students' processes: one that has torch loaded already, and a child of it for each exercise.

python -m course.worker FD    orders come on stdin, a line each: the path of a JSON file (course/running.py writes it);
                              on the descriptor FD goes back "ready", then a line when each child has ended

The child takes its limits, completes the student's files with the reference's other parts, and runs the cases. What it
gives back are the numbers that the student's code computed, in a file, a line of JSON each; the right ones are in no
process of these. So code that ends the process, prints what it likes or changes the tests gets no point by that.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from course import checks
from course.checks import FILES, answer
from course.cutting import complete
from course.exercises import load_exercises
from course.sandbox import confine, limit_resources

EXERCISES = load_exercises()
# What takes its time to load; most of the solution's imports are among it.
LOADED = ("torch._dynamo", "numpy", "safetensors.torch", "tokenizers", "huggingface_hub", "tqdm", "sacrebleu")


def serve(descriptor):
    """Start a child for each order, and say when it has ended."""
    for name in [*(f"course.checks.{name}" for name in FILES), *LOADED]:
        importlib.import_module(name)
    replies = os.fdopen(descriptor, "w")
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _run(Path(line.strip()))
        ended, status = os.wait()
        while ended != child:  # in a namespace of its own this process inherits the orphans
            ended, status = os.wait()
        print(os.waitstatus_to_exitcode(status), file=replies, flush=True)


def _run(path):
    """The child. Never returns."""
    code = 1
    try:
        os.setsid()
        work(json.loads(path.read_text(encoding="utf-8")))
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def work(order):
    """Carry out an order: splice, run, answer."""
    scratch, project = Path(order["scratch"]), Path(order["scratch"]) / "project"
    os.environ |= {"HOME": str(scratch), "TMPDIR": str(scratch)}
    move_to(project)
    limit_resources(order["seconds"], order["memory"], order["file_bytes"])
    confine(order["scratch"])
    fault = assemble(order["exercise"], scratch / "student", project)
    for stream in (1, 2):  # the student's code may print what it likes
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with open(scratch / "answers", "a", encoding="utf-8") as file:
        for test in order["tests"]:
            given = {"fault": fault} if fault else answer(order["exercise"], test, order["seed"])
            print(json.dumps({"test": test, "given": given}), file=file, flush=True)


def move_to(project):
    """Import from this copy of the project from now on: the one that this process was started in is out of reach."""
    os.chdir(project)
    sys.path[0], checks.ROOT = str(project), project
    for folder in filter(Path.is_dir, project.iterdir()):
        if folder.name in sys.modules:
            sys.modules[folder.name].__path__ = [str(folder)]


def assemble(name, student, project):
    """Put the student's files, with all other exercises as in the reference, into the project. Returns None or why not.

    name: the exercise. student: a folder with what was handed in. project: the reference without this exercise.
    """
    for file in EXERCISES[name].files:
        others = [exercise for exercise in EXERCISES.values() if exercise.name != name]
        theirs = [one for other in others for one in other.named(("write", "remove", "withheld"), file)]
        try:
            text = complete((student / file).read_text("utf-8"), (project / file).read_text("utf-8"), theirs)
        except SyntaxError as error:
            return f"{file} is no Python (line {error.lineno}: {error.msg})"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"{file} cannot be read ({type(error).__name__}: {str(error)[:100]})"
        (project / file).write_text(text, encoding="utf-8")
    return None


if __name__ == "__main__":
    serve(int(sys.argv[1]))
    os._exit(0)  # to take torch down in good order takes its time
