"""Metrics in a tracker besides: through accelerate's own classes, one of them replaced by a recorder."""

import json
import sys
import types
from typing import ClassVar

import pytest

import sonnet_generation
from errors import UserError
from tests.inputs import run, without
from training import trackers


class Recorder:
    """What accelerate's trackers look like from outside."""

    requires_logging_directory = True
    made: ClassVar[list] = []

    def __init__(self, run_name, logging_dir):
        self.calls = [(run_name, logging_dir)]
        Recorder.made.append(self)

    def start(self):
        self.calls.append("started")

    def store_init_configuration(self, values):
        self.calls.append(values)

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finished")


@pytest.fixture
def recorder(monkeypatch):
    module = types.ModuleType("tensorboard")
    module.__spec__ = types.SimpleNamespace(name="tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", module)
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    Recorder.made.clear()


@pytest.mark.slow
def test_every_line_of_metrics_reaches_the_tracker(sonnet_flags, tmp_path, recorder):
    run(sonnet_generation, [*sonnet_flags, "--run_dir", "run", "--log_with", "tensorboard", "--lora"])
    (made,) = Recorder.made
    start, started, configuration, *lines, end = made.calls
    assert (start, started, end) == (("tensorboard", "run"), "started", "finished")
    assert configuration["lr"] == 1e-3 and configuration["lora"] is True and "checkpoint" not in configuration
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(written) == 6  # two steps and an epoch, twice
    assert [step for step, _ in lines] == [1, 2, 2, 3, 4, 4]
    assert lines[0][1] == {name: value for name, value in written[0].items() if name != "step"}
    assert lines[2][1]["dev loss"] == written[2]["dev loss"]
    run(sonnet_generation, ["--checkpoint", "run", *without(sonnet_flags, "--epochs", "--lr")])
    assert len(Recorder.made) == 1  # nothing is trained


def test_a_tracker_that_is_not_installed_is_one_line(sonnet_flags):
    with pytest.raises(UserError, match="--log_with trackio: that package is not installed here; pip install trackio"):
        run(sonnet_generation, [*sonnet_flags, "--log_with", "trackio"])


def test_a_tracker_that_does_not_start_leaves_no_run_behind(sonnet_flags, tmp_path, recorder, monkeypatch):
    def fail(self):
        raise ConnectionError("no api key")

    monkeypatch.setattr(Recorder, "start", fail)
    with pytest.raises(UserError, match=r"--log_with tensorboard does not start \(no api key\)"):
        run(sonnet_generation, [*sonnet_flags, "--run_dir", "run", "--log_with", "tensorboard"])
    assert not (tmp_path / "run").exists()
