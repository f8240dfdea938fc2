"""Reading input files (UTF-8, any line ends) and writing output files (whole or not at all)."""

import contextlib
import os
from pathlib import Path

from errors import UserError


def read_text(path):
    """The text of a UTF-8 file (a byte-order mark is dropped), line ends as "\\n". Raises UserError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path, or put the course's file there") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder: give the file itself") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path} is empty: put the data there first")
    return text


def write_text(path, text):
    """Write a UTF-8 file whole or not at all: first beside its place, then renamed. Makes the folder if need be."""
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where nothing could be written there is nothing to remove
            unfinished.unlink()
        raise UserError(f"cannot write {path} ({error.strerror}): make room, or choose another place") from error


def check_writable(path):
    """Raise UserError now if `write_text(path, ...)` would fail later, when hours of training lie behind."""
    path = Path(path)
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file to write")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write {path}: {existing} is not a folder that you may write to; choose another place")
