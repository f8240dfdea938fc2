"""Download the course's official files into data/ and verify them.

python data/download.py                          everything, about 70 MB
python data/download.py --only sonnets.txt       some of it

Source: the course's public repository, https://github.com/cfifty/public_cs224n_gpt. A download that is cut off goes on
where it stopped. A file takes its name only when it has been verified; a file of yours that differs is never replaced
without --force.
"""

import csv
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from cli.flags import Script, Settings, flag, group, parse_flags, split_names
from cli.near import did_you_mean
from cli.script import run_script
from errors import UserError, check

SOURCE = "https://raw.githubusercontent.com/cfifty/public_cs224n_gpt/HEAD/data"
PAIR_COLUMNS = ("id", "sentence1", "sentence2")
ATTEMPTS = 5
TIMEOUT = 20.0  # seconds without a byte


@dataclass(frozen=True)
class Expected:
    """What a file must be: its hash or, where the authors have no copy to hash, its columns and its number of rows."""

    sha256: str | None = None
    columns: tuple = ()
    rows: int = 0


FILES = {
    "sonnets.txt": Expected("722836995bea43c112897546c7d09a81458b740bb510596f7e81104ca3ab624e"),
    "sonnets_held_out.txt": Expected("41417eafa263e822f1bb9e52fbdbe0ff910982d2f7663231afd3b7d6b3174ae6"),
    "sonnets_held_out_dev.txt": Expected("309ae8da81a24de61a261c291c1299f5c6bfbf4e6b7d1d5b50bd15b6c1770afd"),
    "TRUE_sonnets_held_out_dev.txt": Expected("fb41ee87e70107f554b658c8de07a6ae905298db09da84794dfaa2a61e892a1f"),
    "quora-train.csv": Expected(columns=(*PAIR_COLUMNS, "is_duplicate"), rows=283_003),
    "quora-dev.csv": Expected(columns=(*PAIR_COLUMNS, "is_duplicate"), rows=40_429),
    "quora-test-student.csv": Expected(columns=PAIR_COLUMNS, rows=80_858),
    "ids-sst-train.csv": Expected("03b2b625c090f94a6afd59f114cde5282e2053aab0b101e87ed695d8a0c5b1df"),
    "ids-sst-dev.csv": Expected("a186ce94577635fbe10beaaddd50f16cccf6c30973221cefdf90deed2a584bfe"),
    "ids-sst-test-student.csv": Expected("bdd5a767faa0c26782117e37767ece154c30d5d04fb8727d09c71e3850a55c7b"),
    "ids-cfimdb-train.csv": Expected("140fc513045a966109faed46a5c7a898767b96714d71bcb9c15f659129fadcea"),
    "ids-cfimdb-dev.csv": Expected("3087f571b66860fe5d035b5a018d08202ad3fd3720e4821c04b2acf6c7ded559"),
    "ids-cfimdb-test-student.csv": Expected("7ae611548c9eac879e9ebb406cc9f8ae68ff12f78090e4965af5cbdfa06240f4"),
}


class DownloadOptions(Settings):
    """download"""

    only: str = flag("", f"comma-separated files, out of {', '.join(FILES)}; by default all")
    folder: str = flag(str(Path(__file__).resolve().parent), "where the files go")
    url: str = flag(SOURCE, "where they come from")
    force: bool = flag(False, "replace files of yours that differ from the course's")

    def relate(self):
        check(
            re.fullmatch(r"(https?|file)://[!-~]+", self.url), f"--url {self.url!r} is no address: begin with https://"
        )
        unknown = [name for name in self.names if name not in FILES]
        near = did_you_mean(unknown[0], FILES) if unknown else ""
        check(not unknown, f"--only: the course has no file {unknown[:1]}; choose from {', '.join(FILES)}{near}")

    @property
    def names(self):
        return split_names(self.only) or list(FILES)


class DownloadSettings(Script):
    """Download the course's official files and verify them; a stopped download goes on where it was."""

    download: DownloadOptions = group(DownloadOptions)


def main(settings, given):
    options = settings.download
    kept = []
    for name in options.names:
        path, expected = Path(options.folder) / name, FILES[name]
        if path.exists():
            problem = what_is_wrong(path, expected)
            if problem is None:
                print(f"{name}: already there, verified")
                continue
            if not options.force:
                print(f"{name}: kept as it is; it is not the course's file ({problem})")
                kept.append(name)
                continue
        fetch(f"{options.url}/{name}", path, expected)
        print(f"{name}: downloaded and verified ({path.stat().st_size:,} bytes)")
    if kept:
        raise UserError(f"{', '.join(kept)} differ from the course's: move them away, or replace them with --force")


def fetch(url, path, expected):
    """Download url to path. What has arrived stays in path.part until the whole is verified. Raises UserError."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        continued = part.exists() and part.stat().st_size > 0
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                time.sleep(2.0 ** (attempt - 2))
            if not _receive(url, part):
                continued = True
                continue
            problem = what_is_wrong(part, expected)
            if problem is None:
                os.replace(part, path)
                return
            part.unlink()
            if not continued:
                raise UserError(f"{url} is not the course's file ({problem}): it was not kept; try again later")
            continued = False  # the beginning was from another version: once more, from the start
    except KeyboardInterrupt as error:
        raise UserError(f"stopped; what has arrived of {path.name} is kept, the same command goes on") from error
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): make room, or choose another --folder") from error
    raise UserError(f"the connection broke {ATTEMPTS} times at {path.name}: the same command goes on where it stopped")


def _receive(url, part):
    """Append to part what it lacks of url. Returns whether the whole has arrived. Raises UserError."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what we have: it is whole, or not this file at all
            return True
        if error.code >= 500:
            return False
        raise UserError(f"{url} is not there (HTTP {error.code}): check --url, or get the file by hand") from error
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ConnectionResetError):
            return False
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no network: {url} cannot be reached ({reason}); connect, then give the same command"
        ) from error
    except (ConnectionError, http.client.HTTPException):
        return False
    with response:
        if response.status != 206:  # the server does not go on in the middle: from the start
            have = 0
        left = response.headers.get("Content-Length")
        total = have + int(left) if (left or "").isdecimal() else None
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if have else "wb") as file, bar:
            while True:
                try:
                    block = response.read(1 << 16)
                except (OSError, http.client.HTTPException):  # the network's, not the disk's: try again
                    return False
                if not block:
                    return total is None or have == total
                file.write(block)
                have += len(block)
                bar.update(len(block))


def what_is_wrong(path, expected):
    """None for a file that is as expected, else a few words."""
    if expected.sha256:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return None if digest.hexdigest() == expected.sha256 else f"its SHA-256 is {digest.hexdigest()[:12]}..."
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = next(reader, [])
            missing = [name for name in expected.columns if name not in header]
            if missing:
                return f"it has no column {missing[0]}"
            rows = sum(1 for row in reader if row)
    except (UnicodeDecodeError, csv.Error) as error:
        return f"it cannot be read: {error}"
    return None if rows == expected.rows else f"it has {rows:,} rows, not {expected.rows:,}"


if __name__ == "__main__":
    run_script(lambda: main(*parse_flags(DownloadSettings)))
