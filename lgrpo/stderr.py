"""stderr, which is the show: where nobody takes it any more, the run goes on without."""

import io
import os
import sys
from typing import Any


def spectate() -> None:
    """From now on no write to stderr fails, nor its flush at the interpreter's end: what it does not take is dropped.

    Of a program's own stderr, which has bytes below its text; one that somebody put in its place is left as it is.
    """
    if sys.stderr is None:  # closed before we began; `print` would take stdout instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
        return
    buffer = getattr(sys.stderr, "buffer", None)
    if buffer is not None:
        show = io.BufferedWriter(_Show(getattr(buffer, "raw", buffer)))
        sys.stderr = io.TextIOWrapper(show, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


class _Show(io.RawIOBase):
    """The bytes of `stream`. Each write is tried, for a disk may have room again and a pipe only be full for now."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        try:
            return self._stream.write(data) or len(data)  # None: it would have to wait
        except (OSError, ValueError):  # its reader has left, its terminal is closed, its disk is full; it is closed
            return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        return bool(self._stream.isatty())
