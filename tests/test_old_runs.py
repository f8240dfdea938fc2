"""Runs that older versions recorded: read for prediction, refused for training with the reason."""

import json

import pytest

import paraphrase_detection
from errors import UserError
from tests.inputs import run, without
from training.storage import sha256_of_record


def as_older_versions_kept_it(folder):
    record = json.loads((folder / "settings.json").read_text())
    record["settings"]["training"] |= {"lr": None, "precision": "auto"}
    del record["settings"]["training"]["save_minutes"]
    old = {"task": record["task"], "base_fingerprint": "0123456789abcdef", "settings": record["settings"]}
    (folder / "settings.json").write_text(json.dumps(old))
    for path in folder.rglob("manifest.json"):
        path.unlink()


def test_an_older_run_predicts_and_is_not_gone_on_with(pair_flags, tmp_path, capsys):
    run(paraphrase_detection, [*pair_flags, "--lora", "--run_dir", "run"])
    first = (tmp_path / "out/dev.csv").read_bytes()
    as_older_versions_kept_it(tmp_path / "run")
    capsys.readouterr()
    run(paraphrase_detection, [*without(pair_flags, "--epochs", "--lr"), "--checkpoint", "run"])
    assert "recorded by an older version" in capsys.readouterr().out
    assert (tmp_path / "out/dev.csv").read_bytes() == first
    with pytest.raises(UserError, match="kept too little to go on: predict with --checkpoint"):
        run(paraphrase_detection, ["--resume", "--run_dir", "run"])


def test_a_run_that_recorded_its_processes_goes_on_if_there_was_one(pair_flags, tmp_path):
    """Until the rows of a batch were dealt out, several processes had batches that cannot be drawn again."""
    run(paraphrase_detection, [*pair_flags, "--lora", "--run_dir", "run"])
    path = tmp_path / "run/settings.json"
    for processes in (1, 2):
        record = json.loads(path.read_text())
        record["inputs"] = {what: data for what, data in record["inputs"].items() if isinstance(data, dict)}
        record["inputs"]["processes"] = processes
        del record["sha256"]
        path.write_text(json.dumps(record | {"sha256": sha256_of_record(record)}))
        if processes == 1:
            run(paraphrase_detection, ["--resume", "--run_dir", "run"])
            with pytest.raises(UserError, match=r"with rows a batch \(--batch_size times processes\) = 8, not 4"):
                run(paraphrase_detection, ["--resume", "--run_dir", "run", "--batch_size", "4"])
    with pytest.raises(UserError, match="whose processes had other batches: begin again"):
        run(paraphrase_detection, ["--resume", "--run_dir", "run"])
