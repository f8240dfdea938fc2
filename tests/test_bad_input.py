"""What a user can get wrong, for both scripts: exit code 2, one line that says what, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import paraphrase_detection
import sonnet_generation
from cli.flags import parse_flags
from cli.script import run_script
from config import ParaphraseSettings, SonnetSettings
from files import where_it_may_be
from tests.helpers import mostly_slow

ROOT = Path(__file__).resolve().parents[1]
TASKS = {"sonnet": (sonnet_generation, SonnetSettings), "paraphrase": (paraphrase_detection, ParaphraseSettings)}

SONNET = "\n".join(f"line {number} of it" for number in range(14))  # 8600 synthetic tokens: one a letter
PROMPT = "first line\nsecond line\nthird line"
COLUMNS = "id\tsentence1\tsentence2"
LABELLED = f"{COLUMNS}\tis_duplicate\nA\twhat is it?\twhat is that?\t1.0\nB\twhat?\twhy?\t0.0\n"
GOLD = "data/TRUE_sonnets_held_out_dev.txt"  # the default: where it is missing, training sonnets stand in
GOOD_FILES = {
    "sonnets.txt": f"Header\n\n1\n\n{SONNET}\n\n2\n\n{SONNET}\n\n",
    GOLD: f"Header\n\n132\n\n{SONNET}\n\n",
    "prompts.txt": f"Header\n\n145\n\n{PROMPT}\n\n146\n\n{PROMPT}\n\n",
    "train.csv": LABELLED,
    "dev.csv": LABELLED,
    "test.csv": f"{COLUMNS}\nC\thow?\twhen?\nd 2\twho?\twhat?\n",
}
FLAGS = {
    "sonnet": "--sonnet_path sonnets.txt --held_out_sonnet_path prompts.txt "
    "--sonnet_out out/sonnets.txt --sonnet_dev_out out/dev.txt --score_seeds 1 --max_new_tokens 3",
    "paraphrase": "--para_train train.csv --para_dev dev.csv --para_test test.csv "
    "--para_dev_out out/dev.csv --para_test_out out/test.csv",
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working folder with good inputs for both scripts; nothing in it is outside the test's own folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in GOOD_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(task, model_folder, more=""):
    """The task's script with good flags and then some more, of which the last wins, as from the shell."""
    script, settings_class = TASKS[task]
    epochs = [] if "--checkpoint" in more else ["--epochs", "1"]  # refused where nothing is trained
    arguments = [*FLAGS[task].split(), "--model_path", str(model_folder), *epochs, *more.split()]
    flags = run_script(parse_flags, settings_class, arguments)
    run_script(script.main, *flags)


def contents(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


SONNET_CASES = [  # name, further flags, {file: text, or None to delete it}, decisive words
    ("no training file", "", {"sonnets.txt": None}, "sonnets.txt does not exist"),
    ("no prompts", "", {"prompts.txt": None}, "prompts.txt does not exist"),
    ("no gold file though asked for", "--gold_sonnet_path gold.txt", {}, "gold.txt does not exist"),
    ("one sonnet and no gold", "", {"sonnets.txt": "H\n1\nA line\n", GOLD: None}, "sonnets.txt holds one sonnet only"),
    ("empty gold file", "", {GOLD: ""}, f"{GOLD} is empty"),
    ("empty file", "", {"prompts.txt": " \n"}, "prompts.txt is empty"),
    ("no sonnet", "", {"sonnets.txt": "prose\n"}, "sonnets.txt holds no sonnet"),
    ("prompts as gold", "", {GOLD: f"Header\n\n132\n\n{PROMPT}\n"}, f"{GOLD}: the sonnet at place 1 has no line 4"),
    ("a heading not seen", "", {"sonnets.txt": f"H\n1\n{SONNET}\nzwei\n{SONNET}\n"}, "at line 2 has 29 lines"),
    ("not UTF-8", "", {GOLD: b"H\n1\n\xe9t\xe9\n"}, f"{GOLD} is not UTF-8"),
    ("a folder", "--sonnet_path .", {}, ". is a folder: give the file itself"),
    ("path through a file", "--sonnet_path dev.csv/sonnets.txt", {}, "dev.csv/sonnets.txt"),
    ("long prompt", "", {"prompts.txt": f"H\n1\nlong one\n{'x' * 260}\n"}, '"long one" has 270 tokens, the model\'s'),
    (
        "long sonnet",
        "",
        {"sonnets.txt": f"H\n1\nlong one\n{'x' * 260}\nb\nc\n"},
        '"long one" has 274 tokens, the model takes',
    ),
    ("top_p 0", "--top_p 0", {}, "--top_p must be in (0, 1], got 0.0"),
    ("top_p 1.5", "--top_p 1.5", {}, "--top_p must be in (0, 1], got 1.5"),
    ("temperature", "--temperature -1", {}, "--temperature must be 0 (greedy) or more, got -1.0"),
    ("output is a folder", "--sonnet_out .", {}, ". is a folder: give the name of a file to write"),
    ("dev output is a folder", "--sonnet_dev_out ..", {}, ".. is a folder: give the name of a file to write"),
    ("two outputs in one place", "--sonnet_out same.txt --sonnet_dev_out same.txt", {}, "same.txt"),
    ("output below a file", "--sonnet_out dev.csv/x", {}, "dev.csv is not a folder that you may write to"),
    (
        "a run of the other task",
        "--checkpoint run",
        {"run/settings.json": '{"task": "paraphrase_detection"}'},
        "is a run of",
    ),
]
PARAPHRASE_CASES = [
    ("no training file", "", {"train.csv": None}, "train.csv does not exist"),
    ("no dev file", "", {"dev.csv": None}, "dev.csv does not exist"),
    ("no test file", "", {"test.csv": None}, "test.csv does not exist"),
    ("no column", "", {"dev.csv": f"{COLUMNS}\na\tb\tc\n"}, "dev.csv has no column is_duplicate"),
    ("no column in test", "", {"test.csv": "id\tsentence1\na\tb\n"}, "test.csv has no column sentence2"),
    ("commas", "", {"train.csv": LABELLED.replace("\t", ",")}, "it must be tab-separated"),
    ("empty file", "", {"train.csv": ""}, "train.csv is empty"),
    (
        "no usable row",
        "",
        {"train.csv": f"{COLUMNS}\tis_duplicate\nx\ty\n"},
        "train.csv has no usable row (1 malformed)",
    ),
    ("bad label", "", {"dev.csv": f"{LABELLED}C\ta\tb\tmaybe\n"}, "dev.csv, line 4: is_duplicate is 'maybe'"),
    ("duplicate id", "", {"dev.csv": f"{LABELLED}b\ta\tb\t1\n"}, "dev.csv: id b is on line 3 and again on line 4"),
    ("not UTF-8", "", {"test.csv": b"id\tsentence1\tsentence2\na\t\xff\tb\n"}, "test.csv is not UTF-8"),
    ("path through a file", "--para_test dev.csv/test.csv", {}, "dev.csv/test.csv"),
    ("dev output is a folder", "--para_dev_out .", {}, ". is a folder: give the name of a file to write"),
    ("test output is a folder", "--para_test_out .", {}, ". is a folder: give the name of a file to write"),
    ("two outputs in one place", "--para_dev_out same.csv --para_test_out same.csv", {}, "same.csv"),
    ("flag of the other script", "--top_p 0.9", {}, "unrecognized arguments: --top_p 0.9"),
    ("cloze heads", "--pooling generalized --pooling_heads 2", {}, "--head cloze reads one vector"),
    (
        "a run of the other task",
        "--checkpoint run",
        {"run/settings.json": '{"task": "sonnet_generation"}'},
        "is a run of",
    ),
]
CASES_OF_BOTH = [
    ("no model folder", "--model_path ./nowhere", {}, "--model_path: ./nowhere is no folder"),
    ("model folder without a model", "--model_path .", {}, ". holds no tokenizer"),
    ("unknown size", "--model_size gpt2-small", {}, "--model_size: invalid choice: 'gpt2-small'"),
    ("no GPU", "--use_gpu", {}, "--use_gpu: torch sees no CUDA and no MPS device"),
    ("no such run", "--checkpoint nowhere", {}, "nowhere is no run folder: it has no settings.json"),
    ("a checkpoint that is a file", "--checkpoint dev.csv", {}, "dev.csv"),
    ("a damaged run", "--checkpoint run", {"run/settings.json": '{"task":'}, "settings.json is damaged"),
    ("nothing to resume", "--resume", {}, "there is no run to resume under runs/"),
    ("nothing to resume there", "--resume --run_dir run", {}, "run is no run folder: it has no settings.json"),
    (
        "a run is there",
        "--run_dir run",
        {"run/settings.json": "{}"},
        "run holds a run already: continue it with --resume",
    ),
    ("run folder is a file", "--run_dir dev.csv", {}, "dev.csv"),
    ("training flags without training", "--checkpoint run --epochs 3", {}, "--epochs has no effect with --checkpoint"),
    (
        "not a run's settings",
        "--checkpoint run",
        {"run/settings.json": "[]"},
        "settings.json is damaged (it holds no object)",
    ),
    ("nothing to merge", "--merge", {}, "there is nothing to merge: --merge folds a tuning method"),
    ("cannot be merged", "--adapter --merge", {}, "adapter cannot be merged into the weights: leave --merge out"),
    ("both", "--resume --checkpoint run", {}, "--resume trains on, --checkpoint only predicts"),
    ("no such linear", "--lora --lora_targets query,c_attn", {}, "--lora_targets: no linear ['c_attn']"),
    ("idle flag", "--lora_rank 8", {}, "--lora_rank has no effect without --tuning lora|qlora"),
    ("unknown flag", "--lerning_rate 1", {}, "unrecognized arguments: --lerning_rate 1"),
    ("a file to be the run's folder", "--run_dir dev.csv", {}, "--run_dir dev.csv is a file: give a folder"),
    ("not a number", "--epochs ten", {}, "--epochs: invalid int value: 'ten'"),
    ("learning rate", "--lr 0", {}, "--lr must be positive, got 0.0"),
]
CASES = [("sonnet", *case) for case in SONNET_CASES + CASES_OF_BOTH]
CASES += [("paraphrase", *case) for case in PARAPHRASE_CASES + CASES_OF_BOTH]


@pytest.mark.parametrize(
    "task, flags, files, words", [(task, *rest) for task, _, *rest in CASES], ids=[f"{c[0]}: {c[1]}" for c in CASES]
)
def test_bad_input_is_one_line_and_leaves_nothing(
    workplace, model_folder, monkeypatch, capsys, task, flags, files, words
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, content in files.items():
        path = workplace / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(workplace)
    with pytest.raises(SystemExit) as stop:
        run(task, model_folder, flags)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.endswith("\n") and captured.err.count("\n") == 1
    assert words in captured.err
    assert "Traceback" not in captured.out + captured.err
    assert contents(workplace) == before


@pytest.mark.parametrize("task", TASKS)
def test_the_same_inputs_without_a_mistake_are_answered(workplace, model_folder, capsys, task):
    """Else the cases above could fail for another reason than theirs."""
    run(task, model_folder)
    assert capsys.readouterr().err == ""
    made = contents(workplace).keys()
    names = {"sonnet": ("sonnets.txt", "dev.txt"), "paraphrase": ("dev.csv", "test.csv")}[task]
    assert {path for path in made if path.parts[0] == "out"} == {Path("out"), *(Path("out") / name for name in names)}
    if task == "paraphrase":
        lines = Path("out/test.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == "id \t Predicted_Is_Paraphrase "
        assert [line.split(", ")[0] for line in lines[1:]] == ["c", "d 2"]
        assert {line.split(", ")[1] for line in lines[1:]} <= {"3919 ", "8505 "}
    else:
        text = Path("out/sonnets.txt").read_text(encoding="utf-8")
        assert text.startswith(f"--Generated Sonnets-- \n\n\n0\n{PROMPT}\n") and f"\n1\n{PROMPT}\n" in text


def test_contradicting_a_saved_run_is_refused_by_name(workplace, model_folder, capsys):
    run("paraphrase", model_folder, "--run_dir run --lora --lora_rank 2")
    before, record = contents(workplace), json.loads(Path("run/settings.json").read_text(encoding="utf-8"))
    assert record["settings"]["lora"]["lora_rank"] == 2
    capsys.readouterr()
    for flags, words in [
        ("--checkpoint run --lora --lora_rank 3", "run was trained with lora_rank = 2, not 3: leave --lora_rank out"),
        ("--checkpoint run --adapter", "run was trained with lora, not adapter: leave --adapter out"),
        ("--resume --run_dir run --seed 1", "run was trained with seed = 11711, not 1: leave --seed out"),
    ]:
        with pytest.raises(SystemExit) as stop:
            run("paraphrase", model_folder, flags)
        assert stop.value.code == 2 and capsys.readouterr().err == f"error: {words}\n"
        assert contents(workplace) == before


FIRST_FILES = {
    "sonnet_generation.py": "data/sonnets.txt",
    "paraphrase_detection.py": "data/quora-train.csv",
    "classifier.py": "data/ids-sst-train.csv",
}


@pytest.mark.parametrize("script", mostly_slow(FIRST_FILES))
def test_the_real_script_exits_with_2_and_one_line(tmp_path, monkeypatch, script):
    """With all imports and libraries, whose warnings would be further lines."""
    monkeypatch.chdir(tmp_path)  # which the advice depends on
    outcome = subprocess.run(
        [sys.executable, ROOT / script], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert outcome.returncode == 2
    assert outcome.stderr == f"error: {FIRST_FILES[script]} does not exist: {where_it_may_be(FIRST_FILES[script])}\n"
    assert list(tmp_path.iterdir()) == []
