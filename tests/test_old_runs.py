"""Runs that older versions recorded: read for prediction, refused for training with the reason."""

import json

import pytest

import paraphrase_detection
from errors import UserError
from tests.inputs import run, without


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
