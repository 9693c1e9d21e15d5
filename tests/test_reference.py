"""help.md and metrics.md say what the program says; every help fits a screen, and its examples are accepted."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from lgrpo.cli import main
from lgrpo.health import troubles
from lgrpo.history import History
from lgrpo.metrics import METRICS

DOCS = Path(__file__).parents[1] / "docs"
_spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
assert _spec is not None
assert _spec.loader is not None
make_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_reference)

PAGES = dict(make_reference.pages())
RANGES = make_reference.ranges()
SIMPLE = {  # metrics whose range ends in a plain limit: (most or least, limit, percent or nothing)
    name: found.groups()
    for name, words in RANGES.items()
    if name in METRICS and (found := re.fullmatch(r"(?:.*; )?at (most|least) ([\d.]+)( %)?", words))
}


@pytest.mark.parametrize("name", ["help", "metrics"])
def test_a_page_is_what_the_script_writes(name: str) -> None:
    written = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert written == getattr(make_reference, f"{name}_page")(), "run: python docs/make_reference.py"


def test_the_width_of_a_page_is_no_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert dict(make_reference.pages()) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_help_fits_a_screen(name: str) -> None:
    lines = PAGES[name].splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= make_reference.WIDTH


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_help_are_accepted(name: str) -> None:
    examples = _examples(PAGES[name])
    assert examples
    assert any(example.startswith(name) for example in examples)
    for example in examples:
        _parse(example)


def test_an_example_that_is_wrong_is_noticed() -> None:
    for wrong in ("lgrpo train --step 5", "lgrpo trane", "lgrpo train --lr two", "lgrpo sample --nope 'x'"):
        with pytest.raises(click.UsageError):
            _parse(wrong)


def _examples(text: str) -> list[str]:
    """The command lines under `Examples:`, without the remark that stands two spaces or more behind one."""
    _, _, below = text.partition("Examples:\n")
    lines = [re.split(r" {2,}", line.strip())[0] for line in below.splitlines()]
    return [line[line.index("lgrpo ") :] for line in lines if "lgrpo " in line]


def _parse(line: str) -> None:
    """Have click take a command line apart without running it; what another program gets or gives is not ours."""
    words = shlex.split(re.split(r"[|<>]", line)[0])[1:]
    context = main.make_context("lgrpo", list(words))
    name, command, rest = main.resolve_command(context, words)
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("metric", SIMPLE)
def test_a_range_in_the_docs_is_the_one_that_is_checked(metric: str) -> None:
    side, limit, percent = SIMPLE[metric]
    value = float(limit) / (100 if percent else 1)
    inside = value * (0.999 if side == "most" else 1.001)
    outside = value * (1.001 if side == "most" else 0.999)
    assert _troubles(metric, inside) == []
    assert len(_troubles(metric, outside)) == 1


def _troubles(metric: str, value: float) -> list[str]:
    steps = [{"step": n, "reward": 0.5, metric: value} for n in range(9)]
    return [trouble.what for trouble in troubles(History(steps, []))]


def test_every_simple_range_is_tried() -> None:
    assert set(SIMPLE) == {"reward", "signal", "invalid", "kl", "clip_fraction", "moved", "rollout_gap", "unchecked"}
