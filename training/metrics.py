"""metrics.jsonl of a run: a line of JSON for each step and each epoch."""

import hashlib
import json
import os

from cli.script import say
from training.storage import user_errors


class Metrics:
    """The file of metrics, a line of JSON each. What is kept of a run says how much of the file belongs to it."""

    def __init__(self, path):
        self.path, self.digest, self.size = path, hashlib.sha256(), 0

    def add(self, record):
        line = (json.dumps(record) + "\n").encode()
        with user_errors(self.path), open(self.path, "ab") as file:
            file.write(line)
        self.digest.update(line)
        self.size += len(line)

    def sync(self):
        """Put it on the disk; returns (bytes, their SHA-256)."""
        if self.size:
            with user_errors(self.path), open(self.path, "rb+") as file:
                os.fsync(file.fileno())
        return self.size, self.digest.hexdigest()

    def cut_to(self, size, sha256):
        """Drop the lines of steps that are taken again. Says where the rest is not what was written."""
        with user_errors(self.path):
            kept = self.path.read_bytes()[:size] if self.path.exists() else b""
            self.digest, self.size = hashlib.sha256(kept), len(kept)
            if size and self.digest.hexdigest() != sha256:
                say(f"{self.path} is damaged or cut short: what it says of the first steps is not what was written")
            if self.path.exists():
                os.truncate(self.path, len(kept))


def read_lines(path):
    """Those of its lines that can be read, as dicts."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:  # damage was said when the run was opened
            continue
        if isinstance(values, dict):
            found.append(values)
    return found
