"""Students' trees that would harm the grader, or get points for nothing."""

import socket
import subprocess
import sys

import pytest

from course.running import launched, protections
from tests.course_trees import MASK, PLACE, ROOT, hostile, messages, write_tree


@pytest.fixture(scope="module")
def launcher():
    with launched() as running:
        yield running


@pytest.mark.parametrize(
    ("code", "message"),
    [
        pytest.param("while True: pass", "an endless loop?", marks=pytest.mark.slow),  # it is waited for
        ("import os; os._exit(0)", "ended with code 0"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os, signal; os.kill(0, signal.SIGKILL)", "signal 9"),
        ("import os; os.kill(os.getppid(), 9)\nraise ValueError", "ValueError"),
        ("x = []\nwhile True: x.append(bytes(2**24))", "MemoryError"),
        (
            "import time, os\nfor _ in range(100): os.fork() or time.sleep(100)\ntime.sleep(100)",
            "more than 32 processes",
        ),
        ("import shutil; shutil.rmtree('..', ignore_errors=True)\nraise ValueError('deleted')", "deleted"),
        ("class Bad:\n    shape = 1\nreturn Bad()", "Error"),
    ],
    ids=["hangs", "exits", "sys.exit", "kills its group", "kills its parent", "memory", "forks", "deletes", "object"],
)
def test_a_hostile_tree_gets_its_points_for_what_passes(code, message, tmp_path, launcher):
    found = messages(hostile(tmp_path, code), "mask", launcher, seconds=5 if "pass" in code else 60, memory=2)
    assert [found[test] for test in ("left_padding", "right_padding", "cached")] == [None] * 3
    assert message in found["padded_rows"], found
    assert set(messages(write_tree(tmp_path / "good"), "mask", launcher).values()) == {None}  # the next one is graded


def test_megabytes_of_output_harm_nobody(tmp_path, launcher):
    tree = hostile(
        tmp_path, "import os, sys\nfor _ in range(300): os.write(1, bytes(2**16)); os.write(2, bytes(2**16))"
    )
    assert set(messages(tree, "mask", launcher).values()) == {None}


FORGED = """
import course.checks, course.judging, builtins, json, pathlib
course.checks.answer = lambda *a: {"tensors": {}}
course.judging.verdict = lambda *a: None
for path in pathlib.Path("course").rglob("*.py"): path.write_text("")
for test in ("left_padding", "right_padding", "cached", "padded_rows"):
    print(json.dumps({"test": test, "given": {"tensors": {}, "message": None, "passed": True}}),
          file=open("../answers", "a"), flush=True)
print("4 passed")
"""


def test_forged_verdicts_give_no_point(tmp_path, launcher):
    tree = write_tree(
        tmp_path, mask=[("import math\n", "import math\n" + FORGED), (PLACE, PLACE + "    return 1 / 0\n")]
    )
    found = messages(tree, "mask", launcher)
    assert None not in found.values(), found


def test_nothing_is_written_outside_and_the_tree_is_not_touched(tmp_path, launcher):
    target, before = tmp_path / "outside", (ROOT / MASK).read_text(encoding="utf-8")
    code = (
        f"import pathlib\nfor p in ({str(target)!r}, {str(ROOT / 'outside')!r}):\n    pathlib.Path(p).write_text('x')"
    )
    tree = hostile(tmp_path / "tree", code)
    handed_in = (tree / MASK).read_text(encoding="utf-8")
    if "NOT HELD" in protections():
        pytest.skip("this machine has no Landlock")
    assert "PermissionError" in messages(tree, "mask", launcher)["padded_rows"]
    assert not target.exists() and not (ROOT / "outside").exists()
    assert (tree / MASK).read_text(encoding="utf-8") == handed_in and (ROOT / MASK).read_text() == before


def test_the_solution_cannot_be_read_and_the_network_not_be_reached(tmp_path, launcher):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        tree = hostile(tmp_path, f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
        found = messages(tree, "mask", launcher)["padded_rows"]
        assert "Error" in found or "NOT BLOCKED" in protections()
    if "NOT HELD" not in protections():
        tree = hostile(tmp_path / "reader", f"raise ValueError(open({str(ROOT / MASK)!r}).read())")
        assert "PermissionError" in messages(tree, "mask", launcher)["padded_rows"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "is no Python (line 1"),
        ("", "is empty"),
        ("x = 1\0\n", "NUL"),
        ("-" * 90_000 + "1\n", "modules/attention.py"),
        ("class CausalSelfAttention:\n    pass\n", "ImportError"),
        ("x = 1\n", "is gone"),
        ("raise SystemExit\n", "gone"),
    ],
)
def test_files_that_are_no_solution(text, message, tmp_path, launcher):
    write_tree(tmp_path)
    (tmp_path / MASK).write_text(text)
    found = messages(tmp_path, "mask", launcher)
    assert all(m is not None and message in m for m in found.values()), found
    assert all("\n" not in m and str(tmp_path) not in m for m in found.values())


def test_links_are_not_followed(tmp_path, launcher):
    tree = write_tree(tmp_path / "student")
    (tree / MASK).unlink()
    (tree / MASK).symlink_to(ROOT / MASK)
    assert set(messages(tree, "mask", launcher).values()) == {f"{MASK} is a link: hand in the file itself"}
    (tree / MASK).unlink()
    assert set(messages(tree, "mask", launcher).values()) == {f"{MASK} is missing"}


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_memory_is_counted_from_what_is_mapped_already():
    """A torch for CUDA maps more than a student is allowed, before the student's code begins."""
    code = """import mmap
from course.sandbox import limit_resources
mapped = mmap.mmap(-1, 6 * 2**30, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
limit_resources(60, 2**30, 2**20)
bytearray(2**28)
try:
    bytearray(2**31)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
