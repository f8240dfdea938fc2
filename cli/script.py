"""How a script runs: users' errors are one line, not a traceback, and only one of several processes speaks."""

import os
import sys

from errors import UserError


def is_main_process():
    """Whether this is the only process, or the first of those that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(text=""):
    """Print, in the main process alone."""
    if is_main_process():
        print(text)


def run_script(main, *arguments):
    """Call main(*arguments). A UserError becomes one line on stderr and exit code 2; other errors are bugs and show."""
    try:
        return main(*arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; complete epochs are kept: the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
