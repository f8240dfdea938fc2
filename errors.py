"""The errors that users meet."""

LONGEST = 800  # characters of a message; of a longer one, which quotes something endless, the middle is left out


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, what to do. Scripts exit with `exit_code`."""

    exit_code = 2

    def __init__(self, message=""):
        line = " ".join(str(message).splitlines())  # what a file holds may have line ends, or codes for terminals
        line = line if len(line) <= LONGEST else f"{line[: LONGEST - 305]} ... {line[-300:]}"
        super().__init__("".join(mark if mark.isprintable() else "\ufffd" for mark in line))


class Diverged(UserError):
    """Training or prediction came to numbers that are not finite. What was kept before is good."""

    exit_code = 1


def check(condition, message):
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def is_out_of_memory(error):
    """Whether an error says that memory, of the GPU or of the CPU, has run out. (torch is not imported to ask.)"""
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or any(word in str(error) for word in words)
