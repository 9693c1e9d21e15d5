"""The one exception that is meant for a person, and what others say in a line."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that says what is wrong and what to do about it. The command line
    prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of what a library says, cut to a length that leaves room for the rest of a message."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
