"""The handout: a copy of the project without the solutions, with a README, checks and recorded numbers for students."""

import ast
import re
import shutil
from pathlib import Path

from course.cutting import definitions, take_out
from course.exercises import ROOT, TABLE, load_exercises
from course.expectations import expectations
from errors import UserError, check
from files import write_bytes
from handin.bundle import files_to_pack

SEED = 0  # of the recorded numbers; grading draws others
OF_COURSE = ("__init__", "__main__", "exercises", "check", "judging")  # of course/, beside the table and the cases
MORE = ("pyproject.toml", "Makefile", "requirements-dev.txt", ".gitignore", "predictions/.gitkeep")
MORE_FOLDERS = {"data": "*", "data/gpt2-mini": "*", "docs": "*", "experiments": "*.toml"}
NOT_FOR_STUDENTS = {"docs/teaching.md"}
STUDENT = Path(__file__).with_name("student")  # texts that only the handout has


def write_handout(out):
    """Write the handout into the folder `out`, which must not exist or be empty. Returns the number of its files.

    Raises UserError, and then leaves nothing behind.
    """
    out = Path(out)
    check(
        not out.is_symlink() and (not out.exists() or out.is_dir()), f"{out} is no folder: give the name of a new one"
    )
    check(not out.exists() or not any(out.iterdir()), f"{out} is not empty: give the name of a new folder")
    check(
        not out.resolve().is_relative_to(ROOT), f"{out} is inside the project, which would copy it: give another place"
    )
    files = contents()
    try:
        for name, data in files.items():
            write_bytes(out / name, data)
    except UserError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return len(files)


def contents():
    """{name: bytes} of the handout. Raises UserError where another file of the project has a solution in it."""
    exercises = list(load_exercises().values())
    files = {name: (ROOT / name).read_bytes() for name in _names()}
    bodies = {}
    for file in {file for e in exercises for kind in (e.write, e.withheld, e.remove) for file, _ in kind}:
        source = files[file].decode("utf-8")
        bodies |= _bodies(source, file, [name for e in exercises for name in e.named(("write", "withheld"), file)])
        files[file] = _without_solutions(source, file, exercises).encode("utf-8")
    _refuse_copies(files, bodies)
    files["pyproject.toml"] = _pyproject(files["pyproject.toml"].decode("utf-8"), exercises).encode("utf-8")
    files["README.md"] = readme(exercises).encode("utf-8")
    files["tests/test_exercises.py"] = (STUDENT / "test_exercises.py").read_bytes()
    files["course/numbers.json"] = _numbers(exercises).encode("utf-8")
    return files


def _names():
    """What of the project goes into the handout, by name."""
    found = [path.relative_to(ROOT).as_posix() for path in files_to_pack(ROOT)]
    found = [name for name in found if not name.startswith("predictions/")]
    found += [name for name in MORE if (ROOT / name).is_file()]
    for folder, pattern in MORE_FOLDERS.items():
        paths = [path for path in (ROOT / folder).glob(pattern) if path.is_file() and not path.name.startswith(".")]
        paths = [path for path in paths if folder != "data" or path.suffix in (".py", ".md")]  # no course's files
        found += [path.relative_to(ROOT).as_posix() for path in paths]
    course = TABLE.parent
    kept = [*(course / f"{name}.py" for name in OF_COURSE), TABLE, *course.glob("checks/*.py")]
    found += [path.relative_to(ROOT).as_posix() for path in kept]
    return sorted(set(found) - NOT_FOR_STUDENTS)


def _without_solutions(source, file, exercises):
    messages = {}
    for exercise in exercises:
        messages |= dict.fromkeys(exercise.named(("write",), file), f"{exercise.name}: {exercise.hint}")
        withheld = f"not in the handout: it would give the exercise {exercise.name} away"
        messages |= dict.fromkeys(exercise.named(("withheld",), file), withheld)
    return take_out(source, messages, [name for e in exercises for name in e.named(("remove",), file)])


# --- nothing else may hold a solution ---------------------------------------------------------------------------------


def _bodies(source, file, names):
    """{body as a syntax tree in text: where it stands} of functions of a file."""
    known = definitions(ast.parse(source))
    return {_body(known[name][0]): f"{file}:{name}" for name in names}


def _body(node):
    """A function's body without its docstring."""
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return "\n".join(map(ast.dump, statements))


def _refuse_copies(files, bodies):
    """Raise UserError where a function has the very body of a solution: a copy that somebody left in the project."""
    for name, data in files.items():
        if name.endswith(".py"):
            for function, (node, _) in definitions(ast.parse(data)).items():
                if isinstance(node, ast.FunctionDef) and (solved := bodies.get(_body(node))):
                    raise UserError(
                        f"{name}: {function} is a copy of the solution {solved}: take it out of the project"
                    )


# --- what only the handout has ----------------------------------------------------------------------------------------


def _pyproject(text, exercises):
    """The imports that a solution needs stay in the handout, so the linter must not ask for their removal."""
    files = sorted({file for e in exercises for kind in (e.write, e.withheld) for file, _ in kind})
    lines = "".join(f'"{file}" = ["F401"]\n' for file in files)
    comment = "# What an exercise needs is imported already.\n"
    return text.replace("[tool.ruff.lint.isort]", f"{comment}{lines}\n[tool.ruff.lint.isort]", 1)


def _numbers(exercises):
    """What the solution, and common mistakes, give in every test, as JSON."""
    import json

    numbers = {exercise.name: expectations(exercise.name, SEED) for exercise in exercises}
    return json.dumps(numbers, separators=(",", ":")) + "\n"


def readme(exercises):
    """The student's README: its template with the table of exercises."""
    rows = ["| week | exercise | what | where | points |", "|---|---|---|---|---|"]
    for exercise in exercises:
        where = "<br>".join(f"`{file}`: `{name}`" for file, name in exercise.write)
        needs = f" (after {', '.join(exercise.needs)})" if exercise.needs else ""
        what = f"{exercise.title}{needs}. {exercise.paper}"
        rows.append(f"| {exercise.week} | `{exercise.name}` | {what} | {where} | {exercise.points} |")
    withheld = ", ".join(sorted({f"`{name}`" for e in exercises for _, name in e.withheld}))
    text = (STUDENT / "README.md").read_text(encoding="utf-8")
    total = sum(exercise.points for exercise in exercises)
    values = {"TABLE": "\n".join(rows), "TOTAL": str(total), "WITHHELD": withheld, "FIRST": exercises[0].name}
    return re.sub(r"\{([A-Z]+)\}", lambda found: values[found[1]], text)
