"""A run for others: the name of its base, its model card, and the way to the hub, on a local stand-in of it."""

import base64
import http.server
import json
import shutil
import threading
from functools import partial

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub import HfApi

import training.sharing
from errors import UserError
from exchange import main, parse
from training.sharing import base_name


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub's client asks for while it uploads. The server's `files` is what it got, `refuses` a status."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.refuses:
            return self.answer({"error": "no"}, self.server.refuses)
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            return self.answer({"url": f"{self.server.url}/me/mine", "name": "me/mine"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1"})
        return self.answer({})  # the check of a card's header

    def answer(self, values, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())

    def log_message(self, *arguments):
        """Nothing on stderr."""


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.asked, server.made, server.refuses = {}, [], None, None
    monkeypatch.setattr(training.sharing, "HfApi", partial(HfApi, endpoint=server.url, token="hf_secret"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def trained(sonnet_flags, lora_run):
    """The folder of a run of the sonnets with LoRA; the current folder holds it."""
    shutil.copytree(lora_run, "mine")
    return "mine"


def exchange(*arguments):
    main(parse(list(arguments)))


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((None, "gpt2"), "openai-community/gpt2"),
        ((None, "gpt2-xl"), "openai-community/gpt2-xl"),
        (("/home/a/.cache/huggingface/hub/models--me--my--model/snapshots/1a2b", "gpt2"), "me/my--model"),
        (("/home/a/models", "gpt2"), "/home/a/models"),
        (("/home/a/models", "gpt2", "you/yours"), "you/yours"),
    ],
)
def test_the_base_is_called_as_the_hub_calls_it(given, name):
    assert base_name(*given) == name


@pytest.mark.parametrize(("action", "library"), [("export", "peft"), ("merge", "transformers")])
def test_what_is_shared_has_a_card(trained, tmp_path, model_folder, action, library):
    exchange(action, trained, "--out", "shared", "--base_model", "me/base", "--licence", "cc-by-4.0")
    card = (tmp_path / "shared/README.md").read_text(encoding="utf-8")
    header = header_of(card)
    assert (header["base_model"], header["license"], header["library_name"]) == ("me/base", "cc-by-4.0", library)
    assert "lora" in header["tags"]
    assert "| training sonnets | train.txt | 12 | `" in card and "| dev perplexity | " in card
    assert "| `--lr` | `0.001` |" in card and "| floor: prompt alone: chrF whole | " in card
    assert str(tmp_path) not in card and str(model_folder) not in card  # nothing of its maker's folders
    if action == "export":
        assert json.loads((tmp_path / "shared/adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"


def test_without_names_the_card_says_so(trained, tmp_path, model_folder, capsys):
    exchange("export", trained, "--out", "shared")
    assert "give --base_model what the hub calls it" in capsys.readouterr().out
    header = header_of((tmp_path / "shared/README.md").read_text(encoding="utf-8"))
    assert header["license"] == "unknown" and "base_model" not in header
    exchange("import", "shared", "--run_dir", "again")  # a run that has no data and no figures
    exchange("export", "again", "--out", "twice", "--base_model", "me/base")
    card = (tmp_path / "twice/README.md").read_text(encoding="utf-8")
    assert card.count("none recorded") == 2


def test_upload(trained, tmp_path, hub, capsys):
    flags = ("--base_model", "me/base", "--push_to_hub", "me/mine", "--private")
    exchange("export", trained, "--out", "shared", *flags)
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "shared").iterdir()}
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.made["name"] == "mine" and {key for _, key in hub.asked} == {"Bearer hf_secret"}
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    assert f"uploaded: {hub.url}/me/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("refuses", "repository", "message"),
    [
        (401, "me/mine", r"the hub answered 401 for me/mine \(log in by `hf auth login`"),
        (403, "me/mine", "the hub answered 403"),
        (None, "me/mine/too/deep", "is no name on the hub"),
        ("gone", "me/mine", "cannot reach the Hugging Face hub"),
    ],
)
def test_an_upload_that_fails_leaves_the_folder_and_says_how_to_go_on(
    trained, tmp_path, hub, monkeypatch, refuses, repository, message
):
    hub.refuses = refuses
    if refuses == "gone":
        monkeypatch.setattr(training.sharing, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token="hf_secret"))
    with pytest.raises(UserError, match=message) as error:
        exchange("export", trained, "--out", "shared", "--base_model", "me/base", "--push_to_hub", repository)
    assert f"`hf upload {repository} shared`" in str(error.value) and "hf_secret" not in str(error.value)
    assert len(list((tmp_path / "shared").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "--out", "shared", "--push_to_hub", "me/mine"), "is a folder of this machine, .*: name"),
        (("export", "--out", "shared", "--private"), "--private has no effect without --push_to_hub"),
        (("show", "--licence", "mit"), "--licence has no effect with show"),
        (("show", "--out", "shared"), "--out has no effect with show"),
        (("export", "--out", "shared", "--task", "sonnet_generation"), "--task has no effect with export"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(trained, tmp_path, hub, arguments, message):
    with pytest.raises(UserError, match=message):
        exchange(arguments[0], trained, *arguments[1:])
    assert not (tmp_path / "shared").exists() and not hub.asked
