"""What is installed: requirements, the lock, make and the pages agree, and an older Python is told so in one line."""

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cli import NEWEST, OLDEST
from tests.test_house import MODULES, ROOT, SOURCES
from training.assembly import OLDEST_TORCH

FILES = ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt")
LOCK = "requirements-lock.txt"
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
BENCHMARKS, TESTS = (sorted(ROOT.glob(f"{name}/*.py")) for name in ("benchmarks", "tests"))
FOUND_BY_NAME = {"sacremoses", "sentencepiece"}  # transformers imports these, for Marian's tokenizers


def lines_of(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-r ")]


BOUNDS = {name: [Requirement(line) for line in lines_of(name)] for name in FILES}
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, lines_of(LOCK))}


def names(*files):
    return {canonicalize_name(bound.name) for file in files for bound in BOUNDS[file]}


def test_every_requirement_is_one_lower_bound_in_one_place():
    """`make test-oldest` reads them so."""
    every = [bound for file in FILES for bound in BOUNDS[file]]
    assert len(every) == len(names(*FILES)) > 20
    for line in [line for file in FILES for line in lines_of(file)]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line
    assert [
        bound for bound in BOUNDS["requirements.txt"] if str(bound) == f"torch>={OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
    ]


def test_the_lock_satisfies_every_bound():
    for bound in [bound for file in FILES for bound in BOUNDS[file]]:
        (pin,) = PINS[canonicalize_name(bound.name)].specifier
        assert bound.specifier.contains(pin.version), bound


def test_the_lock_holds_exact_public_releases_and_nothing_of_cuda():
    assert len(PINS) == len(lines_of(LOCK))
    for name, pin in PINS.items():
        (only,) = pin.specifier
        assert only.operator == "==" and Version(only.version).local is None and not pin.url and not pin.marker, pin
        assert not name.startswith(("nvidia", "cuda", "triton")), pin


def imports_of(path):
    """({module that is imported when the file is}, {module that is imported anywhere in it}), by their first names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {node for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) for node in ast.walk(part)}
    at_once, anywhere = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found = {module.split(".")[0] for module in modules}
            anywhere |= found
            at_once |= set() if node in late else found
    ours = {name.split(".")[0] for name in MODULES} | {"benchmarks", "data", "tests"} | set(sys.stdlib_module_names)
    return at_once - ours, anywhere - ours


def packages_of(modules):
    """The packages that modules are installed by."""
    installed = packages_distributions()
    return {canonicalize_name(name) for module in modules for name in installed.get(module, [module])}


def imported(paths, when):
    return packages_of({module for path in paths for module in imports_of(path)[when]})


STUDENTS = ROOT / "course/student"  # tests that a handout gets
HOUSE = [*(path for path in SOURCES if path.parent != STUDENTS), *sorted(ROOT.glob("data/*.py"))]


@pytest.mark.slow
def test_every_import_is_required():
    assert imported(HOUSE, 0) <= names("requirements.txt")
    assert imported(HOUSE, 1) <= names("requirements.txt", "requirements-extra.txt")
    peers = {"ctranslate2"}  # is timed where it happens to be installed
    assert imported([*HOUSE, *STUDENTS.glob("*.py"), *BENCHMARKS, *TESTS], 1) <= names(*FILES) | peers


def test_every_requirement_is_imported():
    assert names("requirements.txt") <= imported(HOUSE, 1)
    assert names("requirements-extra.txt") - FOUND_BY_NAME <= imported(HOUSE, 1)


# --- make -------------------------------------------------------------------------------------------------------------


def made(*arguments):
    """The lines that make would run."""
    if not shutil.which("make"):
        pytest.skip("make is not installed here")
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(("target", "file"), [("quickstart", FILES[0]), ("test", FILES[2]), ("test-fast", FILES[2])])
def test_make_installs_the_lock(target, file):
    installs = [line for line in made(target) if "pip install" in line]
    assert installs == [f".venv/bin/python -m pip install --quiet -r {file} -c {LOCK}"]


def test_make_takes_torch_alone_from_another_index():
    first, second = (line for line in made("quickstart", "TORCH_INDEX=file:///builds") if "pip install" in line)
    assert first.endswith(f"pip install --quiet --no-deps --index-url file:///builds -c {LOCK} torch")
    assert "index-url" not in second


def test_make_asks_for_the_python_before_it_installs():
    lines = made("test", "PYTHON=some-python")
    assert lines.index("some-python -m cli") < lines.index("some-python -m venv .venv")


# --- Python -----------------------------------------------------------------------------------------------------------


def run_as(version, script, *arguments):
    """A script, in a Python that says it is another version."""
    code = f"import runpy, sys; sys.version_info = {version}; sys.argv = {[script, *arguments]!r}; sys.path[0] = '.';"
    code += f"runpy.run_path({script!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", [*SCRIPTS, "cli/__main__.py"])
def test_an_older_python_is_one_line(script):
    outcome = run_as((3, 10, 4), script, "--help")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    (line,) = outcome.stderr.splitlines()
    wanted = ".".join(map(str, OLDEST))
    assert line.startswith(f"error: this is Python 3.10, and this project needs {wanted} or newer: ")
    assert f"PYTHON=python{wanted}" in line and f"py -{wanted} -m venv" in line


@pytest.mark.parametrize("script", [*SCRIPTS, "cli/__init__.py"])
def test_an_older_python_can_read_as_far_as_that_line(script):
    """The whole script is parsed before its first line runs, and what it imports first is cli."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"), feature_version=(3, 8))
    before = []
    for node in tree.body:
        modules = (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
        )
        before += modules if isinstance(node, ast.Import | ast.ImportFrom) else []
    ours = [name for name in before if name.split(".")[0] in {module.split(".")[0] for module in MODULES}]
    assert ours[0].split(".")[0] == ("namesake" if script.startswith("cli") else "cli")
    assert {name.split(".")[0] for name in before[: before.index(ours[0])]} <= set(sys.stdlib_module_names)


def test_a_newer_python_goes_on_and_make_says_what_to_do_where_a_package_is_missing():
    outcome = run_as((NEWEST[0], NEWEST[1] + 1, 0), "cli/__main__.py")
    assert outcome.returncode == 0 and outcome.stderr == ""
    (line,) = outcome.stdout.splitlines()
    assert (
        line.startswith(f"note: Python {NEWEST[0]}.{NEWEST[1] + 1} is newer")
        and f"python{NEWEST[0]}.{NEWEST[1]}" in line
    )
    assert run_as(NEWEST, "cli/__main__.py").stdout == ""


# --- the pages --------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_names_the_pythons_and_releases_that_hold():
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    assert f"Python {oldest} to {newest}" in README and f"Python {oldest} to {newest}" in PAGE
    (torch,) = PINS["torch"].specifier
    assert f"torch {torch.version}" in PAGE
    for name in re.findall(r"py -([\d.]+) |python(\d\.\d+) -m venv|--python ([\d.]+)", PAGE):
        assert OLDEST <= tuple(map(int, max(name).split("."))) <= NEWEST


def test_the_commands_of_the_page_name_what_is_there():
    commands = re.findall(r"^    (?!.*<this repository>)(\S.*)$", PAGE, re.MULTILINE)
    files = {word for command in commands for word in re.findall(r"[\w/\\-]+\.(?:txt|py)\b", command)}
    assert {"requirements.txt", LOCK} <= files and len(commands) > 10
    for file in files:
        assert (ROOT / file.replace("\\", "/")).is_file(), file
    targets = {command.split()[1] for command in commands if command.startswith("make ")}
    assert {"quickstart", "test-oldest", "test-newest", "lock"} <= targets
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_way_ends_with_the_command_that_make_runs():
    (run,) = (line for line in made("quickstart") if "data/quickstart.py" in line)
    assert run.endswith("python data/quickstart.py")
    assert PAGE.count("    python data/quickstart.py\n") >= 2  # Linux and macOS, Windows
