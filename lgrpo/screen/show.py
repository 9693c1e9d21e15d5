"""The progress of one command, on stderr.

With a terminal: a table of settings, then one calm panel (bar, numbers, a recent sample) that is redrawn in place.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.box import ROUNDED
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lgrpo.screen.terminal import console_on, line, table
from lgrpo.text import clean, duration, number, setting

_WIDEST = 110  # columns: beyond that a line of text is hard to read and a bar says no more
_LINE_EVERY = 1.0  # seconds between two plain lines of one stage
_SAMPLE_EVERY = 60.0  # seconds between two plain samples
_SAMPLE_LETTERS = 300  # of each line of a plain sample
_PROBLEM_ROWS, _CHAIN_ROWS = 2, 3


class Pace:
    """How far a stage is, and how long it will take at the speed of its last 50 steps."""

    def __init__(self, title: str, total: int, done: int, clock: Callable[[], float]) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self._clock = clock
        self._began = clock()
        self._marks = deque([(self._began, done)], maxlen=50)

    def step(self, done: int) -> None:
        self.done = done
        self._marks.append((self._clock(), done))

    def took(self) -> float:
        """Seconds since the stage began in this process."""
        return self._clock() - self._began

    def left(self) -> float | None:
        """Seconds to the end, counting down between steps; None before the first step."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        if after <= before:
            return None
        step = (end - start) / (after - before)
        return max(0.0, step * (self.total - after) - (self._clock() - end))

    def count(self) -> str:
        return f"{self.done}/{self.total}"


class Show:
    """The progress of one command: a context manager. Safe to call with any text.

    file: stderr unless given. live: a redrawn panel (True) or plain lines (False); by default a panel on a terminal.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        live: bool | None = None,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file or sys.stderr
        self._console = console_on(self._file, live, width)
        self._clock = clock
        self._pace: Pace | None = None
        self._numbers: dict[str, str] = {}
        self._sample: tuple[str, str, str, bool] | None = None
        self._rows = 0  # of the sample, at most so far: the panel never shrinks
        self._waiting: str | None = None  # a plain line held back
        self._next_line = self._next_sample = float("-inf")
        self._screen = Live(
            console=self._console, refresh_per_second=4, redirect_stdout=False, get_renderable=self._panel
        )

    def plan(self, settings: Sequence[Any]) -> None:
        """A table of settings; each has `name`, `value` and `reason`."""
        rows = [(entry.name, setting(entry.value), entry.reason) for entry in settings]
        table(self._console, ["setting", "value", "why"], rows)

    def stage(self, title: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps, `done` of them before (on resuming); ends the stage before it."""
        self._flush()
        ended = self._ended()
        self._numbers = {}
        self._pace = Pace(clean(title), total, done, self._clock)
        if ended:
            self._print(ended, style="dim")
        if self._console.is_terminal:
            self._screen.start(refresh=True)
        else:
            self._print(f"{self._pace.title}: {total - done} steps" + (f" after {done}" if done else ""))

    def step(self, done: int, numbers: Mapping[str, Any]) -> None:
        """`done` steps are behind, with these numbers; numbers of this stage that are not given stay on the panel."""
        if self._pace is None:
            raise RuntimeError("step() before stage()")
        self._pace.step(done)
        given = {clean(name): number(value) for name, value in numbers.items()}
        self._numbers = {**self._numbers, **given}
        if self._console.is_terminal:
            return
        left = self._pace.left()
        row = [f"{self._pace.title} {self._pace.count()}", *(f"{name} {value}" for name, value in given.items())]
        self._waiting = "  ".join(row + ([f"left {duration(left)}"] if left else []))
        if self._clock() >= self._next_line:
            self._flush()

    def sample(self, problem: str, chain: str, answer: str, right: bool) -> None:
        """One recent problem, what the model held in its latent chain, what it answered, and whether that is right."""
        problem, chain, answer = (clean(text[:2000]).strip() for text in (problem, chain, answer))
        self._sample = (problem, chain, answer, right)
        if not self._console.is_terminal and self._clock() >= self._next_sample:
            self._next_sample = self._clock() + _SAMPLE_EVERY
            self._flush()
            for name, text in (("problem", problem), ("chain", chain), ("right" if right else "wrong", answer)):
                self._print(f"sample {name}: {text[:_SAMPLE_LETTERS]}{'…' * (len(text) > _SAMPLE_LETTERS)}")

    def say(self, text: str) -> None:
        """One thing worth knowing, above the panel."""
        self._flush()
        self._print(clean(text, lines=True))

    def warn(self, text: str) -> None:
        """One thing that may be wrong, above the panel."""
        self._flush()
        self._print(clean(text, lines=True), lead="warning: ")

    def __enter__(self) -> Show:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._screen.stop()  # the panel stays as it was last
        if not self._console.is_terminal and self._pace is not None:
            self._print(self._ended())

    def _ended(self) -> str:
        """The line that stays of the stage that ends now."""
        if self._pace is None:
            return ""
        took = f"{self._pace.title}: {self._pace.done - self._pace.first} steps in {duration(self._pace.took())}"
        return "  ".join([took, *(f"{name} {value}" for name, value in self._numbers.items())])

    def _flush(self) -> None:
        if self._waiting is not None:
            self._print(self._waiting)
            self._waiting = None
            self._next_line = self._clock() + _LINE_EVERY

    def _print(self, text: str, style: str = "", lead: str = "") -> None:
        line(self._console, Text.assemble((lead, "bold yellow"), (text, style)))

    # -- the panel

    def _panel(self) -> Group | Panel:
        if self._pace is None:
            return Group()
        width = min(self._console.width, _WIDEST)
        inside = width - 4
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(max(self._pace.total, 1), self._pace.done, inside, complete_style="magenta"))
        parts: list[Any] = [self._head(), bar]
        if self._numbers:
            parts += _grid(self._numbers, inside)
        if self._sample:
            lines = self._sample_lines(inside)
            self._rows = max(self._rows, len(lines))
            parts += [Text(), *lines, *[Text()] * (self._rows - len(lines))]
        return Panel(Group(*parts), box=ROUNDED, border_style="dim", width=width)

    def _head(self) -> Table:
        assert self._pace is not None
        left = self._pace.left()
        head = Table.grid(expand=True)
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        count = Text(self._pace.count())
        count.append("" if left is None else f"  {duration(left)} left", style="dim")
        head.add_row(Text(self._pace.title, style="bold"), count)
        return head

    def _sample_lines(self, width: int) -> list[Text]:
        assert self._sample is not None
        problem, chain, answer, right = self._sample
        verdict = Text("right  " if right else "wrong  ", style="green" if right else "red")
        verdict.append(answer, style="default")
        verdict.truncate(width, overflow="ellipsis")
        return [
            *self._clip(Text(problem), width, _PROBLEM_ROWS),
            *self._clip(Text(chain, style="magenta"), width, _CHAIN_ROWS),
            verdict,
        ]

    def _clip(self, text: Text, width: int, rows: int) -> list[Text]:
        lines = list(text.wrap(self._console, width))
        if len(lines) > rows:
            lines[rows - 1].rstrip()
            lines[rows - 1].truncate(width - 1)
            lines[rows - 1].append("…")
        return lines[:rows]


def _grid(numbers: Mapping[str, str], width: int) -> list[Text]:
    """Name and value in as many equal columns as fit."""
    names, values = max(map(len, numbers)), max(7, *map(len, numbers.values()))
    across = max(1, (width + 3) // (names + values + 4))
    cells = [Text.assemble((name.ljust(names), "dim"), " ", value.rjust(values)) for name, value in numbers.items()]
    lines = [Text("   ").join(cells[at : at + across]) for at in range(0, len(cells), across)]
    for shown in lines:
        shown.truncate(width, overflow="ellipsis")
    return lines
