"""The screen: plain lines stay plain, the panel fits, and no text from a model or a file is ever obeyed."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
from rich.cells import cell_len

from lgrpo.health import Trouble
from lgrpo.history import History
from lgrpo.metrics import METRICS
from lgrpo.screen import Show
from lgrpo.screen.curves import curve
from lgrpo.screen.pace import Pace
from lgrpo.screen.panel import WIDEST
from lgrpo.text import clean, columns, duration, number, setting

NASTY = "\x1b[31mred\x1b[0m \x9b2J \x07 [bold]loud[/bold] [/] :smile: \u202e gnp \ud800 a\r\nb\tc"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Setting(NamedTuple):
    name: str
    value: object
    reason: str


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _an_ordinary_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def everything(show):
    show.plan([Setting("recipe", "tiny", "the model's own"), Setting("odd", NASTY, NASTY)])
    show.say("hello " + NASTY)
    show.stage("warm-up " + NASTY, 2)
    show.step(1, {"loss": 0.5, NASTY: NASTY})
    show.sample(NASTY * 50, NASTY * 200, NASTY * 50, right=True)
    show.warn("careful " + NASTY)
    show.stage("walk", 20, done=10)
    for step in range(11, 21):
        show.step(step, {f"number {i}": i / 7 for i in range(9)})
        show.sample("How many pens?", "3*12 | 36", "29", right=False)


def test_plain_output_has_no_control_characters(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services set it: colours perhaps, but never a redrawn panel
    file = io.StringIO()
    with Show(file) as show:
        everything(show)
    assert not CONTROL.search(file.getvalue())
    assert "[bold]loud[/bold]" in file.getvalue()


def test_terminal_gets_no_escape_sequence_of_the_text_and_fits_80_columns():
    file = Terminal()
    with Show(file, width=80) as show:
        everything(show)
    shown = ESCAPE.sub("", file.getvalue())
    assert "\x1b[31mred" not in file.getvalue()
    assert "\\x1b[31mred" in shown
    assert "[bold]loud[/bold]" in shown
    assert not CONTROL.search(shown.replace("\r", ""))
    assert max(cell_len(line) for line in re.split(r"[\r\n]", shown)) == 80


def test_panel_shows_title_count_numbers_curve_and_sample():
    clock = Clock()
    file = Terminal()
    with Show(file, width=80, height=24, clock=clock) as show:
        show.stage("Latent-GRPO", 200, done=40)
        show.phase("rolling out 3/512")
        clock.now = 30.0
        show.step(41, {"reward": 0.5, "latent": 9.04, "rollout_s": 1.0, "verify_s": 0.0, "update_s": 3.0})
        show.step(41, {"reward": 0.25, "memory_free": 20.1e9})
        show.phase("learning")
        show.score({"step": 40, "pass@1": 0.81, "pass@1_se": 0.0123, "latent_length": 9.0, "explicit_length": 5.0})
        show.sample("How many pens?", "3*12 | 36", "29", right=True)
    panel = ESCAPE.sub("", file.getvalue()).split("╭")[-1]
    lines = [line.strip("│ \n") for line in panel.split("\n")[1:]]
    assert re.fullmatch(r"Latent-GRPO  learning +41/200  30 s gone, 1:19:30 left", lines[0])
    assert re.fullmatch(r"reward 0.250 +held-out 0.810 ± 0.012  best", lines[2])
    assert [line for line in lines if re.match("chain|time|device", line)] == [
        "chain   latent 9.0",  # the one given, and the one that still holds
        "time    rollout 1.0 s 25%   verify 0.0 s 0%   update 3.0 s 75%",
        "device  free 20.1 GB",
    ]
    assert lines[lines.index("How many pens?") :][:3] == ["How many pens?", "3*12 | 36", "right  29"]


def full(width, height, troubles=3):
    """A panel with everything in it, as lines."""
    with Show(Terminal(), width=width, height=height) as show:
        show.stage("train", 100)
        for step in range(1, 40):
            show.step(step, dict.fromkeys(METRICS, 0.5 + step / 100))
        for step in range(0, 40, 10):
            show.score({"step": step, "pass@1": 0.81, "pass@1_se": 0.01, "latent_length": 9, "explicit_length": 5})
        show.health([Trouble(str(n), "something is out of its range, in words " * 2, "this") for n in range(troubles)])
        show.sample("problem " * 90, "word " * 900, "29 " * 90, right=False, reference="30")
        rows = show._console.render_lines(show._panel(), pad=False)
        return ["".join(segment.text for segment in row) for row in rows]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (120, 30), (200, 24), (200, 60), (60, 20), (40, 12)])
def test_panel_fits_its_terminal(width, height):
    lines = full(width, height)
    assert len(lines) <= height - 1  # one that scrolls cannot be drawn over
    assert {cell_len(line) for line in lines} == {min(width, WIDEST)}
    assert lines[0][0] + lines[-1][-1] == "╭╯"


def test_a_wide_panel_has_numbers_beside_its_curves():
    narrow = full(100, 40)
    wide = full(160, 40)
    assert not any("held-out" in line and "batch" in line for line in narrow)
    assert any("held-out" in line and "batch" in line for line in wide)


def test_health_is_said_in_words_and_what_is_too_much_is_counted():
    lines = full(80, 50)
    text = " ".join(line.strip("│ ") for line in lines)
    assert "health  something is out of its range, in words" in text
    assert "Usually helps: this." in text
    assert "and 1 more, in events.jsonl" in text
    lines = full(80, 50, troubles=0)
    assert any("every number is in its range" in line for line in lines)


def test_plain_health_is_said_when_it_begins_and_when_it_is_over():
    file = io.StringIO()
    trouble = Trouble("kl", "KL is 0.60 a position", "a lower --lr")
    with Show(file) as show:
        show.stage("train", 9)
        for now in ([], [trouble], [replace(trouble, what="KL is 0.70 a position")], []):
            show.health(now)
    assert file.getvalue().splitlines()[1:-1] == [
        "warning: KL is 0.60 a position. Usually helps: a lower --lr.",
        "KL is in its range again",
    ]


def test_curves_go_on_from_the_history_of_a_run():
    history = History([{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.75}], [])
    file = Terminal()
    with Show(file, width=80, height=24) as show:
        show.stage("train", 4, done=2, history=history)
    assert "reward 0.750" in ESCAPE.sub("", file.getvalue())


def test_a_long_run_takes_no_more_memory_than_a_short_one():
    history = History()
    with Show(Terminal(), width=80, height=24) as show:
        show.stage("train", 20_000)
        for step in range(1, 9_001):
            show._remember(step, {"reward": float(step)})
            history.add({"step": step, "grad_norm": 1.0})
    points = show._view.points["reward"]
    assert len(points) < 4_000
    assert points[-1] == (9_000, 9_000.0)
    assert all(x == y for x, y in points)  # means of steps with means of their values
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert len(history.steps) <= 400
    assert [step["step"] for step in history.steps[:4]] == [1, 2, 3, history.steps[3]["step"]]
    assert [step["step"] for step in history.steps[-200:]] == list(range(8_801, 9_001))


def test_panel_never_shrinks_below_its_largest_sample():
    with Show(Terminal(), width=80, height=30) as show:
        show.stage("walk", 9)
        heights = []
        for chain in ("word " * 9, "word " * 900, "word " * 9):
            show.sample("problem", chain, "29", right=True)
            heights.append(len(show._console.render_lines(show._panel())))
    assert heights == [9, 11, 11]


def test_a_curve_by_hand():
    # two letters are four columns of four dots; the line falls a row a column, and joins to the row before
    assert curve([(0, 1.0), (3, 0.0)], 2, 1, 3) == (["⠙⢦"], 0.0, pytest.approx(1.05))
    # points of one column become their mean, and values that hardly differ a line in the middle
    assert curve([(0, 0.4), (0, 0.6), (3, 0.5)], 2, 1, 3) == (["⠒⠒"], pytest.approx(0.49), pytest.approx(0.51))
    assert curve([(0, 0.5)], 2, 1, 9)[0] == ["⠂⠀"]  # a single point at the left of what is still to come
    assert curve([], 2, 2, 9)[0] == ["⠀⠀"] * 2


def plain_lines(clock, total, seconds):
    file = io.StringIO()
    with Show(file, clock=clock) as show:
        show.stage("walk", total)
        for step in range(1, total + 1):
            clock.now += seconds
            show.step(step, {"loss": 1 / step})
    return file.getvalue().splitlines()


def test_each_step_has_its_plain_line():
    assert plain_lines(Clock(), 3, 100.0)[1:4] == [
        "walk 1/3  loss 1.00  left 3:20",
        "walk 2/3  loss 0.500  left 1:40",
        "walk 3/3  loss 0.333",
    ]


def test_a_stage_that_goes_on_counts_only_the_steps_of_this_process():
    clock, file = Clock(), io.StringIO()
    with Show(file, clock=clock) as show:
        show.stage("walk", 20, done=10)
        show.step(12, {})
        show.stage("next", 5)
    assert file.getvalue().splitlines() == [
        "walk: 10 steps after 10",
        "walk 12/20",
        "walk: 2 steps in 0 s",
        "next: 5 steps",
        "next: 0 steps in 0 s",
    ]


def test_plain_sample_comes_once_a_minute():
    clock, file = Clock(), io.StringIO()
    with Show(file, clock=clock) as show:
        show.stage("walk", 9)
        for _ in range(100):
            show.sample("How many\npens?", "3*12", "29", right=False)
            clock.now += 1.0
    samples = ["sample problem: How many pens?", "sample chain: 3*12", "sample wrong: 29"]
    assert file.getvalue().splitlines()[1:-1] == samples * 2


def test_time_left_is_measured_in_this_process_and_counts_down():
    clock = Clock()
    pace = Pace("walk", total=100, done=40, clock=clock)
    assert pace.left() is None
    clock.now = 10.0
    pace.step(42)
    assert pace.left() == 58 * 5.0  # not 10 s / 42 steps: forty were there before
    clock.now = 12.0
    assert pace.left() == 58 * 5.0 - 2.0
    for done in range(43, 94):  # the first slow steps leave the window of 50
        clock.now += 1.0
        pace.step(done)
    assert pace.left() == pytest.approx(7.0)
    assert pace.took() == 63.0


def test_step_without_stage_is_a_mistake_of_the_caller():
    with Show(io.StringIO()) as show, pytest.raises(RuntimeError, match="comes first"):
        show.step(1, {})


PROGRAM = """
import sys
from lgrpo.screen import Show
with Show() as show:
    show.stage("walk", 2)
    show.step(1, {"loss": 0.5})
    show.sample("p", "c", "a", right=True)
    show.warn("careful")
    print("the answer")
"""


def on_terminal(**environment):
    """Everything the program writes to a pseudo-terminal on stderr, and its stdout."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "80", "LINES": "24", **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=theirs, env=env, text=True)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return seen.decode(), done.stdout


def test_stdout_is_the_answer_alone_and_terminals_get_what_they_can_show():
    seen, answer = on_terminal(TERM="xterm-256color")
    assert answer == "the answer\n"
    assert "╭" in seen
    assert "\x1b[32m" in seen  # green: right
    seen, answer = on_terminal(TERM="xterm-256color", NO_COLOR="1")
    assert answer == "the answer\n"
    assert "╭" in seen
    assert not re.search(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])[0-9;]*m", seen)
    seen, answer = on_terminal(TERM="dumb")
    assert answer == "the answer\n"
    assert "walk 1/2  loss 0.500" in seen
    assert "\x1b" not in seen


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü 漢字 🙂", "plain äöü 漢字 🙂"),
        ("a\nb\r\nc", "a b  c"),
        ("a\tb", "a   b"),
        ("\x00\x1b]0;title\x07", "\\x00\\x1b]0;title\\x07"),
        ("\x9b2J\x85\x7f", "\\x9b2J\\x85\\x7f"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\u2028\ufeff", "\\u2028\\ufeff"),
        ("\ud800", "\ufffd"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a\u00a0b", "a\u00a0b"),
    ],
)
def test_clean(text, shown):
    assert clean(text) == shown


def test_clean_keeps_line_feeds_on_request():
    assert clean("a\nb\rc", lines=True) == "a\nb c"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.81, "0.810"), (8.8, "8.80"), (12.345, "12.3"), (99.96, "100"), (10234.4, "10234"),
        (0.001, "0.00100"), (2e-6, "2.0e-6"), (-0.5, "-0.500"), (2.5e7, "2.5e7"), (float("nan"), "nan"),
        (float("-inf"), "-inf"), (7, "7"), ("41/64", "41/64"), (True, "True"), ("a\nb", "a b"),
    ],
)  # fmt: skip
def test_number(value, shown):
    assert number(value) == shown


def test_setting_duration_and_columns():
    values = (None, True, False, 1e-6, 3, (2, 3), [], "x\ny")
    assert [setting(value) for value in values] == ["-", "yes", "no", "1e-06", "3", "2, 3", "-", "x y"]
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 3599.6, 3852)] == [
        "0 s", "59 s", "1:00", "1:00:00", "1:04:12"
    ]  # fmt: skip
    assert columns([("a", "bb", ""), ("ccc", "d", "e")]) == ["a    bb", "ccc  d   e"]
