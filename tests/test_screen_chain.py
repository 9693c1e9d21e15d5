"""Chains on the screen: columns, bars, any width, any encoding, and nothing of a word is obeyed."""

import io
import re

import pytest
from rich.cells import cell_len
from test_screen import CONTROL, ESCAPE, NASTY, Terminal

from lgrpo.screen.chain import Chain, bar, points
from lgrpo.screen.strands import Blocs, Column, strands, vote

STEPS = [
    [("3", 0.81), ("<<", 0.13), ("*", 0.056), ("x", 0.004)],
    [("36", 0.51), ("=", 0.484), ("72", 0.006), ("x", 0.0)],
    [("7", 1.0), ("a", 0.0), ("b", 0.0), ("c", 0.0)],
]
WIDE = [(word, 1 / (2 + place)) for place, word in enumerate(["multiplication", "漢字漢字漢字漢字", NASTY, "thus"])]


@pytest.fixture(autouse=True)
def _an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def drawn(steps: list[list[tuple[str, float]]], every: bool = False, width: int = 80) -> list[str]:
    file = io.StringIO()
    chain = Chain(every, file, width)
    for step in steps:
        chain.step(step)
    return file.getvalue().splitlines()


def test_a_step_is_a_line_of_words_bars_and_weights() -> None:
    """Eight columns are a weight of 1: .81 is six and a half, .13 one; the second bar never needs more than four."""
    assert drawn(STEPS) == [
        "  1  3    ██████▌  .81   <<   █    .13   *    ▌   .06",
        "  2  36   ████▏    .51   =    ███▉ .48   72   ▏   .01",
        "  3  7    ████████ 1.0",
    ]


def test_all_words_are_shown_on_demand_and_columns_stay() -> None:
    lines = drawn([[(f"word{n}", 0.1) for n in range(10)]] * 2, every=True)
    assert len(lines) == 6
    assert lines[:3] == ["  1" + lines[3][3:], *lines[4:]]
    assert re.findall(r"word(\d)", "".join(lines[:3])) == list("0123456789")
    short = drawn([[(f"word{n}", 0.1) for n in range(10)]] * 2)
    assert [line[-4:] for line in short] == ["  +6", "  +6"]
    assert drawn(STEPS, every=True)[0].endswith("x       .00")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("every", [False, True])
def test_lines_fit_and_hold_no_control_characters(width: int, every: bool) -> None:
    steps = [*STEPS, WIDE, *STEPS, [(NASTY, 0.1)] * 10, [("漢字", 0.1)] * 10]
    lines = drawn(steps, every, width)
    assert max(map(cell_len, lines)) <= width
    assert not CONTROL.search("\n".join(lines))
    file = Terminal()
    chain = Chain(every, file, width)
    for step in steps:
        chain.step(step)
    shown = ESCAPE.sub("", file.getvalue())
    assert shown.splitlines() == lines
    assert "\x1b[31mred" not in file.getvalue()


def test_only_the_terminals_own_colours_and_none_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> set[str]:
        file = Terminal()
        Chain(file=file, width=80).step(STEPS[0])
        compare(BLOCS, 2, file)
        return {code for codes in re.findall(r"\x1b\[([0-9;]*)m", file.getvalue()) for code in codes.split(";")}

    assert codes() == {"0", "1", "2", "35"}  # plain, bold, dim, magenta: neither black nor white
    monkeypatch.setenv("NO_COLOR", "1")
    assert codes() == {"0", "1", "2"}


def test_where_the_stream_has_no_blocks_numbers_are_enough() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    chain = Chain(file=file, width=80)
    for step in [STEPS[0], [("multiplication", 0.9), ("é", 0.1)]]:
        chain.step(step)
    compare(BLOCS, 2, file)
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert text.splitlines()[:2] == ["  1  3    .81   <<   .13   *    .06", "  2  multipl~ .90   \\xe9        .10"]
    assert "> " + "  2" in text
    assert not CONTROL.search(text)


def test_each_line_is_there_as_soon_as_its_step_is() -> None:
    file = io.StringIO()
    chain = Chain(file=file, width=80)
    for count, step in enumerate(STEPS, 1):
        chain.step(step)
        assert file.getvalue().count("\n") == count


@pytest.mark.parametrize(
    ("length", "room", "expected"),
    [(0, 3, "   "), (1 / 8, 3, "▏  "), (1, 3, "█  "), (2.5, 3, "██▌"), (3, 3, "███"), (9, 3, "███"), (0.99, 2, "█ ")],
)
def test_bars_are_exact_to_an_eighth(length: float, room: int, expected: str) -> None:
    assert bar(length, room) == expected


def test_weights_are_three_letters() -> None:
    assert [points(weight) for weight in (0, 0.004, 0.005, 0.51, 0.994, 0.995, 1)] == [
        ".00", ".00", ".01", ".51", ".99", "1.0", "1.0"
    ]  # fmt: skip


# -- several chains

LONG = [[("3", 0.8), ("<<", 0.2)], [("*", 0.7), ("12", 0.3)], [("36", 1.0)], [("29", 0.9)]]
OTHER = [[("3", 0.9)], [("12", 0.5), ("*", 0.5)], [("36", 0.6)]]
BLOCS: Blocs = [
    ("29", [Column([1, 3], LONG), Column([4], [*OTHER, [("29", 1.0)]])]),
    ("31", [Column([2], OTHER)]),
    (None, [Column([5], [])]),
]


def compare(blocs: Blocs, parting: int | None, file: io.TextIOBase, every: bool = False, width: int = 80) -> None:
    strands(blocs, parting, every, file, width)
    vote(blocs, every, file, width)


def compared(blocs: Blocs, parting: int | None, **how: int) -> list[str]:
    file = io.StringIO()
    compare(blocs, parting, file, **how)
    return file.getvalue().splitlines()


def test_chains_stand_side_by_side_by_their_answers_and_the_vote_follows() -> None:
    assert compared(BLOCS, 2) == [
        "5 chains by the heaviest words of their steps; at step 2 they part",
        "       29                              31              no boxed answer",
        "       #1 #3           #4              #2              #5",
        "    1  3 .80  << .20   3 .90           3 .90",
        "▸   2  * .70  12 .30   12 .50  * .50   12 .50  * .50",
        "    3  36 1.0          36 .60          36 .60",
        "    4  29 .90          29 1.0",
        "vote  29               ████▊     3 of 5  #1 #3 #4",
        "      31               █▋        1 of 5  #2",
        "      no boxed answer  █▋        1 of 5  #5",
    ]


def test_the_same_chains_say_so() -> None:
    same: Blocs = [("29", [Column([1, 2, 3], LONG)])]
    assert compared(same, None)[0] == "3 chains with the same heaviest words in every step"
    assert "▸" not in "".join(compared(same, None))


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("every", [False, True])
def test_many_and_nasty_chains_fit(width: int, every: bool) -> None:
    blocs: Blocs = [
        (f"{NASTY} {n}", [Column([n, *range(100, 140)], [WIDE, [(NASTY, 1.0)], *LONG]), Column([n + 50], OTHER)])
        for n in range(1, 20)
    ]
    lines = compared(blocs, 1, every=every, width=width)
    assert max(cell_len(line) for line in lines if "shows them" not in line and " chains by" not in line) <= width
    assert not CONTROL.search("\n".join(lines))
    left_out = [line for line in lines if "more chains, each in its own way; --all or /all shows them" in line]
    assert bool(left_out) == (not every and width < 8 * 38)
    assert any("and 9 answers more" in line for line in lines) != every
    if every:
        assert sum(line.startswith("    2  ") for line in lines) > 1 or width == 200


def test_words_other_than_the_first_chains_are_coloured() -> None:
    file = Terminal()
    strands(BLOCS, 2, file=file, width=80)
    assert re.findall(r"\x1b\[35m *([^ \x1b]+)", file.getvalue()) == ["12", "12"]
