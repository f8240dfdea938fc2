"""How a script runs: errors and stops are one line, not a traceback, and only one of several processes speaks."""

import contextlib
import os
import signal
import sys

from errors import UserError


class Stopped(BaseException):
    """Ctrl-C or SIGTERM has come. No Exception, so that nothing that mends errors takes it for one."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class _Stops:
    """What has come, and what shall happen then."""

    asked = None  # the number of the signal
    deferred = 0  # how many `finish_first` are open
    running = False  # before that, there is nothing to be kept
    hint = "nothing was begun"


def start(parse, *arguments):
    """The first thing a script does, before its heavy imports: stops and output become orderly, flags are read."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    return run_script(parse, *arguments)


def _on_signal(number, frame):
    if not _Stops.running or _Stops.asked is not None:  # a second one stops at once
        line = f"stopped; {_Stops.hint}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8", "replace")
        os.write(2, line if is_main_process() else b"")
        os._exit(128 + number)
    _Stops.asked = number
    if not _Stops.deferred:
        raise Stopped(number)


@contextlib.contextmanager
def finish_first():
    """Within this context a stop only is noted (`stop_asked`); what is being done can be brought to an end."""
    _Stops.deferred += 1
    try:
        yield
    finally:
        _Stops.deferred -= 1


def stop_asked():
    """The number of the signal that has come, or None."""
    return _Stops.asked


def on_stop(hint):
    """What a user is told after a stop: how to go on."""
    _Stops.hint = hint


def is_main_process():
    """Whether this is the only process, or the first of those that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(text="", end="\n"):
    """Print, in the main process alone. A reader that is gone (`| head`) is no reason to stop a training."""
    if not is_main_process():
        return
    try:
        try:
            print(text, end=end, flush=True)
        except UnicodeEncodeError:  # in another's script: ours have told their streams what to do then
            encoding = sys.stdout.encoding
            print(str(text).encode(encoding, "replace").decode(encoding), end=end, flush=True)
    except BrokenPipeError:
        sys.stdout = _nowhere()


def run_script(main, *arguments):
    """Call main(*arguments). A UserError or a stop becomes a line on stderr and an exit code; other errors are bugs."""
    _Stops.running = True
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a console cannot show is replaced; a log gets each line as it comes
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        result = main(*arguments)
        if several := _processes_that_train_as_one():
            several.destroy_process_group()  # left to the interpreter's end, its threads abort one process in two
        return result
    except UserError as error:
        _tell(f"error: {' '.join(str(error).split())}")
        _exit(error.exit_code)
    except Stopped as stop:
        _tell(f"stopped; {_Stops.hint}")
        _exit(128 + stop.number)
    except KeyboardInterrupt:  # where nobody called `start`
        _tell(f"stopped; {_Stops.hint}")
        _exit(130)
    except BrokenPipeError:
        sys.stdout = _nowhere()
        _exit(141)
    finally:
        _Stops.running, _Stops.asked = False, None


def _nowhere():
    """A stream for what nobody reads, for the rest of the process."""
    return open(os.devnull, "w", encoding="utf-8", errors="replace")


def _exit(code):
    """End the process. One of several ends at once: whatever it would still tidy up, the others may have closed, and
    that ends in an abort."""
    if _processes_that_train_as_one():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _processes_that_train_as_one():
    """torch.distributed where this is one of several processes, else None. (torch is not imported to ask.)"""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def _tell(line):
    """On stderr, by the first process of every host: one may see what the others do not."""
    if is_main_process() or os.environ.get("LOCAL_RANK") == "0":
        print(line, file=sys.stderr)
