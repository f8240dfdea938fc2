"""The command line: settings as flags, the run of a script, tables of figures. Knows nothing of models."""

import sys

# Here, since every script imports this first: an older Python cannot even read the rest
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("error: this project needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2])  # noqa: UP031
