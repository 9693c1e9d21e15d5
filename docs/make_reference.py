"""Write help.md and metrics.md, what the commands and the code say of themselves: `python docs/make_reference.py`.

A test fails while they say anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from lgrpo import health
from lgrpo.cli import main
from lgrpo.metrics import METRICS

DOCS = Path(__file__).parent
WIDTH = 100  # columns, whatever terminal this runs in
KINDS = {
    "number": "number",
    "share": "share of 1",
    "score": "score of 1",
    "count": "count",
    "rate": "positions/s",
    "seconds": "s",
    "bytes": "bytes",
    "length": "positions",
}


def pages() -> Iterator[tuple[str, str]]:
    """(command as typed, its help) of the program and of each command, as a terminal of WIDTH columns shows it."""
    whole = click.Context(main, info_name="lgrpo", terminal_width=WIDTH, **main.context_settings)
    yield "lgrpo", main.get_help(whole)
    for name in ("init", "train", "sample", "eval"):
        command = main.commands[name]
        yield f"lgrpo {name}", command.get_help(click.Context(command, whole, name, **command.context_settings))


def help_page() -> str:
    """help.md."""
    parts = ["# Help\n\nWhat `--help` of each command says. Written by `docs/make_reference.py`.\n"]
    parts += [f"## {name}\n\n```\n{text.rstrip()}\n```\n" for name, text in pages()]
    return "\n".join(parts)


def ranges() -> dict[str, str]:
    """The healthy range of each metric that has one, in the words of the check that looks at it."""
    found: dict[str, str] = {}
    for check in health.CHECKS:
        for line in (check.__doc__ or "").splitlines():
            if range_ := re.fullmatch(r" *`([^`]+)`([^:]*): (.+)\.", line):
                name, words = range_[1] + range_[2], range_[3]
                found[name] = f"{found[name]}; {words}" if name in found else words
    return found


def metrics_page() -> str:
    """metrics.md."""
    healthy = ranges()
    rows = [
        f"| `{one.name}` | {one.label} | {KINDS[one.kind]} | {_cell(one.meaning)} | {healthy.pop(one.name, '')} |"
        for one in METRICS.values()
    ]
    scores = [f"| {name} | {words} |" for name, words in healthy.items()]
    return "\n".join([HEAD, *rows, SCORES, *scores, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


HEAD = f"""# Metrics

The numbers of a step, by the names they have in a run's `metrics.jsonl`, in its report and in the trackers. A step of
`train` is a batch: of its optimiser steps the numbers are means, and `skipped` is their sum. `init` says of each step
which `part` it is of. Outside its healthy range a number is named in words on the screen and in `events.jsonl`, with
what usually helps: worth a look, not yet a verdict. Ranges are of the mean of the last {health.RECENT} steps, where
nothing else is said. Written by `docs/make_reference.py`.

| name | on the screen | unit | meaning | healthy |
|---|---|---|---|---|"""
SCORES = """
Of the held-out scores, which are events of `events.jsonl`:

| name | healthy |
|---|---|"""


if __name__ == "__main__":
    for name, text in (("help.md", help_page()), ("metrics.md", metrics_page())):
        (DOCS / name).write_text(text, encoding="utf-8")
