"""SIGKILL, and the power that goes off: a real process dies, a real file system is cut short, and the run goes on."""

import json
import os
import random
import shutil
import subprocess

import pytest

from tests.small_run import KILLED, SHORT, contents, in_a_process, killed_training, train

CALLS = [("os", name) for name in ("rename", "fsync", "replace")]
CALLS += [("shutil", "rmtree"), ("training.storage", "save_file")]


def begun(folder):
    return (folder / "settings.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 1e-9], ids=["epochs only", "every step"])
def test_killed_at_any_optimizer_step(model_folder, tmp_path, minutes):
    whole, parts = contents(train(model_folder, tmp_path / "whole")), tmp_path / "parts"
    for step in range(1, 13):
        shutil.rmtree(parts, ignore_errors=True)
        options = {"save_minutes": minutes}
        assert in_a_process(killed_training, ("step", step), model_folder, parts, options) == KILLED
        assert contents(train(model_folder, parts, resumed=True, **options)) == whole, step


@pytest.mark.slow
@pytest.mark.parametrize("module, name", CALLS, ids=[name for _, name in CALLS])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_file_call(model_folder, tmp_path, module, name, when):
    """Of a run of two epochs; a call that comes no more ends the search."""
    whole, parts, number = contents(train(model_folder, tmp_path / "whole", **SHORT)), tmp_path / "parts", 1
    while in_a_process(killed_training, (module, name, number, when), model_folder, parts, SHORT) == KILLED:
        assert contents(train(model_folder, parts, resumed=begun(parts), **SHORT)) == whole, number
        shutil.rmtree(parts)
        number += 1
    assert number > 2


@pytest.mark.slow
def test_seventy_sequences_of_kills_and_resumes(model_folder, tmp_path):
    """Each is killed up to four times, at steps and at file calls, saving every step or after epochs only."""
    whole, kills = contents(train(model_folder, tmp_path / "whole")), 0
    for sequence in range(72):
        draw, parts = random.Random(sequence), tmp_path / f"parts{sequence}"
        for _ in range(draw.randint(1, 4)):
            kill = ("step", draw.randint(1, 12))
            if draw.random() < 0.5:
                kill = (*draw.choice(CALLS), draw.randint(1, 25), draw.choice(("before", "after")))
            options = {"save_minutes": draw.choice((0, 1e-9)), "resumed": begun(parts)}
            kills += in_a_process(killed_training, kill, model_folder, parts, options) == KILLED
        assert contents(train(model_folder, parts, resumed=begun(parts))) == whole, sequence
        shutil.rmtree(parts)
    assert kills > 90


# --- power loss -------------------------------------------------------------------------------------------------------


def can_mount():
    """Whether an ext4 in a file can be mounted here: it takes root, and a kernel that lets root do it."""
    return os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None and os.path.exists("/dev/loop-control")


@pytest.fixture
def disk(tmp_path):
    """A small ext4 in a file, mounted. It writes by itself only after five minutes: what is synced is all it has."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    if not can_mount():
        pytest.skip("no root, or no mkfs.ext4: an ext4 cannot be mounted here")
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(24 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if not mount(image, place):
        pytest.skip("this kernel lets nobody mount an ext4")
    yield image, place
    subprocess.run(["umount", place], check=True)


def mount(image, place):
    command = ["mount", "-o", "loop,commit=300,noatime", image, place]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def trained_on_a_disk(model_folder, place, image, snapshots, synced):
    """Train on a mounted disk and copy it whole at every call that orders files, as a power loss would find it.

    Beside each copy stands the step whose state was kept before. synced: False makes every fsync do nothing.
    """
    real, kept = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}, [0]

    def snapshot():
        number = len(list(snapshots.glob("*.img")))
        shutil.copyfile(image, snapshots / f"{number}.img")
        (snapshots / f"{number}.json").write_text(json.dumps(kept[0]))

    def call(name):
        def before_and_after(*arguments):
            snapshot()
            if name != "fsync" or synced:
                real[name](*arguments)
            snapshot()

        return before_and_after

    for name in real:
        setattr(os, name, call(name))

    def after_step(step, total):
        kept[0] = step - 1  # every step is kept before the next one is taken

    train(model_folder, place / "run", after_step=after_step, epochs=2, rows=5)


def resumed_from(image, place, model_folder):
    """(contents at the end, the step at which training went on) of a run on a disk that was cut short."""
    assert mount(image, place)
    try:
        steps = []
        options = {"after_step": lambda step, total: steps.append(step), "epochs": 2, "rows": 5}
        folder = train(model_folder, place / "run", resumed=begun(place / "run"), **options)
        return contents(folder), (steps or [5])[0]
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("synced", [True, False], ids=["as it is", "without fsync"])
def test_the_power_goes_off_at_any_moment(model_folder, tmp_path, disk, synced):
    """Each copy of the disk is mounted and gone on with: the same result, and no step is lost that had been kept.

    Without fsync steps are lost: the proof can fail.
    """
    image, place = disk
    snapshots, cut = tmp_path / "snapshots", tmp_path / "cut"
    snapshots.mkdir()
    cut.mkdir()
    whole = contents(train(model_folder, tmp_path / "whole", epochs=2, rows=5))
    assert in_a_process(trained_on_a_disk, model_folder, place, image, snapshots, synced) == 0
    lost, copies = 0, sorted(snapshots.glob("*.img"))
    for copy in copies if synced else copies[-3:]:
        kept = json.loads(copy.with_suffix(".json").read_text())
        result, first = resumed_from(copy, cut, model_folder)
        assert result == whole, copy.name
        lost += first <= kept
        copy.unlink()  # each is as large as the disk
    shutil.rmtree(snapshots)
    assert (len(copies) > 100 and lost == 0) if synced else lost > 0
