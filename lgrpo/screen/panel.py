"""The panel of a run: how far it is, its curves, its numbers, its health, and one recent answer.

`panel(view, console)` is a function of what is known and of the room there is: two curves above the numbers where the
terminal is narrow, beside them where it is wide. It never grows past the terminal's height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lgrpo.health import Trouble
from lgrpo.metrics import group as group_of
from lgrpo.metrics import label, shown
from lgrpo.screen.curves import Point, curve
from lgrpo.screen.pace import Pace
from lgrpo.text import clean, duration

WIDEST = 160  # columns: beyond that a line of text is hard to read and a bar says no more
WIDE = 120  # columns from which numbers stand beside the curves
PROBLEM_ROWS, CHAIN_ROWS = 2, 3
EDGE = 6  # columns of a value at a curve's edge
GROUPS = ("batch", "chain", "update", "time", "device")
HIDDEN = {"reward", "loss", "text", "groups", "drawn", "padding", "positions", "boxed"}  # drawn, or not worth a place
QUIET = {"skipped", "broken", "unchecked"}  # worth a place where they are not 0
LEFT = ("reward", "text", "loss")  # the first of these that a stage has is drawn
SPENT = ("rollout_s", "verify_s", "update_s")


@dataclass
class View:
    """What a panel shows."""

    pace: Pace
    phase: str = ""  # what is being done right now
    numbers: dict[str, Any] = field(default_factory=dict)  # the newest of each
    points: dict[str, list[Point]] = field(default_factory=dict)  # (step, value) of LEFT's
    scores: list[Point] = field(default_factory=list)  # held-out Pass@1
    error: float = 0.0  # standard error of the newest score
    troubles: Sequence[Trouble] = ()
    sample: tuple[str, str, str, bool, str] | None = None  # problem, chain, answer, right, reference
    rows: int = 0  # of the sample, at most so far: the panel never shrinks


def panel(view: View, console: Console) -> Panel:
    """The panel, at most as wide and as high as the console."""
    width = min(console.width, WIDEST)
    inside, height = width - 4, max(console.height - 1, 6) - 2
    head = [_head(view), _bar(view.pace, inside)]
    health = _health(view, console, inside)
    sample = _sample(view, console, inside)
    if width >= WIDE:
        body = _beside(view, inside, height - len(head) - len(health) - len(sample))
    else:
        numbers = _numbers(view.numbers, inside)
        room = height - len(head) - len(health) - len(sample) - len(numbers)
        body = [*_curves(view, inside, room, console), *numbers]
    lines = [*head, *body, *health, *sample]
    return Panel(Group(*lines[:height]), box=ROUNDED, border_style="dim", width=width)


def _head(view: View) -> Table:
    pace = view.pace
    left = pace.left()
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    count = Text(pace.count())
    count.append(f"  {duration(pace.took())} gone", style="dim")
    count.append("" if left is None else f", {duration(left)} left", style="dim")
    grid.add_row(Text.assemble((pace.title, "bold"), (f"  {view.phase}" if view.phase else "", "dim")), count)
    return grid


def _bar(pace: Pace, width: int) -> Table:
    grid = Table.grid()  # a bar alone does not end its line
    grid.add_row(ProgressBar(max(pace.total or 0, pace.done, 1), pace.done, width, complete_style="magenta"))
    return grid


# -- curves


def _curves(view: View, width: int, room: int, console: Console) -> list[Any]:
    """One or two curves side by side in at most `room` lines, less a heading; nothing where they would say nothing."""
    drawn = _drawn(view, narrow=width < 96)
    height = min(room - 2, 6)
    if not drawn or height < 2 or console.options.ascii_only:
        return [Text()] if room > 1 else []
    each = (width - 3 * (len(drawn) - 1)) // len(drawn)
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_row(*(_curve(*one, min(each, width * 2 // 3), height, view.pace.total or view.pace.done) for one in drawn))
    return [grid, Text()]


def _drawn(view: View, narrow: bool) -> list[tuple[Text, Sequence[Point], str]]:
    """(heading, points, colour) of each curve there is."""
    out: list[tuple[Text, Sequence[Point], str]] = []
    name = next((name for name in LEFT if view.points.get(name)), None)
    if name is not None:
        points = view.points[name]
        out.append((Text.assemble((label(name), "bold"), f" {shown(name, points[-1][1])}"), points, "magenta"))
    if view.scores:
        best = max(y for _, y in view.scores)
        newest = view.scores[-1][1]
        heading = Text.assemble(
            ("held-out" if narrow else "held-out Pass@1", "bold"), f" {newest:.3f} ± {view.error:.3f}"
        )
        heading.append("  best" if newest == best else f"  best {best:.3f}", style="dim")
        out.append((heading, view.scores, "cyan"))
    return out


def _curve(heading: Text, points: Sequence[Point], colour: str, width: int, height: int, last_x: float) -> Text:
    lines, low, high = curve(points, max(width - EDGE, 4), height, last_x)
    heading.truncate(width, overflow="ellipsis")
    out = [heading]
    for place, dots in enumerate(lines):
        edge = high if place == 0 else low if place == len(lines) - 1 else None
        out.append(Text.assemble(("" if edge is None else f"{edge:.3g}"[: EDGE - 1]).rjust(EDGE - 1), " "))
        out[-1].stylize("dim")
        out[-1].append(dots, style=colour)
    return Text("\n").join(out)


def _beside(view: View, width: int, room: int) -> list[Any]:
    """Curves on the left, numbers on the right, one column of numbers to a group."""
    drawn = _drawn(view, narrow=False)
    right = _numbers(view.numbers, 52 if drawn else width)
    if not drawn:
        return right
    height = max(2, min(room - 2, max(len(right) - 1, 6)))
    each = (width - 52 - 3 * len(drawn)) // len(drawn)
    curves = [_curve(*one, each, height, view.pace.total or view.pace.done) for one in drawn]
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_row(*curves, Text("\n").join(right[: height + 1]))
    return [grid, Text()]


# -- numbers


def _numbers(numbers: Mapping[str, Any], width: int) -> list[Text]:
    """A line or more for each group of numbers that there is."""
    lines: list[Text] = []
    for group in (*GROUPS, ""):
        names = [name for name in numbers if group_of(name) == group and name not in HIDDEN]
        names = [name for name in names if name not in QUIET or numbers[name]]
        cells = [Text.assemble((f"{clean(label(name))} ", "dim"), _value(name, numbers)) for name in names]
        lines += _wrapped(group, cells, width)
    return lines


def _value(name: str, numbers: Mapping[str, Any]) -> str:
    if name not in SPENT:
        return shown(name, numbers[name])
    whole = sum(numbers.get(one) or 0.0 for one in SPENT)
    return f"{shown(name, numbers[name])} {(numbers[name] or 0.0) / whole:.0%}" if whole else shown(name, 0.0)


def _wrapped(group: str, cells: Sequence[Text], width: int) -> list[Text]:
    """Cells in as many lines as they need, behind the group's name."""
    margin = 8
    lines: list[Text] = []
    for cell in cells:
        cell.truncate(width - margin, overflow="ellipsis")
        if not lines or lines[-1].cell_len + 3 + cell.cell_len > width:
            lines.append(Text.assemble(((group if not lines else "").ljust(margin), "bold"), cell))
        else:
            lines[-1].append("   ").append_text(cell)
    return lines


# -- health and sample


def _health(view: View, console: Console, width: int) -> list[Text]:
    """What is out of its range, in words; two troubles at most."""
    lines: list[Text] = []
    for trouble in view.troubles[:2]:
        text = Text.assemble((f"{clean(trouble.what)}. ", "yellow"), (f"Usually helps: {clean(trouble.help)}.", ""))
        wrapped = list(text.wrap(console, width - 8))[:3]
        for one in wrapped:
            lines.append(Text.assemble(("health  " if not lines else " " * 8, "bold yellow"), one))
    if len(view.troubles) > 2:
        lines.append(Text(f"        and {len(view.troubles) - 2} more, in events.jsonl", style="dim"))
    if not view.troubles and view.points.get("reward") and len(view.points["reward"]) > 2:
        lines.append(Text.assemble(("health  ", "bold"), ("every number is in its range", "green")))
    return lines


def _sample(view: View, console: Console, width: int) -> list[Text]:
    if view.sample is None:
        return []
    problem, chain, answer, right, reference = view.sample
    verdict = Text("right  " if right else "wrong  ", style="green" if right else "red")
    verdict.append(answer, style="default")
    if not right and reference:
        verdict.append(f"  it is {reference}", style="dim")
    verdict.truncate(width, overflow="ellipsis")
    lines = [
        *_clip(Text(problem), console, width, PROBLEM_ROWS),
        *_clip(Text(chain, style="magenta"), console, width, CHAIN_ROWS),
        verdict,
    ]
    view.rows = max(view.rows, len(lines))
    return [Text(), *lines, *[Text()] * (view.rows - len(lines))]


def _clip(text: Text, console: Console, width: int, rows: int) -> list[Text]:
    lines = list(text.wrap(console, width))
    if len(lines) > rows:
        lines[rows - 1].rstrip()
        lines[rows - 1].truncate(width - 1)
        lines[rows - 1].append("…")
    return lines[:rows]
