"""`datasets` is Hugging Face's name, too: whichever is imported first, both work."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import MODULES

ROOT = Path(__file__).resolve().parents[1]
THEIRS = {  # a stand-in: relative and absolute imports, and a circle that only ends where __init__.py begins it
    "__init__.py": '__version__ = "4.0"\nfrom .exceptions import Mismatch\nfrom .load import Dataset, load_dataset\n',
    "exceptions.py": "class Mismatch(Exception): pass\nfrom .table import CastError\n",
    "table.py": "from .utils import log\nclass CastError(Exception): pass\n",
    "utils.py": "from .exceptions import Mismatch\ndef log(): pass\n",
    "load.py": "import datasets\nfrom datasets.table import CastError\nclass Dataset: error = datasets.Mismatch\n"
    "def load_dataset(name): return datasets.Dataset\n",
}
OURS_WORKS = """
from models.gpt2 import GPT2Model
from datasets import SonnetsDataset, ParaphraseDetectionDataset, load_paraphrase_data, load_tokenizer, eda
import models.sonnet_gpt, datasets.sonnets
assert models.sonnet_gpt.run_in_parts is datasets.batching.run_in_parts
assert datasets.SonnetsDataset is SonnetsDataset is datasets.sonnets.SonnetsDataset
"""
THEIRS_WORKS = """
from datasets.table import CastError
from datasets import Dataset, load_dataset
import datasets
assert load_dataset("x") is Dataset is datasets.load.Dataset and datasets.exceptions.CastError is CastError
assert Dataset.__module__ == "datasets.load" and datasets.__version__ == "4.0"
"""
NOTHING_ELSE = """
for name in ("Sonnets", "_private", "__wrapped__"):
    try:
        getattr(datasets, name)
    except AttributeError as error:
        assert str(error) == f"module 'datasets' has no attribute '{name}'", error
    else:
        raise AssertionError(name)
try:
    import datasets.nothing
except ModuleNotFoundError as error:
    assert error.name == "datasets.nothing"
"""
OURS_LAST_ON_THE_PATH = f"import sys; sys.path.append({str(ROOT)!r})\n"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder of installed packages that holds the stand-in."""
    site = tmp_path_factory.mktemp("site")
    (site / "datasets").mkdir()
    for name, source in THEIRS.items():
        (site / "datasets" / name).write_text(source, encoding="utf-8")
    return site


def run(code, cwd, site=None):
    """Run code in a Python of its own, which looks for modules in cwd first, then in site."""
    paths = {"PYTHONPATH": str(site)} if site else {}
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=os.environ | paths, timeout=600
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_theirs_is_imported_first(theirs):
    run(f"import datasets\n{OURS_LAST_ON_THE_PATH}{OURS_WORKS}{THEIRS_WORKS}{NOTHING_ELSE}", theirs)


@pytest.mark.slow
def test_ours_is_imported_first(theirs):
    run(f"{OURS_WORKS}{THEIRS_WORKS}{NOTHING_ELSE}{OURS_WORKS}", ROOT, theirs)


@pytest.mark.slow
def test_theirs_is_only_found_first(theirs):
    run(f"{OURS_LAST_ON_THE_PATH}{OURS_WORKS}{THEIRS_WORKS}{NOTHING_ELSE}", theirs)


def test_a_module_of_theirs_is_the_first_thing_asked_for(theirs):
    """It may not run before their __init__.py, which in the stand-in, as in truth, fails."""
    run(f"import datasets.sonnets\n{THEIRS_WORKS}", ROOT, theirs)


@pytest.mark.slow
def test_theirs_is_read_only_when_something_of_it_is_asked_for(theirs):
    run(f"{OURS_WORKS}import sys; assert not [name for name in sys.modules if 'datasets.load' in name]", ROOT, theirs)


def test_theirs_cannot_be_imported(tmp_path):
    """The reason is told, as often as it is asked for, and ours goes on."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("import pyarrow_is_not_here\n", encoding="utf-8")
    code = """
import datasets
for _ in range(2):
    try:
        datasets.Dataset
    except ModuleNotFoundError as error:
        assert error.name == "pyarrow_is_not_here"
    else:
        raise AssertionError
"""
    run(f"{code}{OURS_WORKS}", ROOT, tmp_path)


@pytest.mark.slow
def test_alone_ours_is_an_ordinary_package():
    code = "import sys, datasets; assert not hasattr(datasets, 'Dataset') and '__getattr__' not in vars(datasets);"
    if importlib.util.find_spec("pyarrow"):  # Hugging Face's package is installed, so ours is not alone
        code = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]; import errors, "
        code += "namesake; assert 'datasets' not in sys.modules"
    run(code, ROOT)


@pytest.mark.slow
def test_every_module_can_be_the_first_after_theirs(theirs):
    """Whatever of the project a notebook imports first, it finds ours. (Of `datasets` itself it can import nothing.)"""
    modules = [name for name in MODULES if name.split(".")[0] != "datasets"]
    code = f"""
import importlib, sys
import torch, transformers  # which stay
sys.path.append({str(ROOT)!r})
kept, finders = set(sys.modules), list(sys.meta_path)
for name in {modules!r}:
    import datasets
    assert not hasattr(datasets, "second")
    importlib.import_module(name)
    if "datasets.batching" in sys.modules:
        assert sys.modules["datasets.batching"].__file__.startswith({str(ROOT)!r})
    sys.meta_path[:] = finders
    for other in set(sys.modules) - kept:
        if other.split(".")[0] in {sorted({name.split(".")[0] for name in MODULES})!r}:
            del sys.modules[other]
    print(name)
"""
    assert run(code, theirs).split() == modules


# --- with the real ones -----------------------------------------------------------------------------------------------

PROBES = "import transformers, accelerate, peft; peft.LoraConfig()\n"


@pytest.mark.slow
def test_libraries_that_ask_for_theirs_find_ours_and_do_without():
    run(f"{OURS_WORKS}{PROBES}", ROOT)
    run(f"{PROBES}{OURS_WORKS}", ROOT)


def real():
    """Where Hugging Face's package is installed, or None."""
    site = next((path for path in sys.path if Path(path, "datasets", "arrow_dataset.py").is_file()), None)
    return site and Path(site)


@pytest.mark.slow
@pytest.mark.skipif(not real(), reason="Hugging Face's `datasets` is not installed (pip install datasets)")
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_real_package(first, tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    uses = f"""
import datasets, importlib.util
from datasets import load_dataset
assert datasets.Dataset.from_dict({{"a": [1, 2]}}).map(lambda row: {{"b": row["a"] + 1}})["b"][1] == 3
rows = load_dataset("csv", data_files={str(tmp_path / "table.csv")!r}, cache_dir={str(tmp_path)!r})["train"]
assert rows[0]["b"] == 2
from transformers import Trainer
for name in ("evaluate", "trl"):
    if importlib.util.find_spec(name):
        importlib.import_module(name)
"""
    if first == "ours":
        run(f"{OURS_WORKS}{PROBES}{uses}{OURS_WORKS}", ROOT)
    else:
        run(f"import datasets\n{PROBES}{OURS_LAST_ON_THE_PATH}{OURS_WORKS}{uses}", tmp_path)


@pytest.mark.skipif(not real(), reason="Hugging Face's `datasets` is not installed (pip install datasets)")
def test_no_file_of_ours_has_the_name_of_one_of_theirs():
    ours, theirs = ({path.stem for path in (place / "datasets").iterdir()} for place in (ROOT, real()))
    assert ours & theirs <= {"__init__", "__pycache__"}
