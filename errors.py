"""The one kind of error that users meet."""


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, what to do. Scripts exit with code 2."""


def check(condition, message):
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
