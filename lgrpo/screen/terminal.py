"""A console on a stream, and lines and tables on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lgrpo.text import clean, columns


def console_on(file: TextIO, live: bool | None = None, width: int | None = None, height: int | None = None) -> Console:
    """A console on `file`. live: as on a terminal (True), plain lines (False), or by what the file is."""
    if live is None:
        live = file.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}
    return Console(
        file=file, force_terminal=live, width=width, height=height, highlight=False, markup=False, emoji=False
    )


def line(console: Console, text: Text) -> None:
    if console.is_terminal:
        console.print(text)
    else:  # one line stays one line, however long
        print(text.plain, file=console.file, flush=True)


def table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], words: int | None = None) -> None:
    """A table on a terminal, aligned lines elsewhere; columns from `words` on are numbers, the first never wraps."""
    rows = [[clean(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        print("\n".join(columns([head, *rows])), file=console.file, flush=True)
        return
    wide = len(max(columns([head, *rows]), key=len)) > console.width
    gap = (0, 0) if wide and words is not None else (0, 1, 0, 0)  # numbers rather closer together than folded
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=gap, header_style="bold", border_style="dim")
    for at, name in enumerate(head):
        numeric = words is not None and at >= words
        grid.add_column(
            name, no_wrap=words is None and at == 0, overflow="fold", justify="right" if numeric else "left"
        )
    for row in rows:
        grid.add_row(*map(Text, row))
    console.print(grid, Text())


def note(text: str) -> None:
    """One quiet line on stderr."""
    line(console_on(sys.stderr), Text(clean(text), "dim"))


def label(text: str) -> None:
    """A quiet beginning of a line whose rest goes to stdout; only where both streams are one terminal."""
    console_on(sys.stderr).print(Text(clean(text), "dim"), end="")
    sys.stderr.flush()
