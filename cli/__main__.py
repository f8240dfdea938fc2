"""`python -m cli`: whether this Python will do. make asks before it installs anything; an older one gets no further
than __init__.py."""

import sys

from cli import NEWEST

if sys.version_info[:2] > NEWEST:
    found, newest = (".".join(map(str, version[:2])) for version in (sys.version_info, NEWEST))
    print(
        f"note: Python {found} is newer than what this was tried with: if a package has no build for it,"
        f" make PYTHON=python{newest} takes an older one"
    )
