"""Ctrl-C and SIGTERM to the real script: the step is finished, the state kept, the way on told, the exit code right."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.inputs import without

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def start(flags, folder):
    command = [sys.executable, ROOT / "sonnet_generation.py", *flags, "--lora", "--precision", "fp32"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, preexec_fn=hear_interrupts, **pipes)


def hear_interrupts():
    """A process in the background of a shell, as these tests may be, ignores Ctrl-C, and so does what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path, lines, process):
    """Until a run has logged so many steps."""
    for _ in range(600):
        if path.exists() and path.read_text().count('"step"') >= lines:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {lines} steps")


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_script_goes_on_to_the_same_result(sonnet_flags, tmp_path, number, code):
    flags = [*without(sonnet_flags, "--epochs"), "--epochs", "30", "--score_seeds", "1"]
    process = start([*flags, "--run_dir", "parts"], tmp_path)
    wait_for(tmp_path / "parts/metrics.jsonl", 7, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    told = "stopped; go on with: python sonnet_generation.py --resume --run_dir parts\n"
    assert err.endswith(told) and "Traceback" not in out + err
    steps = (tmp_path / "parts/metrics.jsonl").read_text().count('"step"')
    assert 7 <= steps < 60 and not (tmp_path / "out/sonnets.txt").exists()

    process = start(["--resume", "--run_dir", "parts"], tmp_path)
    assert process.wait(120) == 0, process.communicate()
    process.communicate()
    sonnets = (tmp_path / "out/sonnets.txt").read_bytes()
    whole = start([*flags, "--run_dir", "whole"], tmp_path)
    whole.communicate(timeout=120)
    assert (tmp_path / "out/sonnets.txt").read_bytes() == sonnets
    for file in ("last/model.safetensors", "last/optimizer.safetensors", "last/state.json", "best/model.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc tells here what a process has loaded")
def test_a_stop_while_importing_is_one_line(sonnet_flags, tmp_path):
    process = start(sonnet_flags, tmp_path)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and err in ("stopped; nothing was begun\n", "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_output_that_nobody_reads_any_more_stops_no_training(sonnet_flags, tmp_path):
    process = start([*sonnet_flags, "--run_dir", "run"], tmp_path)
    process.stdout.close()  # as `| head -0` does
    assert process.wait(120) == 0, process.stderr.read()
    assert (tmp_path / "out/sonnets.txt").exists()
    process.stderr.close()


@pytest.mark.slow
def test_a_console_that_cannot_show_a_letter_stops_nothing(sonnet_flags, tmp_path):
    text = (tmp_path / "prompts.txt").read_text(encoding="utf-8").replace("hen", "소네트")
    (tmp_path / "prompts.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, ROOT / "sonnet_generation.py", *sonnet_flags, "--lora", "--run_dir", "run"]
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "소네트" in (tmp_path / "out/sonnets.txt").read_text(encoding="utf-8")
