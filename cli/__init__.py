"""The command line: settings as flags, the run of a script, tables of figures. Knows nothing of models."""

import sys

OLDEST, NEWEST = (3, 11), (3, 13)  # the Pythons that this is tried with

# Here, since every script imports this first, and in words that Python 3.6 knows: it could not even read the rest
if sys.version_info < OLDEST:
    sys.stderr.write(
        f"error: this is Python {sys.version_info[0]}.{sys.version_info[1]}, and this project needs 3.11 or newer:"
        " install one, and make the environment with it (python3.11 -m venv .venv; on Windows py -3.11 -m venv .venv;"
        " with make: make PYTHON=python3.11)\n"
    )
    sys.exit(2)

import namesake  # noqa: E402, F401 - before anything imports `datasets`
