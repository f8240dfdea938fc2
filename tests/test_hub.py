"""The hub where there is no network."""

import time
from types import SimpleNamespace

import huggingface_hub
import pytest

import formats.hub
from errors import UserError
from formats.hub import find_model
from models.gpt2 import GPT2Model


def test_hub_models_fail_fast_and_name_the_alternative_without_network(monkeypatch, tmp_path):
    import time

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(UserError, match="--model_path a local folder"):
        GPT2Model.from_pretrained("gpt2-medium")
    assert time.perf_counter() - start < 5
    with pytest.raises(UserError, match="does not exist"):
        GPT2Model.from_pretrained("./no/such/folder")


def test_a_clone_called_gpt2_is_not_taken_for_the_model(monkeypatch, tmp_path, model_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "clone").mkdir()
    asked = []
    monkeypatch.setattr(formats.hub, "_from_hub", asked.append)
    find_model("gpt2")
    assert asked == ["openai-community/gpt2"]
    with pytest.raises(UserError, match=r"clone holds no config\.json"):
        find_model("clone")
    assert find_model(str(model_folder)) == model_folder


def test_a_cached_model_without_a_tokenizer_is_completed(monkeypatch, tmp_path):
    monkeypatch.setattr(formats.hub, "_cached", lambda repository: tmp_path)
    monkeypatch.setattr(formats.hub, "_download", lambda repository: "completed")
    assert formats.hub._from_hub("any/thing") == "completed"

    def unreachable(repository):
        raise UserError("no network")

    monkeypatch.setattr(formats.hub, "_download", unreachable)
    assert formats.hub._from_hub("any/thing") == tmp_path  # whoever needs the tokenizer will say that it is missing
    (tmp_path / "tokenizer.json").write_text("{}")
    assert formats.hub._from_hub("any/thing") == tmp_path


def test_a_slow_hub_is_waited_for(monkeypatch):
    def slow(self, repository, timeout):
        assert timeout >= 10
        time.sleep(4)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="config.json")])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", slow)
    assert formats.hub._files_on_hub("any/thing") == ["config.json"]
