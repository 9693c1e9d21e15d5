"""Scores of `eval` as a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.text import Text

from lgrpo.screen.terminal import console_on, line, table
from lgrpo.text import clean, columns


def scores(rows: Sequence[Mapping[str, Any]], file: TextIO | None = None, width: int | None = None) -> None:
    """Results of `eval` as a table: one row each, with the keys of `eval --json`, and `checkpoint` where given."""
    console = console_on(file or sys.stderr, None, width)
    ks = sorted({str(k) for row in rows for k in row.get("pass@k", {})}, key=int)
    words = ["checkpoint"] * any("checkpoint" in row for row in rows) + ["benchmark"]
    head = [*words, "problems", "Pass@1", *(f"pass@{k}" for k in ks), "latent", "explicit", "length", "invalid"]
    cells = [
        [
            *(str(row.get(word, "")) for word in words),
            str(row["problems"]),
            f"{row['pass@1']:.3f} ± {row['pass@1_se']:.3f}",
        ]
        + [_or_dash({str(of): rate for of, rate in row.get("pass@k", {}).items()}, k, "{:.3f}") for k in ks]
        + [_or_dash(row, key, "{:.1f}") for key in ("latent_length", "explicit_length", "length")]
        + [_or_dash(row, "invalid", "{:.1%}")]
        for row in rows
    ]
    if len(words) == 1 or not console.is_terminal or len(max(columns([head, *cells]), key=len)) <= console.width:
        table(console, head, cells, words=len(words))
        return
    for name in dict.fromkeys(row[0] for row in cells):  # too narrow: a table for each checkpoint, its name above
        line(console, Text(clean(name), style="bold"))
        table(console, head[1:], [row[1:] for row in cells if row[0] == name], words=1)


def _or_dash(row: Mapping[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    return "-" if value is None else form.format(value)
