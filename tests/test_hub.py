"""The hub where there is no network."""

import pytest

from errors import UserError
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
