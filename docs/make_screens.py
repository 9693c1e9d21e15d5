"""Take the screenshots of the docs from a run of `train`: `python docs/make_screens.py [RUN] [STEP]`.

dashboard.svg: the panel as it stood after STEP (by default two thirds of the way), the run's records played back to the
program's own screen. chain.svg: `lgrpo sample`, run in a pseudo-terminal. report.png: the run's report, photographed by
Chromium where there is one. RUN is a run folder; left out, it is the newest here. Nothing in it is changed.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from lgrpo import health, session
from lgrpo.history import History
from lgrpo.metrics import METRICS
from lgrpo.report import write_report
from lgrpo.runs.durable import read_json
from lgrpo.screen import Show

PICTURES = Path(__file__).parent / "pictures"
PROBLEM = "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?"
WIDTH, HEIGHT = 100, 32  # of the terminals
TOLD = 0.2  # weight from which the panel names a word of a step, besides the heaviest
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGE = "1000,1500"  # pixels of the report that are shown

COLOURS = ["#484f58", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#e085d0", "#56c8d8", "#d0d7de"]
THEME = TerminalTheme((13, 17, 23), (214, 220, 228), [tuple(bytes.fromhex(one[1:])) for one in COLOURS])
SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 16px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""  # rich's own fetches a font from a web site


def screenshot(written: str, title: str, name: str) -> None:
    """A picture of what a program wrote to a terminal: colours are obeyed, anything else that moves is left out."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    lines = [Text.from_ansi(line) for line in written.rstrip().splitlines()]
    while not lines[0].plain.strip():  # such as the row above a panel, where the cursor was moved
        lines.pop(0)
    console.print(Text("\n").join(lines))
    svg = console.export_svg(title=title, theme=THEME, code_format=SVG, font_aspect_ratio=0.602, unique_id="terminal")
    (PICTURES / name).write_text(svg, encoding="utf-8")
    print(PICTURES / name)


# -- dashboard.svg


class Clock:
    """The run's own time, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def dashboard(run: Path, step: int | None) -> None:
    """The panel after a step, by playing the run's records back."""
    history, record = History.read(run), read_json(run / "run.json") or {}
    if not history.steps or record.get("command") != "train":
        sys.exit(f"{run} is no run of `lgrpo train` that has taken a step")
    history = history.until(step or 2 * len(history.steps) // 3)
    out, clock = io.StringIO(), Clock()
    with Show(out, True, WIDTH, HEIGHT, clock) as show:
        show.stage("train", record["settings"]["steps"]["value"])
        scores = {score["step"]: score for score in history.scores}
        for number in [0, *(int(one["step"]) for one in history.steps)]:
            if number:
                numbers = history.steps[number - 1]
                clock.now += sum(numbers.get(name) or 0.0 for name in ("rollout_s", "verify_s", "update_s"))
                show.step(number, {name: numbers[name] for name in METRICS if name in numbers})
            if number in scores:
                clock.now = max(clock.now, _since(history.scores[0], scores[number]))
                show.score(scores[number])
                _sample(show, scores[number])
        show.health(health.troubles(history))
        out.seek(0)
        out.truncate()  # what was above the panel has scrolled away; leaving the screen draws the panel once more
    screenshot(out.getvalue(), "lgrpo train", "dashboard.svg")


def _since(first: Mapping[str, Any], score: Mapping[str, Any]) -> float:
    begin, end = (datetime.fromisoformat(one["time"]) for one in (first, score))
    return (end - begin).total_seconds()


def _sample(show: Show, score: Mapping[str, Any]) -> None:
    """An answer that was recorded with a score, in the form the panel has of answers."""
    samples = score.get("samples") or []
    if not samples:
        return
    one = samples[score["step"] // 10 % len(samples)]
    steps = [
        " ".join(word for at, (word, weight) in enumerate(step) if at == 0 or weight >= TOLD) for step in one["chain"]
    ]
    show.sample(one["problem"], " | ".join(steps), one["answer"], one["right"], one["reference"])


# -- chain.svg


def chain(run: Path) -> None:
    """`lgrpo sample` as a person sees it."""
    typed = Text.assemble(("$ ", "bold green"), (f'lgrpo sample "{PROBLEM}"', "bold"))
    head = Console(file=io.StringIO(), width=WIDTH, color_system="truecolor", force_terminal=True)
    with head.capture() as captured:
        head.print(typed)
    written = in_terminal([sys.executable, "-m", "lgrpo", "sample", PROBLEM, "--model", str(run)])
    screenshot(captured.get() + written, "lgrpo sample", "chain.svg")


def in_terminal(command: list[str]) -> str:
    """What a command writes to a terminal of its own, on stdout and stderr. Exits where it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**plain, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    parts: list[bytes] = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # the last one has hung up
        pass
    os.close(ours)
    written = b"".join(parts).decode(errors="replace").replace("\r\n", "\n")
    if program.wait() != 0:
        sys.exit(f"{' '.join(command)} failed:\n{written}")
    return written


# -- report.png


def report(run: Path) -> None:
    """The upper part of the report, of a copy of the run's records."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("report.png is left out: it needs chromium", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, run.resolve().name)
        copy.mkdir()
        for record in (*run.glob("*.json"), *run.glob("*.jsonl")):
            shutil.copy(record, copy)
        page = write_report(copy)
        calm = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
        silent = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        subprocess.run(
            [browser, *calm, *silent, f"--user-data-dir={folder}/browser", f"--window-size={PAGE}",
             f"--screenshot={(PICTURES / 'report.png').resolve()}", page.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
    print(PICTURES / "report.png")


def main(run: str | None = None, step: str | None = None) -> None:
    folder = Path(run) if run else session.newest(["train"])
    PICTURES.mkdir(exist_ok=True)
    dashboard(folder, int(step) if step else None)
    chain(folder)
    report(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
