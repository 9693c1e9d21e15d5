"""Scores of `eval`: a table for the terminal, columns for a pipe, Markdown to paste.

All take what `eval --json` prints, as a list: `checkpoint`, which one that was, and its `results`, the later ones with
`against`, their comparison to the first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from lgrpo.screen.terminal import console_on, line, table
from lgrpo.text import checkpoint_name, clean, columns

Row = Mapping[str, Any]  # one entry of `results`, with its `checkpoint`
_HASH = 8  # of its digits: enough to tell checkpoints apart, and JSON has all of them
_SHOWN = 3  # problems that flipped, of each kind
_LETTERS = 100  # of a problem, without a terminal
_LABEL, _COLUMN = 14, 24  # columns that a line's name and a checkpoint's numbers take, side by side


def scores(results: Sequence[Row], file: TextIO | None = None, width: int | None = None) -> None:
    """A table with a row a score, where that fits or in a pipe; else one a benchmark, with a column a checkpoint."""
    console = console_on(file or sys.stderr, None, width)
    rows = _rows(results)
    head, cells = _wide(rows)
    fits = len(max(columns([head, *cells]), key=len)) <= console.width
    compared = [row for row in rows if "against" in row]
    if fits or not console.is_terminal:
        table(console, head, cells, words=3)
        if compared:
            line(console, Text(f"against {rows[0]['checkpoint']}, problem by problem"))
            table(console, *_comparison(compared), words=2)
    else:
        for name in dict.fromkeys(row["benchmark"] for row in rows):
            _upright(console, name, [row for row in rows if row["benchmark"] == name])
    for text in _unchecked(rows):
        line(console, Text(text, style="yellow"))
    for row in compared:
        if len(compared) > 1 and (row["against"]["won"] or row["against"]["lost"]):
            line(console, Text(f"{row['checkpoint']} on {row['benchmark']}", style="bold"))
        _flipped(console, row)


def markdown(results: Sequence[Row]) -> str:
    """The same as tables to paste."""
    rows = _rows(results)
    parts = [_markdown_table(*_wide(rows), words=3)]
    if compared := [row for row in rows if "against" in row]:
        head, cells = _comparison(compared)
        head[0] = f"against {rows[0]['checkpoint']}"
        parts.append(_markdown_table(head, cells, words=2))
    parts += [text.translate(_LITERALLY) for text in _unchecked(rows)]
    return "\n\n".join(parts)


def _rows(results: Sequence[Row]) -> list[Row]:
    """One a score, with names that a terminal can show."""
    return [
        {**entry, "checkpoint": _named(one), "hash": _hash(one), "benchmark": clean(str(entry["benchmark"]))}
        for one in results
        for entry in one["results"]
    ]


def _named(one: Row) -> str:
    """As the user called it; of a run, the checkpoint too that it stood for."""
    name, model = str(one["checkpoint"]), str(one.get("model"))
    which = checkpoint_name(model) if model != name else None
    return clean(name + (f" ({which})" if which else ""))


def _hash(one: Row) -> str:
    """The first digits."""
    return clean(str(one.get("model_hash") or "-"))[:_HASH]


def _unchecked(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row['checkpoint']} on {row['benchmark']}: {count} answers could not be checked, and count as wrong"
        for row in rows
        if (count := row.get("unchecked"))
    ]


def _wide(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    ks = _ks(rows)
    noisy = [f"pass@{'/'.join(ks)}, noise"] if ks else []
    head = ["checkpoint", "hash", "benchmark", "problems", "runs", "Pass@1 (95 %)", *noisy]
    cells = [
        [row["checkpoint"], row["hash"], row["benchmark"], str(row["problems"]), str(row["runs"]), _pass_at_1(row)]
        + (["/".join(_pass_at_k(row, k) for k in ks)] if ks else [])
        + [show(row) for _, show in _MEASURES]
        for row in rows
    ]
    return head + [name for name, _ in _MEASURES], cells


def _comparison(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    head = ["checkpoint", "benchmark", "difference (95 %)", "", "won", "lost"]
    return head, [
        [row["checkpoint"], row["benchmark"], _difference(row), _verdict(row), *_won_and_lost(row)] for row in rows
    ]


def _upright(console: Console, name: str, rows: Sequence[Row]) -> None:
    """One benchmark: a column a checkpoint, a line a number."""
    line(console, Text(f"{name}: {rows[0]['problems']} problems, {rows[0]['runs']} runs each", style="bold"))
    across = max(1, (console.width - _LABEL) // _COLUMN)
    for start in range(0, len(rows), across):
        part = rows[start : start + across]
        lines = [["hash", *(row["hash"] for row in part)], ["Pass@1", *map(_pass_at_1, part)]]
        lines += [[f"pass@{k}, noise", *(_pass_at_k(row, k) + _within(row, k) for row in part)] for k in _ks(part)]
        lines += [[name, *map(show, part)] for name, show in _MEASURES]
        if any("against" in row for row in part):
            lines += [["difference", *map(_difference, part)], ["", *map(_verdict, part)]]
            lines += [["won, lost", *(", ".join(_won_and_lost(row)) for row in part)]]
        table(console, ["", *(row["checkpoint"] for row in part)], lines, words=1)


def _flipped(console: Console, row: Row) -> None:
    """The first problems whose majority of runs changed sides."""
    against = row["against"]
    for kind, what, style in (("won", "right now", "green"), ("lost", "wrong now", "red")):
        for one in against[kind][:_SHOWN]:
            text = Text.assemble(
                (f"{what} ", style), f"{one['before']:.2f} -> {one['after']:.2f}  ", clean(one["problem"])
            )
            text.truncate(console.width if console.is_terminal else _LETTERS, overflow="ellipsis")
            line(console, text)
        if (more := len(against[kind]) - _SHOWN) > 0:
            line(console, Text(f"{what}: {more} more, all of them with --json", style="dim"))


def _ks(rows: Sequence[Row]) -> list[str]:
    return sorted({str(k) for row in rows for k in row.get("pass@k", {})}, key=int)


def _pass_at_1(row: Row) -> str:
    low, high = row["pass@1_interval"]
    return f"{row['pass@1']:.3f} [{low:.3f}, {high:.3f}]"


def _pass_at_k(row: Row, k: str) -> str:
    value = {str(of): rate for of, rate in row.get("pass@k", {}).items()}.get(k)
    return "-" if value is None else f"{value:.3f}"


def _within(row: Row, k: str) -> str:
    """The interval of pass@k, for which a row of a table has no room."""
    ends = row.get("pass@k_interval", {}).get(k)
    return f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""


def _difference(row: Row) -> str:
    if "against" not in row:
        return ""
    low, high = row["against"]["difference_interval"]
    return f"{row['against']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _verdict(row: Row) -> str:
    if "against" not in row:
        return ""
    low, high = row["against"]["difference_interval"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def _won_and_lost(row: Row) -> list[str]:
    return [str(len(row["against"][kind])) for kind in ("won", "lost")] if "against" in row else []


def _measure(key: str, form: str) -> Any:
    def shown(row: Row) -> str:
        of_none = key.endswith("length") and row.get("invalid") == 1  # lengths are means over valid responses
        return "-" if row.get(key) is None or of_none else form.format(row[key])

    return shown


_MEASURES = [
    ("latent", _measure("latent_length", "{:.1f}")),
    ("explicit", _measure("explicit_length", "{:.1f}")),
    ("length", _measure("length", "{:.1f}")),
    ("invalid", _measure("invalid", "{:.1%}")),
    ("tokens/s", _measure("tokens_per_second", "{:,.0f}")),
]


_LITERALLY = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "`": "\\`"})


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    def written(cells: Sequence[str]) -> str:
        return "| " + " | ".join(clean(cell).translate(_LITERALLY) for cell in cells) + " |"

    rule = "|" + "|".join("---" if place < words else "---:" for place in range(len(head))) + "|"
    return "\n".join([written(head), rule, *map(written, rows)])
