"""Files are written whole or not at all, and what cannot be written is said before."""

import os
import re
from pathlib import Path

import pytest

from errors import UserError
from files import check_writable, write_text


def test_write_text_makes_the_folder_and_writes_utf_8_with_plain_line_ends(tmp_path):
    path = tmp_path / "a" / "b" / "out.txt"
    write_text(path, "é\nline\n")
    assert path.read_bytes() == b"\xc3\xa9\nline\n"
    write_text(str(path), "again")
    assert path.read_bytes() == b"again" and os.listdir(path.parent) == ["out.txt"]


@pytest.mark.parametrize("failing", ["write", "rename"])
@pytest.mark.parametrize("existing", [True, False])
def test_write_text_writes_whole_or_not_at_all(tmp_path, monkeypatch, failing, existing):
    path = tmp_path / "out.txt"
    if existing:
        path.write_text("old")

    def no_room(handle):
        raise OSError(28, "No space left on device")

    def no_rename(source, target):
        assert Path(source).read_text() == "a new text" and Path(target) == path
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(os, "fsync", no_room)
    else:
        monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(UserError) as error:
        write_text(path, "a new text")
    assert str(error.value) == (f"cannot write {path} (No space left on device): make room, or choose another place")
    assert os.listdir(tmp_path) == (["out.txt"] if existing else [])
    assert not existing or path.read_text() == "old"


@pytest.mark.parametrize("name", ["a_file/out.txt", "a_folder"])
def test_write_text_where_nothing_can_be_written_is_a_user_error(tmp_path, name):
    (tmp_path / "a_file").write_text("old")
    (tmp_path / "a_folder").mkdir()
    with pytest.raises(UserError, match=f"cannot write {re.escape(str(tmp_path / name))} "):
        write_text(tmp_path / name, "new")
    assert sorted(os.listdir(tmp_path)) == ["a_file", "a_folder"] and (tmp_path / "a_file").read_text() == "old"


def test_check_writable_says_so_before_the_work_and_makes_nothing(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("old")
    check_writable(tmp_path / "new" / "folder" / "out.txt")
    check_writable(tmp_path / "a_file")
    monkeypatch.chdir(tmp_path)
    check_writable("predictions/out.txt")
    assert os.listdir(tmp_path) == ["a_file"]

    with pytest.raises(UserError) as error:
        check_writable(tmp_path)
    assert str(error.value) == f"{tmp_path} is a folder: give the name of a file to write"
    refusals = [(tmp_path / "a_file" / "out.txt", tmp_path / "a_file"), (tmp_path / "new" / "out.txt", tmp_path)]
    for path, culprit in refusals:
        if culprit == tmp_path:  # root may write everywhere, so ask for the answer that another user would get
            monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
        with pytest.raises(UserError) as error:
            check_writable(path)
        assert str(error.value) == (
            f"cannot write {path}: {culprit} is not a folder that you may write to; choose another place"
        )
