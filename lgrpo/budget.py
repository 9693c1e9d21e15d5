"""What is done where memory runs out: a micro-batch of half as many positions, from there on, or one line to the user.

Docs/method.md, 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from lgrpo.errors import UserError
from lgrpo.repeatable import Repeatable

if TYPE_CHECKING:
    from lgrpo.runs import Run
    from lgrpo.screen import Show

Parts = list[list[int]]  # numbers of the rows of each micro-batch
Report = Callable[[str, int], None]  # name of what was made smaller, and its value from here on
T = TypeVar("T")


def unheard(*said: object) -> None:
    """A report to nobody."""


class Budget:
    """`positions` a micro-batch; `report("micro_tokens", positions)` hears of each new value.

    `on_refused(operation)` hears where sums cannot be taken in the same order each time (repeatable.py).
    """

    def __init__(self, positions: int, report: Report = unheard, on_refused: Callable[[str], None] = unheard):
        self.positions, self.report = positions, report
        self.repeatable = Repeatable(on_refused)

    def spend(self, cut: Callable[[int], Parts], work: Callable[[Parts], T], undo: Callable[[], None]) -> T:
        """`work(parts)` over the micro-batches `cut(positions)`.

        Where it runs out of memory, all of it is done again in smaller ones, after `undo()`. Raises UserError when the
        smallest, of one row each, do not fit.
        """
        while True:
            parts = cut(self.positions)
            try:
                return self.repeatable.run(partial(work, parts), undo)
            except torch.OutOfMemoryError:
                pass  # what the failed attempt holds is freed with its traceback, at the end of this block
            undo()
            torch.cuda.empty_cache()
            self._halve(cut, parts)

    def _halve(self, cut: Callable[[int], Parts], parts: Sequence[Sequence[int]]) -> None:
        """To the first half that cuts more finely."""
        if all(len(part) == 1 for part in parts):
            raise single_row_too_long()
        while cut(self.positions) == parts:
            self.positions = max(1, self.positions // 2)
        self.report("micro_tokens", self.positions)


def single_row_too_long() -> UserError:
    return UserError(
        "out of memory on a single row: free memory on the device, and the same command goes on from the latest "
        "checkpoint; or begin anew with --out and shorter rows (--set max_response=N, max_prompt=N) or a smaller model"
    )


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Inside, running out of memory is a UserError: there is no smaller way to have `what`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise no_room(what) from None


def no_room(what: str) -> UserError:
    return UserError(
        f"out of memory: no room for {what}; take a smaller model or free memory on the device. "
        "The same command goes on from the latest checkpoint"
    )


def reporter(run: Run | None, show: Show) -> Report:
    """The `Report` of a run: an event, and a word to whoever is watching."""

    def smaller(name: str, value: int) -> None:
        if run is not None:
            run.event("out_of_memory", **{name: value})
        show.warn(f"out of memory; done again with {name} {value}, and the result is the same")

    return smaller


def unrepeatable(run: Run | None, show: Show) -> Callable[[str], None]:
    """What a budget's `on_refused` does in a run: an event, and a word to whoever is watching."""

    def refused(operation: str) -> None:
        if run is not None:
            run.event("not_repeatable", operation=operation)
        show.warn(f"{operation} adds up in another order each time here: the same seed ends a little elsewhere")

    return refused


def fewer_rollouts(run: Run | None, show: Show) -> Callable[[str], None]:
    """What an engine's report does in a run: an event, and a word to whoever is watching."""

    def fewer(line: str) -> None:
        if run is not None:
            run.event("rollouts", note=line)
        show.warn(line)

    return fewer
