"""Writes a run's report from its folder alone, whatever state the run is in."""

from __future__ import annotations

from pathlib import Path

from lgrpo.errors import UserError
from lgrpo.history import History
from lgrpo.report import pictures
from lgrpo.report.page import page
from lgrpo.report.tables import Recorded
from lgrpo.runs.durable import read_json, write_bytes

PAGE, CURVES = "report.html", "curves.png"


def write_report(run: Path) -> Path:
    """`report.html` and `curves.png` in the run folder; returns the page. Raises UserError where there is no run."""
    record = read_json(run / "run.json")
    if record is None:
        raise UserError(f"{run} holds no run (no readable run.json), so there is nothing to report")
    history = History.read(run)
    recorded = Recorded.read(run, record, history)
    drawn = bool(history.steps or history.scores)
    if drawn:
        write_bytes(run / CURVES, pictures.png(history))
    write_bytes(run / PAGE, page(recorded, pictures.svg(history) if drawn else "").encode())
    return run / PAGE
