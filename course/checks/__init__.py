"""What is asked of a student's code: cases, a function each.

A case makes its inputs from a seed, calls the student's code, and returns what came out as named tensors. It holds no
right answer: that is what the reference project gives for the same seed, either at once, in the teacher's process, or
recorded as numbers in the handout. A case's docstring is what a student reads when it fails.
"""

import importlib
import traceback
import zlib
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]  # of the project that is run; course/worker.py changes it
FILES = ("model", "training", "reading", "tuning")
TOLERANCE = 3e-5
MOST_NUMBERS = 20_000  # of a tensor that is kept
CASES = {}  # exercise -> {test: Case}


class Case:
    def __init__(self, run, tolerance):
        self.run, self.tolerance = run, tolerance
        self.asks = " ".join(run.__doc__.split())


def case(exercise, tolerance=TOLERANCE):
    """Register a function as a test of an exercise. It takes a Draw and returns {name: tensor}."""

    def register(run):
        CASES.setdefault(exercise, {})[run.__name__.removeprefix(f"{exercise}_")] = Case(run, tolerance)
        return run

    return register


class Draw:
    """Inputs of a case: the same seed and case give the same numbers."""

    def __init__(self, seed, exercise, test):
        self.random = torch.Generator().manual_seed(zlib.crc32(f"{seed} {exercise} {test}".encode()))

    def normal(self, *shape, scale=1.0):
        return scale * torch.randn(shape, generator=self.random)

    def whole(self, below, *shape):
        return torch.randint(below, shape, generator=self.random)

    def fill(self, module, scale=1.0):
        """Give every parameter of a module drawn numbers."""
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(self.normal(*parameter.shape, scale=scale))
        return module


def cases_of(exercise):
    """{test: Case} of an exercise."""
    for name in FILES:
        importlib.import_module(f"course.checks.{name}")
    return CASES[exercise]


def answer(exercise, test, seed):
    """What the code at hand gives in one case, fit for JSON: {"tensors": {name: ...}} or {"fault": text}."""
    try:
        run = cases_of(exercise)[test].run
        torch.manual_seed(seed)
        return {"tensors": {name: _plain(value) for name, value in run(Draw(seed, exercise, test)).items()}}
    except NotImplementedError as error:
        return {"fault": f"not written yet ({error})"}
    except (Exception, SystemExit) as error:
        return {"fault": _told(error)}


def _plain(value):
    """A tensor or a number as {"kind", "shape", "values"}; of anything else the type alone."""
    if isinstance(value, bool | int | float):
        value = torch.tensor(value)
    if not isinstance(value, torch.Tensor):
        return {"kind": type(value).__name__, "shape": [], "values": []}
    kind = "bool" if value.dtype == torch.bool else "float" if value.dtype.is_floating_point else "int"
    kept = value.detach().flatten()[:MOST_NUMBERS]
    return {"kind": kind, "shape": list(value.shape), "values": (kept.int() if kind == "bool" else kept).tolist()}


def _told(error):
    """An error in a line, with the last line of the student's that it went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_students(Path(frame.filename))]
    place = f", in {frames[-1].name}: {frames[-1].line}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:200]}{place[:200]}"


def _is_students(path):
    """Whether a file is of the project, and neither of course/ nor of a virtual environment in it."""
    return path.is_relative_to(ROOT) and not {"course", "site-packages"} & set(path.relative_to(ROOT).parts)
