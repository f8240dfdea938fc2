"""The zip that is handed in: what the scripts need to run, the predictions, and nothing else."""

import io
import zipfile
from pathlib import Path

from errors import check
from files import check_writable, write_bytes

NAME = "cs224n_default_final_project_submission.zip"
LEFT_OUT = {
    *("tests", "course", "notebooks", "benchmarks", "data", "docs", "experiments"),
    *("predictions", "runs", "build", "dist"),
}
MORE = ("README.md", "LICENSE", "requirements.txt", "requirements-extra.txt")
DATE = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes


def files_to_pack(root, with_tests=False):
    """The files below root, sorted. A package is every folder with Python in it, so that a new one is not forgotten."""
    root = Path(root)
    left_out = LEFT_OUT - ({"tests"} if with_tests else set())
    found = [*root.glob("*.py"), *(root / name for name in MORE)]
    for folder in root.iterdir():
        skipped = folder.name in left_out or folder.name.startswith(".") or (folder / "pyvenv.cfg").exists()
        if folder.is_dir() and not skipped:
            found += [path for path in folder.rglob("*") if path.suffix in (".py", ".html", ".toml")]  # all they read
    found += [path for path in (root / "predictions").glob("*") if path.suffix in (".csv", ".txt")]
    found += (root / "data" / "sample").glob("*")
    hidden = ("__pycache__", ".")
    return sorted(
        path
        for path in found
        if path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(hidden) for part in path.relative_to(root).parts)
    )


def write_zip(root, target, with_tests=False):
    """Write the zip whole or not at all; returns the names in it. Raises UserError."""
    check_writable(target)
    paths = files_to_pack(root, with_tests)
    check(paths, f"{root} holds no Python: run this in the project's folder")
    names = [path.relative_to(root).as_posix() for path in paths]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path, name in zip(paths, names, strict=True):
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            bundle.writestr(entry, path.read_bytes())
    write_bytes(target, buffer.getvalue())
    return names
