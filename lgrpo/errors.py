"""The one exception that is meant for a person."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that says what is wrong and what to do about it. The command line
    prints it without a traceback and exits with code 2.
    """
