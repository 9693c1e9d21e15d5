"""Ctrl-C, SIGTERM and a closed terminal ask a run to stop at its next safe point; a second one stops it at once."""

import contextlib
import signal
from collections.abc import Callable
from types import FrameType, TracebackType

HANGUP: int | None = getattr(signal, "SIGHUP", None)  # its terminal or connection is closed; not on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *((HANGUP,) if HANGUP else ()))


class Stopped(KeyboardInterrupt):
    """A run stopped because it was asked to; everything is saved, and the user knows."""


def terminate_like_ctrl_c() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt too: helpers end and the terminal is put back."""
    with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
        for number in SIGNALS:
            if number != signal.SIGINT and not _unheard(number):
                signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == HANGUP:  # one closed window may say so twice: the system, and the shell to all it began
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _unheard(number: int) -> bool:
    """Whether it is a closed terminal's, which `nohup` had ignored before we began."""
    return number == HANGUP and signal.getsignal(number) == signal.SIG_IGN


class StopRequest:
    """A context manager that is true once the user, or the container, asked to stop. `say` hears of it."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._asked = False
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if _unheard(number):
                continue
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: signals are somebody else's
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            if number == HANGUP:  # the same closed window, again: nobody is in a hurry
                return
            raise KeyboardInterrupt
        self._asked = True
        if self._say:
            with contextlib.suppress(RuntimeError):  # the signal came in the middle of another line
                self._say("stopping after this step; a second time stops at once, and loses what is not saved yet")
