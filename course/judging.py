"""Whether an answer is right and, if not, what a student is told. Pure Python: an answer may hold anything.

An answer is what `course.checks.answer` gives: {"tensors": {name: {"kind", "shape", "values"}}} or {"fault": text}.
"""

import math


def verdict(given, right, mistakes, tolerance, asks):
    """None for a right answer, else a message. right: an answer. mistakes: [(message, answer)], what errors give."""
    if not isinstance(given, dict) or not isinstance(given.get("tensors"), dict):
        fault = given.get("fault") if isinstance(given, dict) else None
        return f"{fault if isinstance(fault, str) else 'no answer that can be read'}. Asked: {asks}"[:900]
    difference = differs(given["tensors"], right["tensors"], tolerance)
    if difference is None:
        return None
    for message, wrong in mistakes:
        looks_so = "tensors" in wrong and differs(given["tensors"], wrong["tensors"], tolerance) is None
        if looks_so and differs(wrong["tensors"], right["tensors"], tolerance) is not None:
            return f"{message}. Asked: {asks}"
    return f"{difference}. Asked: {asks}"


def differs(given, wanted, tolerance):
    """None where all tensors are near the wanted ones, else how the first that is not differs."""
    for name, right in wanted.items():
        ours = given.get(name)
        if not _is_tensor(ours):
            return f"{name}: nothing that can be read"
        if ours["kind"] not in ("float", "int", "bool"):
            return f"{name} must be a tensor, yours is {_short(ours['kind'])}"
        if "bool" in (right["kind"], ours["kind"]) and right["kind"] != ours["kind"]:
            return f"{name} must be {right['kind']}, yours is {ours['kind']}"
        if ours["shape"] != right["shape"]:
            return f"{name} must have the shape {right['shape']}, yours has {_short(ours['shape'])}"
        if difference := _numbers_differ(name, ours["values"], right, tolerance):
            return difference
    return None


def _is_tensor(entry):
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return False
    shape, values = entry.get("shape"), entry.get("values")
    return isinstance(shape, list) and isinstance(values, list) and all(isinstance(v, int | float) for v in values)


def _numbers_differ(name, values, right, tolerance):
    """How numbers differ from those of `right`, or None."""
    wanted = right["values"]
    if len(values) != len(wanted):
        return f"{name} has {len(values)} numbers, not {len(wanted)}"
    try:
        values = [float(value) for value in values]
    except OverflowError:
        return f"{name} holds numbers that no float can hold"
    if not all(map(math.isfinite, values)):
        return f"{name} holds NaN or infinity"
    excess = [abs(a - b) - tolerance * (1 + abs(b)) for a, b in zip(values, wanted, strict=True)]
    if not excess or max(excess) <= 0:
        return None
    if right["kind"] == "bool" and not right["shape"]:
        return f"{name} must be {bool(wanted[0])}, yours is {bool(values[0])}"
    worst = max(range(len(excess)), key=excess.__getitem__)
    place, number = _index(worst, right["shape"]), sum(e > 0 for e in excess)
    at = f" at {place}" if place else ""
    return f"{name}: {number} of {len(wanted)} numbers are wrong; the one{at} is {values[worst]:.5g}"


def _index(number, shape):
    """The place of the number in a tensor of this shape, as a list."""
    place = []
    for size in reversed(shape):
        place.insert(0, number % size)
        number //= size
    return place


def _short(value):
    return str(value)[:60]
