"""stdin, which problems may come from: where there is none, or it cannot be read, one line says so."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from lgrpo.errors import UserError

_INSTEAD = "pipe the problems in, or give one in quotes or a --file"


def is_terminal() -> bool:
    """Whether a person types there."""
    return sys.stdin is not None and sys.stdin.isatty()


def text() -> str:
    """All of it. Raises UserError."""
    with _asked():
        return sys.stdin.read()


def lines() -> Iterator[bytes]:
    """Each as soon as it is there. Raises UserError."""
    with _asked():
        yield from _own_reader()


def _own_reader() -> Iterable[bytes]:
    """One that a thread waits in must not be the interpreter's, which closes it at the end."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # no real file
        return sys.stdin.buffer


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    if sys.stdin is None:
        raise UserError(f"there is no stdin to read from; {_INSTEAD}")
    try:
        yield
    except OSError as error:
        raise UserError(f"stdin cannot be read ({error.strerror or error}); {_INSTEAD}") from None
