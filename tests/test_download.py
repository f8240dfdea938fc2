"""data/download.py against a local server that also cuts connections, truncates and serves a wrong file."""

import hashlib
import importlib.util
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.flags import parse_flags
from errors import UserError

SCRIPT = Path(__file__).resolve().parents[1] / "data" / "download.py"
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def download(monkeypatch):
    """The script as a module; it expects one hashed file and one table, and waits for nothing."""
    spec = importlib.util.spec_from_file_location("download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "download", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    hashed = module.Expected(hashlib.sha256(CONTENT).hexdigest())
    table = module.Expected(columns=("id", "sentence1"), rows=2)
    monkeypatch.setattr(module, "FILES", {"a.bin": hashed, "b.csv": table})
    return module


TABLE = b'\tid\tsentence1\n0\tx\t"two\nlines"\n1\ty\tq\n'


class Server:
    """Serves `files`; `faults` is a list of faults for the coming requests; `ranges` what was asked for."""

    def __init__(self):
        self.files, self.faults, self.ranges = {"/a.bin": CONTENT, "/b.csv": TABLE}, [], []
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request):
        content = self.files.get(request.path)
        fault = self.faults.pop(0) if self.faults else None
        self.ranges.append(request.headers.get("Range"))
        if content is None or isinstance(fault, int):
            request.send_error(fault or 404)
            return
        start = int(re.search(r"\d+", self.ranges[-1]).group()) if self.ranges[-1] and self.knows_ranges else 0
        if start and start >= len(content):
            request.send_error(416)
            return
        body = content[start:]
        request.send_response(206 if start else 200)
        if fault != "truncate":  # no length: the client cannot see that something is missing
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if fault in ("cut", "truncate") else body)
        request.close_connection = True


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def get(download, server, tmp_path):
    def get(*flags, only="a.bin"):
        arguments = ["--folder", str(tmp_path), "--url", server.url, "--only", only, *flags]
        download.main(*parse_flags(download.DownloadSettings, arguments))

    return get


def test_downloads_everything_and_verifies(download, server, tmp_path, capsys):
    download.main(*parse_flags(download.DownloadSettings, ["--folder", str(tmp_path), "--url", server.url]))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert (tmp_path / "b.csv").read_bytes() == TABLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.csv"]
    assert capsys.readouterr().out.count("downloaded and verified") == 2


def test_a_verified_file_is_not_fetched_again(get, server, tmp_path):
    get()
    server.files.clear()
    get()
    assert len(server.ranges) == 1


def test_cut_connections_are_continued_where_they_broke(get, server, tmp_path):
    server.faults = ["cut", "cut"]
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=128000-", "bytes=192000-"]


def test_a_server_without_ranges_is_read_from_the_start(get, server, tmp_path):
    server.faults, server.knows_ranges = ["cut"], False
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_an_earlier_part_is_continued(get, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.ranges == ["bytes=1000-"]


def test_a_part_of_another_version_is_dropped(get, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.ranges == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_is_dropped(get, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x")
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_error_is_tried_again(get, server, tmp_path):
    server.faults = [503]
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_gives_up_after_some_attempts_and_keeps_what_came(get, server, tmp_path):
    server.faults = ["cut"] * 5
    with pytest.raises(UserError, match="broke 5 times"):
        get()
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").stat().st_size == 248000
    get()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["a.bin", "b.csv"])
def test_a_truncated_file_is_not_kept(get, server, tmp_path, name):
    server.faults = ["truncate"]
    with pytest.raises(UserError, match="not the course's file"):
        get(only=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.bin", b"wrong", "SHA-256"),
        ("b.csv", b"version https://git-lfs.github.com/spec/v1\n", "no column id"),
        ("b.csv", b"id\tsentence1\nx\ty\n", "1 rows, not 2"),
        ("b.csv", b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_wrong_file_is_not_kept(get, server, tmp_path, name, content, problem):
    server.files[f"/{name}"] = content
    with pytest.raises(UserError, match=problem):
        get(only=name)
    assert list(tmp_path.iterdir()) == []


def test_a_differing_file_is_replaced_by_force_only(get, server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="--force"):
        get()
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and server.ranges == []
    get("--force")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_force_keeps_the_old_file_where_the_new_one_fails(get, server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    server.files["/a.bin"] = b"wrong"
    with pytest.raises(UserError):
        get("--force")
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_a_file_that_is_not_there(get, server):
    server.files.clear()
    with pytest.raises(UserError, match="HTTP 404"):
        get()


def test_no_network_is_one_line_and_exit_code_2(tmp_path):
    server = Server()
    server.http.shutdown()
    server.http.server_close()  # the port is closed now
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--url", server.url]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("error: no network") and outcome.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_file_names_are_refused(download):
    with pytest.raises(UserError, match="no file"):
        parse_flags(download.DownloadSettings, ["--only", "c.bin"])


def test_the_hashes_are_those_of_the_real_files(real_data):
    spec = importlib.util.spec_from_file_location("download_real", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["download_real"] = module
    spec.loader.exec_module(module)
    hashed = [name for name, expected in module.FILES.items() if expected.sha256]
    assert len(hashed) == 10
    assert [name for name in hashed if module.what_is_wrong(real_data / name, module.FILES[name])] == []
