"""A closed terminal or connection asks a run to stop, as Ctrl-C does, and asks once."""

import fcntl
import os
import pty
import signal
import termios
from collections.abc import Callable, Iterator

import pytest
from test_cli import latent, policy  # noqa: F401 - fixtures
from test_stderr import _here, read_until, steps_saved, train  # noqa: F401 - a fixture among them

from lgrpo.interrupt import StopRequest, terminate_like_ctrl_c


def test_a_run_whose_terminal_is_closed_saves_and_ends(latent: str) -> None:  # noqa: F811
    """The whole terminal, of which it is the first process: the system tells it, and takes no more of the show."""
    outer, inner = pty.openpty()
    process = train(latent, inner, stdin=inner, env={**os.environ, "TERM": "dumb"}, preexec_fn=_own_terminal)
    os.close(inner)
    read_until(outer, b"train 2/900")
    os.close(outer)
    assert process.wait(100) == 130
    done, saved = steps_saved()
    assert done == saved >= 2


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def hangup() -> Iterator[Callable[[], None]]:
    """Sends one; before, it is what it is on a terminal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield lambda: os.kill(os.getpid(), signal.SIGHUP)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_asks_once_however_often_it_is_told(hangup: Callable[[], None]) -> None:
    said: list[str] = []
    with StopRequest(said.append) as stop:
        hangup()
        assert stop
        hangup()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    terminate_like_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        hangup()
    hangup()


def test_a_closed_terminal_that_nohup_ignores_stays_ignored(hangup: Callable[[], None]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminate_like_ctrl_c()
    with StopRequest() as stop:
        hangup()
        assert not stop
    hangup()
