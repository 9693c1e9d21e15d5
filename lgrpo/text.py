"""Words and numbers for people, as plain strings: what the screen shows and other files may write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

TAB = 4  # columns from one stop to the next
_JOINERS = "\u200c\u200d"  # zero-width, but part of Persian and Indic words and of emoji


def clean(text: str, lines: bool = False) -> str:
    """`text` so that a terminal can only show it: controls, escapes and direction overrides become visible \\x codes.

    Line ends and tabs become spaces; with `lines` line feeds stay.
    """
    return "".join(_shown(letter, lines) for letter in text.expandtabs(TAB))


def _shown(letter: str, lines: bool) -> str:
    if letter.isprintable():
        return letter
    if letter in "\n\r":
        return letter if lines and letter == "\n" else " "
    kind = unicodedata.category(letter)
    if letter in _JOINERS or kind in {"Zs", "Co", "Cn"}:
        return letter
    return letter.encode("unicode_escape").decode("ascii") if kind != "Cs" else "\N{REPLACEMENT CHARACTER}"


def number(value: Any) -> str:
    """Floats by three significant digits, so that columns stand still: 0.810, 12.3, 2.0e-6. Others as they are."""
    if isinstance(value, bool) or not isinstance(value, float):
        return clean(str(value))
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:.3g}"
    if not 1e-3 <= abs(value) < 1e6:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}"


def setting(value: Any) -> str:
    """A setting's value as short as it can be written: 1e-06, yes, 2, 3; - where there is none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value) or "-"
    return clean(str(value))


def gigabytes(size: float) -> str:
    """Bytes for people: megabytes where it is less than a tenth of a gigabyte, terabytes where it is more."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= 0.1 * unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 4:12 (minutes) or 1:04:12 (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def checkpoint_name(model: str) -> str | None:
    """`step 100` of a path that ends in checkpoints/step-000100; None of a path that is no checkpoint of a run."""
    path = PurePath(model)
    if path.parent.name != "checkpoints":
        return None
    kind, _, number = path.name.rpartition("-")
    return f"{kind} {int(number)}" if kind and re.fullmatch("[0-9]{1,12}", number) else path.name


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row, columns left-aligned and two spaces apart: a table for pipes and logs."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def whole_characters(text: str) -> str:
    """The text with `?` for halves of surrogate pairs, which JSON and terminals can hold and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
