"""A latent chain for people: a line a step, its words with their weights as bars, in columns.

The k-th of falling weights is at most 1/k, so its bar needs no more room than that: all bars of a chain have one
scale, and four words still fit a narrow terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from lgrpo.screen.terminal import console_on, line
from lgrpo.text import clean

Pairs = Sequence[tuple[str, float]]  # words and weights of a step, heaviest first

SEEN = 0.005  # weight: less is .00
_EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]
_NUMBER = 5  # columns before the words
_GAP = "   "  # between them


class Chain:
    """The steps of one chain, on stderr unless `file` is given; each line is there as soon as its step is."""

    def __init__(self, every: bool = False, file: TextIO | None = None, width: int | None = None) -> None:
        """every: all words of a step, on as many lines as they need; by default those that fit on one."""
        self._console = console_on(file or sys.stderr, None, width)
        self._every = every
        self._steps = 0
        tenth = max(8, min(16, self._console.width // 10))
        self._bar = tenth if draws_blocks(self._console) else 0  # columns of a weight of 1
        self._word, self._longest = 4, tenth  # columns of a word: those it takes, and those it may take

    def step(self, words: Pairs) -> None:
        """The next step."""
        self._steps += 1
        seen = [weight >= SEEN for _, weight in words].count(True)
        shown = [(clean(word), weight) for word, weight in words[: len(words) if self._every else max(1, seen)]]
        longest = max(cell_len(word) for word, _ in shown[: self._fitting(0, len(shown))])
        self._word = max(self._word, min(self._longest, longest))  # wider from here on: nobody knows what is to come
        start, number = 0, f"{self._steps:3}"
        while start < len(shown):
            end = start + self._fitting(start, len(shown))
            row = Text.assemble((number.ljust(_NUMBER), "dim"), Text(_GAP).join(self._cells(shown, start, end)))
            if not self._every and end < len(shown):
                row.append(f"  +{len(shown) - end}", "dim")
                end = len(shown)
            line(self._console, row)
            start, number = end, ""

    def _fitting(self, start: int, end: int) -> int:
        """How many words from rank `start` on fit on a line, with room for the number of those left out; at least 1."""
        used = _NUMBER - len(_GAP)
        for rank in range(start, end):
            used += len(_GAP) + self._word + 4 + (self._room(rank) + 1 if self._bar else 0)
            left_out = 0 if self._every or rank + 1 == end else 5
            if used + left_out > self._console.width and rank > start:
                return rank - start
        return end - start

    def _cells(self, shown: Pairs, start: int, end: int) -> list[Text]:
        return [self._cell(rank, *shown[rank]) for rank in range(start, end)]

    def _room(self, rank: int) -> int:
        """Columns of the bar of a word of this rank."""
        return -(-self._bar // (rank + 1))

    def _cell(self, rank: int, word: str, weight: float) -> Text:
        cell = Text(sized(self._console, word, self._word), style="bold" if rank == 0 else "")
        if self._bar:
            length = max(weight * self._bar, 1 / 8 if weight >= SEEN else 0)
            cell = Text.assemble(cell, " ", (bar(length, self._room(rank)), "magenta"))
        return Text.assemble(cell, " ", (points(weight), "dim"))


def draws_blocks(console: Console) -> bool:
    """Whether the stream can take the signs that bars are made of."""
    try:
        "█▏▸…·".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def bar(length: float, room: int) -> str:
    """A bar of `length` columns, to an eighth, in `room` columns."""
    full, eighths = divmod(round(8 * min(length, room)), 8)
    return ("█" * full + _EIGHTHS[eighths]).ljust(room)


def points(weight: float) -> str:
    """A share in three columns: .51, 1.0."""
    return f"{weight:.2f}"[1:] if weight < 0.995 else "1.0"


def sized(console: Console, text: str, width: int) -> str:
    """`text` in exactly so many columns: filled up, or cut and marked."""
    if width < 1:
        return ""
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    mark = "…" if draws_blocks(console) else "~"
    return set_cell_size(text, width - 1) + mark
