"""Folders of tensors and records that outlive a stop at any moment, a power loss and a damaged disk.

    NAME        the newest state: *.safetensors, *.json and manifest.json with the SHA-256 of each
    NAME.new    one that is being written; its manifest comes last
    NAME.old    the state before: kept until the next one is whole, and for the day that NAME is damaged

Every file is on the disk before the manifest, the manifest before the renames. A reader takes the first of NAME,
NAME.new and NAME.old that its manifest finds whole, and says so where that is not NAME.
"""

import contextlib
import hashlib
import json
import os
import shutil

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli.script import say
from errors import UserError
from files import read_json, sync_folder, write_json

MANIFEST = "manifest.json"


def write_folder(folder, tensors, records):
    """Replace a folder by one with these files: {name.safetensors: {key: tensor}}, {name.json: dict}. UserError."""
    new, old = (folder.with_name(f"{folder.name}.{kind}") for kind in ("new", "old"))
    with user_errors(folder):
        put_back(folder)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, named_tensors in tensors.items():
            save_file({key: t.detach().cpu().contiguous() for key, t in named_tensors.items()}, new / name)
            _publish(new / name)
        for name, record in records.items():
            write_json(new / name, record)
        write_json(new / MANIFEST, {path.name: sha256_of(path) for path in sorted(new.iterdir())})
        sync_folder(new)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)


def put_back(folder):
    """After a stop between the two renames: the newest whole folder gets its name again. For its one writer."""
    if not folder.is_dir():
        for kind in (".new", ".old"):
            other = folder.with_name(folder.name + kind)
            if other.is_dir() and not damage_of(other):
                os.rename(other, folder)
                return


def find_folder(folder, without_manifest=False):
    """The newest whole state of a folder, or None where there is none at all. Says what is damaged. Raises UserError.

    without_manifest: a folder of before manifests is taken as it is.
    """
    damages = []
    for kind in ("", ".new", ".old"):
        path = folder.with_name(folder.name + kind)
        if path.is_dir():
            damage = None if without_manifest and not (path / MANIFEST).exists() else damage_of(path)
            if damage is None:
                if damages:
                    say(f"{damages[0]}: the complete state before it is taken")
                return path
            if kind != ".new":  # half a folder beside its place is what a stop leaves: nothing is damaged
                damages.append(damage)
    if damages:
        raise UserError(f"{damages[0]}, and there is no whole state before it: train the run again")
    return None


def damage_of(folder):
    """What is wrong with a folder, in words; None: it is what was written."""
    try:
        wanted = read_json(folder / MANIFEST)
    except UserError as error:
        return str(error).split(":")[0]
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        try:
            if sha256_of(path) != digest:
                return f"{path} is damaged (its SHA-256 is not the one that was written)"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return None


def read_tensors(path):
    """{key: tensor} of a safetensors file. Raises UserError."""
    with user_errors(path):
        return load_file(path)


def sha256_of(path):
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_record(record):
    """The SHA-256 of what a JSON object says, however it is written."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _publish(path):
    """On the disk, and with the mode that the user's umask gives (safetensors writes 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def user_errors(path):
    """Errors of the file system and of damaged tensor files within this context become a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read or write {path} ({error}): check the disk's room and your permissions") from error
