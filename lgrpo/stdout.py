"""stdout, which is the answer: where it takes no more, one line says so; where its reader has left, we end quietly."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from lgrpo.errors import UserError


@contextlib.contextmanager
def answering() -> Iterator[TextIO]:
    """stdout, to write to; flushed at the end.

    Raises UserError where it cannot be written, and BrokenPipeError, of which the command line makes a quiet end, where
    nobody reads it any more.
    """
    if sys.stdout is None:
        raise UserError("there is no stdout to write the answer to; leave it open, or send it to a file")
    try:
        with contextlib.suppress(AttributeError):  # no text is refused for the sake of its encoding
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop()
        reason = error.strerror or error
        raise UserError(
            f"the answer cannot be written to stdout ({reason}); send it elsewhere, and ask again"
        ) from None


def _drop() -> None:
    """What is still in the buffer would be an error again, when the interpreter ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
