"""The progress of one command, on stderr.

With a terminal: a table of settings, then one calm panel (panel.py) that is redrawn in place. Without one: a line a
step, and one for whatever else happens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from lgrpo.health import Trouble
from lgrpo.history import History
from lgrpo.metrics import group, label, shown
from lgrpo.screen.pace import Pace
from lgrpo.screen.panel import LEFT, View, panel
from lgrpo.screen.terminal import console_on, line, table
from lgrpo.text import clean, duration, setting

_SAMPLE_EVERY = 60.0  # seconds between two plain samples
_POINTS = 2000  # of a curve
_SAMPLE_LETTERS = 300  # of each line of a plain sample


class Show:
    """The progress of one command: a context manager. Safe to call with any text.

    file: stderr unless given. live: a redrawn panel (True) or plain lines (False); by default a panel on a terminal.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        live: bool | None = None,
        width: int | None = None,
        height: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console_on(file or sys.stderr, live, width, height)
        self._clock = clock
        self._view: View | None = None
        self._next_sample = float("-inf")
        self._screen = Live(
            console=self._console, refresh_per_second=4, redirect_stdout=False, get_renderable=self._panel
        )

    def plan(self, settings: Sequence[Any]) -> None:
        """A table of settings; each has `name`, `value` and `reason`."""
        rows = [(entry.name, setting(entry.value), entry.reason) for entry in settings]
        table(self._console, ["setting", "value", "why"], rows)

    def stage(self, title: str, total: int | None, done: int = 0, history: History | None = None) -> None:
        """Begin a stage of `total` steps (None: nobody knows how many), `done` of them before (on resuming).

        Ends the stage before it. `history` is what its curves go on from.
        """
        before = self._view
        if before is not None:
            self._print(_ended(before), style="dim")
        self._view = View(Pace(clean(title), total, done, self._clock))
        if before is not None:
            self._view.sample, self._view.rows = before.sample, before.rows
        for step in history.steps if history else []:
            self._remember(step["step"], step)
        for score in history.scores if history else []:
            self._score(score)
        if self._console.is_terminal:
            self._screen.start(refresh=True)
        else:
            steps = "" if total is None else f": {total - done} steps"
            self._print(self._view.pace.title + steps + (f" after {done}" if done else ""))

    def phase(self, text: str) -> None:
        """What is being done right now, within a step; plain lines leave it out."""
        if self._view is not None:
            self._view.phase = clean(text)

    def step(self, done: int, numbers: Mapping[str, Any]) -> None:
        """`done` steps are behind, with these numbers; numbers of this stage that are not given stay on the panel."""
        view = self._staged()
        view.pace.step(done)
        view.phase = ""
        self._remember(done, numbers)
        if not self._console.is_terminal:
            left = view.pace.left()
            row = [f"{view.pace.title} {view.pace.count()}", *_words(numbers)]
            self._print("  ".join(row + ([f"left {duration(left)}"] if left else [])))

    def score(self, score: Mapping[str, Any]) -> None:
        """A score on held-out problems: `evaluate.Score.as_json`, with the step."""
        self._staged()
        self._score(score)
        self.say(
            f"step {score['step']}: held-out Pass@1 {score['pass@1']:.3f} ± {score['pass@1_se']:.3f}, "
            f"length {score['latent_length']:.1f} latent + {score['explicit_length']:.1f} explicit"
        )

    def health(self, troubles: Sequence[Trouble]) -> None:
        """What is out of its range now, all of it; plain lines say what is new and what is over."""
        view = self._staged()
        before, now = ({one.name: one for one in some} for some in (view.troubles, troubles))
        view.troubles = troubles
        if not self._console.is_terminal:
            for name in now.keys() - before.keys():
                self.warn(f"{now[name].what}. Usually helps: {now[name].help}.")
            for name in before.keys() - now.keys():
                self.say(f"{label(name)} is in its range again")

    def sample(self, problem: str, chain: str, answer: str, right: bool, reference: str = "") -> None:
        """One recent problem, what the model held in its latent chain, what it answered, and whether that is right."""
        problem, chain, answer, reference = (clean(text[:2000]).strip() for text in (problem, chain, answer, reference))
        self._staged().sample = problem, chain, answer, right, reference
        if not self._console.is_terminal and self._clock() >= self._next_sample:
            self._next_sample = self._clock() + _SAMPLE_EVERY
            verdict = "right" if right else f"wrong, it is {reference[:_SAMPLE_LETTERS]}" if reference else "wrong"
            for name, text in (("problem", problem), ("chain", chain), (verdict, answer)):
                self._print(f"sample {name}: {text[:_SAMPLE_LETTERS]}{'…' * (len(text) > _SAMPLE_LETTERS)}")

    def say(self, text: str) -> None:
        """One thing worth knowing, above the panel."""
        self._print(clean(text, lines=True))

    def warn(self, text: str) -> None:
        """One thing that may be wrong, above the panel."""
        self._print(clean(text, lines=True), lead="warning: ")

    def __enter__(self) -> Show:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()  # the panel stays as it was last
        if not self._console.is_terminal and self._view is not None:
            self._print(_ended(self._view))

    def _staged(self) -> View:
        if self._view is None:
            raise RuntimeError("stage() comes first")
        return self._view

    def _remember(self, step: int, numbers: Mapping[str, Any]) -> None:
        view = self._staged()
        view.numbers |= {name: value for name, value in numbers.items() if name != "step"}
        for name in LEFT:
            if isinstance(value := numbers.get(name), float) and abs(value) < float("inf"):
                points = view.points.setdefault(name, [])
                points.append((step, value))
                if len(points) == 2 * _POINTS:  # far more than a terminal has columns: neighbours become their mean
                    body = points[:-2]
                    pairs = zip(body[::2], body[1::2], strict=True)
                    points[:-2] = [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in pairs]

    def _score(self, score: Mapping[str, Any]) -> None:
        view = self._staged()
        view.scores = [point for point in view.scores if point[0] != score["step"]]
        view.scores.append((score["step"], score["pass@1"]))
        view.error = score["pass@1_se"]

    def _print(self, text: str, style: str = "", lead: str = "") -> None:
        line(self._console, Text.assemble((lead, "bold yellow"), (text, style)))

    def _panel(self) -> Group | Panel:
        return Group() if self._view is None else panel(self._view, self._console)


def _ended(view: View) -> str:
    """The line that stays of a stage."""
    pace = view.pace
    took = f"{pace.title}: {pace.done - pace.first} steps in {duration(pace.took())}"
    lasting = {name: value for name, value in view.numbers.items() if group(name) not in ("time", "device")}
    return "  ".join([took, *_words(lasting)])


def _words(numbers: Mapping[str, Any]) -> list[str]:
    return [f"{clean(label(name))} {shown(name, value)}" for name, value in numbers.items()]
