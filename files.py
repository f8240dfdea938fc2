"""Files: read with clear errors, written whole or not at all, and on the disk before they count as written."""

import contextlib
import difflib
import gzip
import json
import os
import stat
import unicodedata
import zlib
from pathlib import Path

from errors import UserError, check

PROJECT = Path(__file__).resolve().parent  # where the scripts' default paths count from
SAMPLE = Path("data/sample")
LONGEST_NAME = 255  # bytes of a file's name on nearly every file system
TOLD_BY = 2**16  # bytes by which an encoding is told


def read_text(path):
    """The text of a UTF-8 file (a byte-order mark is dropped), line ends as "\\n"; .gz is unpacked. UserError."""
    with _reading(path), _opened(path) as file:
        text = file.read()
    check(text.strip(), f"{path} is empty: put the data there first")
    return text


def _opened(path):
    unpacks = Path(path).suffix == ".gz"
    return gzip.open(path, "rt", encoding="utf-8-sig") if unpacks else Path(path).open(encoding="utf-8-sig")


def read_blocks(path, size):
    """The same text in blocks of so many characters at most, so that no more than that is held in memory."""
    with _reading(path), Path(path).open(encoding="utf-8-sig") as file:
        try:
            while block := file.read(size):
                yield block
        except UnicodeDecodeError as error:  # its places count within what was decoded last
            raise not_utf8(path, error, file.buffer.tell() - len(error.object)) from error


@contextlib.contextmanager
def _reading(path):
    """Within this context what goes wrong with reading text is a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        other = in_another_form(path)
        known = f"{other!r} is there in another Unicode form: type it with the Tab key" if other else ""
        raise UserError(f"{path} does not exist: {known or where_it_may_be(path)}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder: give the file itself") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): download it again, or give the text itself") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def where_it_may_be(path):
    """What to do about a file or folder that is not there: the end of a message."""
    path, here = Path(path), Path.cwd()
    if not path.is_absolute() and here != PROJECT and (PROJECT / path).exists():
        return f"it is in the project's folder, so run from there: cd {PROJECT}"
    if near := _neighbour(path):
        return f"did you mean {near}?"
    if path.parent == Path("data") or path.absolute().parent == PROJECT / "data":
        sample = SAMPLE / path.name.replace("quora-", "para-")
        advice = f"`python {Path('data/download.py')}` gets the course's files"
        advice += f", {sample} is a small one to try" if (PROJECT / sample).exists() else ""
        return advice + (f"; run from the project's folder: cd {PROJECT}" if here != PROJECT else "")
    return "check the path"


def _neighbour(path):
    """The file or folder beside a path whose name is most like its own, whatever it ends with; None: none is."""
    with contextlib.suppress(OSError):
        siblings = [other for other in sorted(path.parent.iterdir()) if other.name != path.name]
        others = {other.stem.replace("_", "-"): other for other in siblings}
        near = difflib.get_close_matches(path.stem.replace("_", "-"), others, n=1, cutoff=0.9)
        return others[near[0]] if near else None


def not_utf8(path, error, start=0):
    """The UserError of a file that is no UTF-8, with the encoding that it looks like. start: where the bytes of the
    UnicodeDecodeError begin in the file."""
    kind = _encoding_of(error.object[:TOLD_BY])
    how = f"; it looks like {kind}: in Excel that is the type CSV UTF-8, else iconv -f {kind} -t UTF-8 OLD > NEW"
    return UserError(f"{path} is not UTF-8 text (byte {start + error.start}): save it as UTF-8{how if kind else ''}")


def _encoding_of(data):
    """The name of another encoding where it is plain that these bytes are of it: UTF-16, or Korean Windows' CP949."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    letters = [letter for letter in data.decode("cp949", errors="replace") if not letter.isascii()]
    korean = sum("가" <= letter <= "힣" for letter in letters)
    return "CP949" if korean and korean >= 0.8 * len(letters) else None


def in_another_form(path):
    """A path that is there and looks like this one, or None: macOS takes letters such as Korean's apart (NFD)."""
    path = Path(path)
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        names = [part] if (found / part).exists() else _names_like(found, part)
        if not names:
            return None
        found /= names[0]
    return str(found)


def _names_like(folder, name):
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [other for other in names if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name)]


def unfinished(path):
    """Where a file or folder is written before it is whole: beside it, another place for each process."""
    start = path.name.encode("utf-8", errors="ignore")[:100].decode("utf-8", errors="ignore")  # a name has 255 bytes
    return path.with_name(f".{start}.{os.getpid()}.unfinished")


def read_json(path, fields=None, optional=None, remedy="restore it, or make it again"):
    """The object in a JSON file, a dict. Raises UserError for anything else, and where a field is not what it must be.

    fields: {name: type, or tuple of types} that must be there; optional: likewise, but may be absent. An int counts as
    a float, a bool never as a number; None stands for null. remedy: what the message tells the user to do.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {remedy}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    except (ValueError, RecursionError) as error:  # ValueError: damaged JSON, text that is not UTF-8, endless digits
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    check(isinstance(values, dict), f"{path} is damaged (it holds no object): {remedy}")
    for name, kinds in {**(fields or {}), **(optional or {})}.items():
        check(name in values or name in (optional or {}), f"{path} is damaged (it has no {name}): {remedy}")
        if name in values and not is_a(values[name], kinds):
            raise UserError(f"{path} is damaged ({name} is {shortened(values[name])}): {remedy}")
    return values


def is_a(value, kinds):
    """Whether a value from JSON has one of these types."""
    for kind in kinds if isinstance(kinds, tuple) else (kinds,):
        if kind is None and value is None:
            return True
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (kind is float and number) or (kind is int and number and isinstance(value, int)):
            return True
        if kind not in (None, int, float) and isinstance(value, kind):
            return True
    return False


def shortened(value):
    """What a value from JSON looks like, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_text(path, text):
    """Write a UTF-8 file as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path, data):
    """Write a file whole or not at all: beside its place, synced, then renamed. Makes the folder if need be.

    A symbolic link is followed: what it points to is replaced, the link stays. Raises UserError.
    """
    path = Path(path)
    target = path.resolve() if path.is_symlink() else path
    beside = unfinished(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
        sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): make room, or choose another place") from error
    finally:
        with contextlib.suppress(OSError):  # where it was renamed, or never made, there is nothing to remove
            beside.unlink()


def write_json(path, record):
    """Write a dict as JSON, whole or not at all. Raises UserError."""
    write_text(path, json.dumps(record, indent=2) + "\n")


def sync_folder(folder):
    """Put a folder's list of names on the disk: only then does a rename in it outlive a power loss."""
    if os.name == "nt":  # Windows cannot open folders, and needs no such call
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path):
    """Raise UserError now if `write_text(path, ...)` would fail later, when hours of training lie behind."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another place") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder: give the name of a file to write")
    if mode is not None and not stat.S_ISREG(mode):
        raise UserError(f"{path} is a device, not a file: writing would replace it; choose another place")
    longest = max(len(os.fsencode(part)) for part in path.parts)
    check(
        longest <= LONGEST_NAME, f"a name in {path} has {longest} bytes, file systems take {LONGEST_NAME}: shorten it"
    )
    target = path.resolve() if path.is_symlink() else path
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write {path}: {existing} is not a folder that you may write to; choose another place")
