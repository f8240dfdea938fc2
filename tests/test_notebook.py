"""The tour: run from its first cell to its last, as a student does, and kept without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inputs import ROOT

NOTEBOOK = ROOT / "notebooks" / "tour.ipynb"
TOUR = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CELLS = {cell["id"]: cell for cell in TOUR["cells"]}
SMALLER = {  # what the test changes, so that it takes a minute less: cell, before, after
    "settings": ('OUT = Path("runs")', "OUT = Path({out!r})"),
    "train": ("range(1, EPOCHS + 1)", "range(1, 2)"),
    "scripts-pairs": ("--epochs 2", "--epochs 1 --train_rows 160"),
}


def source_of(name):
    return "".join(CELLS[name]["source"])


def test_it_is_kept_without_outputs_and_with_names_for_its_cells():
    assert len(CELLS) == len(TOUR["cells"])  # no id twice
    for name, cell in CELLS.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), f"cell {name}: give it a name that tells what it does"
        assert cell["metadata"] == {}, f"cell {name}: clear its metadata"
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None), (
            f"cell {name} has outputs: clear all outputs before saving"
        )
    assert TOUR["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert NOTEBOOK.read_bytes().endswith(b"}\n") and NOTEBOOK.stat().st_size < 60_000


def test_every_section_has_a_question_with_its_answer_and_an_exercise():
    texts = ["".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "markdown"]
    sections = re.split(r"^## ", "\n\n".join(texts), flags=re.MULTILINE)[1:]
    assert [int(section.split(".")[0]) for section in sections] == list(range(1, len(sections) + 1))
    for section in sections[:-1]:  # the last one says where to go on
        for part in ("**Question.**", "<details><summary>Answer</summary>", "**Exercise.**"):
            assert section.count(part) == 1, (section[:40], part)


def test_what_it_links_to_and_names_is_there():
    text = "\n".join("".join(cell["source"]) for cell in TOUR["cells"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    files = re.findall(r"\b(?:tests|datasets|experiments|data)/[\w./-]+\.\w+", text)
    assert len(links) > 8 and files
    for target in [*(NOTEBOOK.parent / link for link in links), *(ROOT / file for file in files)]:
        assert target.exists(), target


def first_cells(folder, repository="", more=""):
    """The first two cells, run in a folder, the first as a student would fill it in. more: code after them."""
    first = source_of("repository").replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    code = "\n".join([first, source_of("get"), more])
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_its_first_cell_finds_the_project_or_fetches_it(tmp_path):
    assert first_cells(NOTEBOOK.parent).stdout == f"the project is in {ROOT}\n"
    alone = first_cells(tmp_path)
    assert alone.returncode == 1 and alone.stderr.count("\n") == 1 and "set REPOSITORY above" in alone.stderr
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone: there is nothing to fetch from")
    for _ in range(2):  # the second time it is there
        fetched = first_cells(tmp_path, str(ROOT))
        assert fetched.stdout == f"the project is in {tmp_path / 'gpt2-project'}\n", fetched.stderr
    assert (tmp_path / "gpt2-project" / "data" / "gpt2-mini" / "model.safetensors").is_file()


def test_packages_that_are_there_are_left_alone_and_others_are_installed(tmp_path):
    packages = source_of("packages")
    assert "installed now: nothing, all packages were there\n" in first_cells(NOTEBOOK.parent, more=packages).stdout
    (tmp_path / "requirements.txt").write_text(
        "# a comment\ntorch>=2.8  # another\nno-such-package>=1\n", encoding="utf-8"
    )
    pip = f"import os\nos.chdir({str(tmp_path)!r})\nsubprocess.run = lambda command, check: print(*command[1:])\n"
    done = first_cells(NOTEBOOK.parent, more=pip + packages)
    assert done.stdout.endswith("-m pip install --quiet -r requirements.txt\ninstalled now: no-such-package\n"), done


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient: requirements-dev.txt")
    pytest.importorskip("ipykernel", reason="the notebook is run by ipykernel: requirements-dev.txt")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.id in SMALLER:
            before, after = SMALLER[cell.id]
            assert cell.source.count(before) == 1, (cell.id, before)
            cell.source = cell.source.replace(before, after.format(out=str(tmp_path / "runs")))
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder)
    client.execute(env=environment)

    said = {cell.id: printed(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert "nothing, all packages were there" in said["packages"]
    assert "7,160,576 parameters" in said["load"] and "largest change of a logit: 0.0\n" in said["lora"]
    assert "184,320 of 7,344,896" in said["count"]
    before, after = map(float, re.search(r"dev loss ([\d.]+) \(before training ([\d.]+)\)", said["train"]).groups())
    assert before < after  # the loss fell
    assert "You left the car seat set for longer legs." in said["write"]
    assert "largest difference of a logit" in said["compare"]  # not: transformers is missing
    assert "the same bit for bit: True" in said["switch-exact"]
    kinds = {
        cell.id: {kind for o in cell.outputs for kind in o.get("data", ())}
        for cell in notebook.cells[:]
        if "outputs" in cell
    }
    assert "image/png" in kinds["attention-map"] & kinds["curve"] and "text/html" in kinds["report-page"]
    assert not any(
        o.output_type == "stream" and o.name == "stderr" for c in notebook.cells for o in c.get("outputs", ())
    )
    assert Path(tmp_path, "runs", "tour-1", "report.html").is_file()


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")
