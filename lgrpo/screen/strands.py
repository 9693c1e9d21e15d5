"""Several chains of one problem side by side, and the vote on their answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lgrpo.screen.chain import Pairs, bar, draws_blocks, points, sized
from lgrpo.screen.terminal import console_on, line
from lgrpo.text import clean

NO_ANSWER = "no boxed answer"
_LEAD = 7  # columns of mark and number of a step
_GAP = 3
_NARROWEST = 6  # a column: a short word and its weight
_ANSWERS = 10
_ROOMY = 60  # columns of a terminal on which bars find room
_TOLD = 0.2  # weight of the words of a step that are shown, besides the heaviest


class Column(NamedTuple):
    """Samples with the same heaviest words, and the chain of one of them."""

    samples: Sequence[int]  # from 1
    steps: Sequence[Pairs]


Blocs = Sequence[tuple[str | None, Sequence[Column]]]  # answers (None: none), majority first, and their columns


def strands(
    blocs: Blocs, parting: int | None, every: bool = False, file: TextIO | None = None, width: int | None = None
) -> None:
    """Steps down, chains across, those with the same answer together; `parting`: the step, from 1, where they part.

    Words other than the first chain's are coloured. Chains that find no room are counted, or with `every` shown below.
    """
    console = console_on(file or sys.stderr, None, width)
    columns = [(answer, column) for answer, group in blocs for column in group]
    total = sum(len(column.samples) for _, column in columns)
    at_once = max(1, (console.width - _LEAD + _GAP) // (_NARROWEST + _GAP))
    if parting is None:
        line(console, Text(f"{total} chains with the same heaviest words in every step"))
    else:
        line(console, Text(f"{total} chains by the heaviest words of their steps; at step {parting} they part"))
    for start in range(0, len(columns), at_once) if every else [0]:
        _block(console, columns[start : start + at_once], columns[0][1], parting)
    if not every and (rest := columns[at_once:]):
        samples = sum(len(column.samples) for _, column in rest)
        line(console, Text(f"and {samples} more chains, each in its own way; --all or /all shows them", "dim"))


def vote(blocs: Blocs, every: bool = False, file: TextIO | None = None, width: int | None = None) -> None:
    """How many samples gave each answer, and which: a line an answer, of the most frequent ones or of `every` one."""
    console = console_on(file or sys.stderr, None, width)
    total = sum(len(column.samples) for _, columns in blocs for column in columns)
    rest = [] if every else blocs[_ANSWERS:]
    blocs = blocs[: len(blocs) - len(rest)]
    names = [clean(NO_ANSWER if answer is None else answer) for answer, _ in blocs]
    widest = min(max(map(cell_len, names)), console.width // 3)
    room = max(8, min(16, console.width // 10)) if draws_blocks(console) and console.width >= _ROOMY else 0
    for place, (name, (answer, columns)) in enumerate(zip(names, blocs, strict=True)):
        samples = sorted(sample for column in columns for sample in column.samples)
        style = "dim" if answer is None else "bold" if place == 0 else ""
        row = Text.assemble(("vote  " if place == 0 else "      ", "dim"), (sized(console, name, widest), style), "  ")
        if room:
            row.append(bar(room * len(samples) / total, room) + "  ", "magenta")
        row.append(f"{len(samples):{len(str(total))}} of {total}  ")
        numbers = " ".join(f"#{sample}" for sample in samples)
        row.append(sized(console, numbers, max(0, console.width - row.cell_len)).rstrip(), "dim")
        line(console, row)
    if rest:
        line(console, Text(f"      and {len(rest)} answers more; --all or /all shows them", "dim"))


def _block(console: Console, columns: Sequence[tuple[str | None, Column]], first: Column, parting: int | None) -> None:
    names = [clean(NO_ANSWER if answer is None else answer) for answer, _ in columns]
    room = console.width - _LEAD - _GAP * (len(columns) - 1)
    natural = [
        max(_natural(column), cell_len(name) if names.count(name) == 1 else 0)
        for name, (_, column) in zip(names, columns, strict=True)
    ]
    widths = _widths(natural, room)
    spans: list[tuple[str, int]] = []  # an answer stands above all of its columns
    for name, width in zip(names, widths, strict=True):
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1] + _GAP + width)
        else:
            spans.append((name, width))
    _row(console, "", [Text(sized(console, name, span), "bold") for name, span in spans])
    placed = [(column, width) for (_, column), width in zip(columns, widths, strict=True)]
    _row(console, "", [Text(sized(console, _samples(column, width), width), "dim") for column, width in placed])
    for step in range(max(len(column.steps) for column, _ in placed)):
        mark = ("▸" if draws_blocks(console) else ">") if step + 1 == parting else " "
        _row(console, f"{mark} {step + 1:3}", [_cell(console, column, first, step, width) for column, width in placed])


def _row(console: Console, lead: str, cells: Sequence[Text]) -> None:
    row = Text.assemble((lead.ljust(_LEAD), "dim"), Text(" " * _GAP).join(cells))
    row.rstrip()
    line(console, row)


def _widths(natural: Sequence[int], room: int) -> list[int]:
    """Columns as wide as they would like to be, as far as there is room: the widest give way first."""
    widths = list(natural)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _natural(column: Column) -> int:
    return max([_NARROWEST, cell_len(_samples(column, 99)), *(cell_len(_forms(step)[0]) for step in column.steps)])


def _samples(column: Column, width: int) -> str:
    names = " ".join(f"#{sample}" for sample in column.samples)
    return names if len(names) <= width else f"{len(column.samples)}x"


def _forms(step: Pairs) -> list[str]:
    """A step in fewer and fewer letters."""
    told = [(clean(word), weight) for place, (word, weight) in enumerate(step) if place == 0 or weight >= _TOLD]
    word, weight = told[0]
    return ["  ".join(f"{word} {points(weight)}" for word, weight in told), f"{word} {points(weight)}", word]


def _cell(console: Console, column: Column, first: Column, step: int, width: int) -> Text:
    if step >= len(column.steps):
        return Text(" " * width)
    forms = _forms(column.steps[step])
    form = next((form for form in forms if cell_len(form) <= width), forms[-1])
    same = step < len(first.steps) and first.steps[step][0][0] == column.steps[step][0][0]
    return Text(sized(console, form, width), "" if same else "magenta")
