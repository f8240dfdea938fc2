"""What a run reads: whether base model and data are those that it was begun with, and where their files are now."""

import contextlib
import dataclasses
import hashlib
import json
import os

import torch

from cli.flags import option
from errors import UserError
from training.storage import sha256_of_record


@torch.no_grad()
def fingerprint(gpt2, tokenizer=None):
    """What a base model is: {"weights": SHA-256 of every byte of its tensors, "config": its fields, "tokenizer": ...}.

    Of a model as it was loaded, before anything was attached to it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(gpt2.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    config = {name: value for name, value in vars(gpt2.config).items() if name != "initializer_range"}
    base = {"weights": digest.hexdigest(), "config": config}
    if tokenizer is not None:
        model = json.loads(tokenizer.to_str())["model"]
        base["tokenizer"] = sha256_of_record([tokenizer.get_vocab(), model.get("merges")])
    return base


def content_hash(rows, file):
    """{"file", "rows", "sha256"} of a list of texts or tuples: what data is. (Where it lies may change.)"""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return {"file": str(file), "rows": len(rows), "sha256": digest.hexdigest()}


def check_base(record, base, source):
    """Raise UserError, saying what differs, unless a run's record is of this base model (as from `fingerprint`)."""
    known = record.get("base")
    if known is None:  # of old
        return
    config = {name: (known["config"].get(name), value) for name, value in base["config"].items()}
    differs = [f"its {name} is {now}, not {then}" for name, (then, now) in config.items() if now != then]
    if known["weights"] != base["weights"]:
        differs.append("its weights differ")
    if "tokenizer" in base and "tokenizer" in known and base["tokenizer"] != known["tokenizer"]:
        differs.append("its tokenizer differs")
    if differs:
        raise UserError(
            f"this is not the base model that {source} was trained on ({differs[0]}): give the --model_size or "
            "--model_path that it was trained with"
        )


def difference(source, what, known, now):
    """What differs of an input, in words, or None."""
    if isinstance(known, dict) and isinstance(now, dict):
        if known.get("sha256") == now.get("sha256"):
            return None
        then, here = (f"{data.get('rows')} rows, SHA-256 {str(data.get('sha256'))[:8]}" for data in (known, now))
        return (
            f"{now.get('file')} is not what {source} was trained with ({what}: {here}; there {then}): "
            "give the data of that run, or begin a new run"
        )
    if known == now:
        return None
    return f"{source} was trained with {what} = {known}, not {now}: run it as it was begun, or begin a new run"


def places_beside(folder, settings):
    """{flag: where its file or folder is, as seen from the run's folder}: all that the run reads."""
    places = {}
    for group in dataclasses.fields(settings):
        for setting in dataclasses.fields(group.type):
            value = getattr(getattr(settings, group.name), setting.name)
            if option(group.type, setting, "reads") and value:
                with contextlib.suppress(ValueError):  # on another drive of Windows there is no way from here to there
                    places[setting.name] = _each(value, lambda part: os.path.relpath(part, folder))
    return places


def find_again(folder, record):
    """The record; of what it reads and is not where it was, the paths as seen from the run's folder, if it is there.

    So a project, or a run with its data, can be moved as a whole, and used from any folder. (Whether data and base
    model are those of the run, its own checks say.)
    """
    for values in record["settings"].values():
        for name, place in record.get("places", {}).items():
            old = values.get(name) if isinstance(values, dict) else None
            new = _each(place, lambda part: os.path.normpath(os.path.join(folder, part)))
            if isinstance(old, str) and not _exists(old) and _exists(new):
                values[name] = new
    return record


def _each(paths, change):
    """The path changed or, of two (SOURCE,TARGET), both."""
    return ",".join(change(part) for part in paths.split(","))


def _exists(paths):
    return all(os.path.exists(part) for part in paths.split(","))
