"""A report as one HTML page: no script, nothing fetched, every word of model and data escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lgrpo import __version__
from lgrpo.report.tables import Recorded, Table
from lgrpo.text import clean

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # even if something slipped through, it could do nothing
FOOT = (
    "Intervals are at 95 %, clustered by problem. Held-out problems are a slice of the training data; "
    "no test set chose anything."
)
LETTERS = 2000  # of an answer


def page(run: Recorded, curves: str) -> str:
    """The whole page. `curves` is an `<svg>` element of our own making, or empty."""
    parts = [
        f"<h1>{_text(run.title)}</h1><p class=state>{_text(run.state)}</p>",
        f"<p class=headline>{_text(run.headline)}</p>",
        _section("Scores", _table(run.scores, words=1)) if len(run.scores) > 1 else "",
        _section("Curves", f"<figure>{curves}</figure>") if curves else "",
        _section("The same problems, before and after", "".join(map(_sample, run.samples))) if run.samples else "",
        _section("Numbers", _table(run.numbers, words=1, last=True)),
        _section("Time and memory", _table(run.time, words=1)),
        _section("What happened", _table(run.events)),
        _section("The run", _table([["", ""], *run.facts])),
        _section("The plan", f"<details><summary>every setting, and why</summary>{_table(run.plan)}</details>")
        if run.plan
        else "",
    ]
    head = (
        f'<meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{_text(run.title)}: lgrpo report</title><style>{STYLE}</style>"
    )
    body = f"{''.join(parts)}<footer>lgrpo {__version__}. {FOOT}</footer>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>{body}" if body else ""


def _table(rows: Table, words: int | None = None, last: bool = False) -> str:
    """Columns from `words` on hold numbers, but for the `last` one where it says so. A blank head is left out."""
    if not rows:
        return ""
    head, *body = rows

    def cells(row: Sequence[str], tag: str) -> str:
        marks = [words is not None and at >= words and not (last and at == len(row) - 1) for at in range(len(row))]
        whole = (f"<{tag}{' class=n' * mark}>{_text(cell)}</{tag}>" for cell, mark in zip(row, marks, strict=True))
        return f"<tr>{''.join(whole)}</tr>"

    top = cells(head, "th") if any(head) else ""
    return f"<div class=wide><table>{top}{''.join(cells(row, 'td') for row in body)}</table></div>"


def _sample(pair: tuple[Mapping[str, Any], Mapping[str, Any] | None]) -> str:
    before, after = pair
    sides = [_side("first score", before)] + ([_side("best score", after)] if after else [])
    problem = f"<p>{_text(before['problem'])} <span class=soft>reference {_text(before['reference'])}</span></p>"
    return f"<article>{problem}<div class=two>{''.join(sides)}</div></article>"


def _side(title: str, sample: Mapping[str, Any]) -> str:
    """One response: its chain, a line a latent step, and its answer."""
    steps = "".join(
        f"<li>{''.join(_word(str(word), float(weight)) for word, weight in step)}" for step in sample["chain"]
    )
    rest = sample["latent_length"] - len(sample["chain"])
    more = f"<p class=soft>and {rest} more latent steps</p>" if rest > 0 else ""
    verdict = "right" if sample["right"] else "wrong"
    answer = _text(str(sample["answer"])[:LETTERS])
    chain = f"<ol class=chain>{steps}</ol>" if steps else ""
    return (
        f"<div><span class=soft>{title}</span>{chain}{more}<p><span class={verdict}>{verdict}</span> {answer}</p></div>"
    )


def _word(word: str, weight: float) -> str:
    width = max(0.0, min(1.0, weight)) * 4
    return f'<span class=w><b>{_text(word)}</b><i style="width:{width:.2f}em"></i><small>{weight:.2f}</small></span>'


def _text(text: object) -> str:
    """Words of anybody's as text and nothing else."""
    return escape(clean(str(text)))
