"""The curves of a run as SVG and PNG. The only file that knows matplotlib, which is slow to import."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lgrpo.history import History

COLOURS = {"magenta": "#b0308f", "cyan": "#0f7b8a", "amber": "#b7791f", "grey": "#6b7280", "green": "#2f855a"}
Rows = Sequence[Mapping[str, Any]]
Draw = Callable[[Any, History], None]  # on matplotlib's axes


def svg(history: History) -> str:
    """All curves as an `<svg>` element, for a page; the same history gives the same text."""
    out = io.StringIO()
    with _matplotlib().rc_context({"svg.hashsalt": "lgrpo", "svg.fonttype": "none", **STYLE}):
        _figure(history).savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    element = out.getvalue()[out.getvalue().index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)


def png(history: History) -> bytes:
    """All curves as a PNG."""
    out = io.BytesIO()
    with _matplotlib().rc_context(STYLE):
        _figure(history).savefig(out, format="png", dpi=140, metadata={"Software": None})
    return out.getvalue()


STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def _matplotlib() -> Any:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its notes on fonts and folders would tear the screen
    import matplotlib

    return matplotlib


def _figure(history: History) -> Any:
    from matplotlib.figure import Figure

    panels = [(title, draw) for title, needs, draw in PANELS if _has(history, needs)]
    across = 2 if len(panels) in (1, 2, 4) else 3
    down = max(1, -(-len(panels) // across))
    figure = Figure(figsize=(3.9 * across, 2.7 * down), facecolor="white")
    edge, gap = 0.75 / (3.9 * across), 0.55 / (2.7 * down)  # margins in inches: a layout engine would draw all twice
    figure.subplots_adjust(edge, gap, 1 - edge / 4, 1 - gap / 2, wspace=0.28, hspace=0.42)
    for number, (title, draw) in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, number)
        axes.set_title(title)
        axes.set_xlabel("step")
        draw(axes, history)
    return figure


def _has(history: History, names: Sequence[str]) -> bool:
    if names == ("scores",):
        return bool(history.scores)
    return any(step.get(name) is not None for step in history.steps for name in names)


def _line(axes: Any, history: History, name: str, colour: str, label: str | None = None, factor: float = 1.0) -> None:
    points = [(step["step"], step[name] * factor) for step in history.steps if step.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=COLOURS[colour], linewidth=1.2, label=label)


def _reward(axes: Any, history: History) -> None:
    _line(axes, history, "reward", "magenta")
    axes.set_ylabel("mean, with noise")


def _loss(axes: Any, history: History) -> None:
    for name, colour in (("loss", "grey"), ("text", "magenta"), ("chain", "cyan")):
        _line(axes, history, name, colour, {"loss": "stage 1", "text": "text", "chain": "chain KL"}[name])
    axes.set_yscale("log")
    axes.legend()


def _scores(axes: Any, history: History) -> None:
    steps = [score["step"] for score in history.scores]
    values = [score["pass@1"] for score in history.scores]
    errors = [1.96 * score["pass@1_se"] for score in history.scores]
    axes.errorbar(steps, values, errors, color=COLOURS["cyan"], marker="o", markersize=3, linewidth=1.2, capsize=2)
    axes.set_ylabel("no noise, 95 %")
    _of_the_last_stage(axes, history)


def _of_the_last_stage(axes: Any, history: History) -> None:
    if any("part" in step for step in history.steps):  # Latent-SFT: scores count the steps of the walk alone
        axes.set_xlabel("step of stage 2")


def _lengths(axes: Any, history: History) -> None:
    if any("latent" in step for step in history.steps):
        _line(axes, history, "latent", "magenta", "latent")
        _line(axes, history, "explicit", "cyan", "explicit")
    else:
        steps = [score["step"] for score in history.scores]
        for name, colour in (("latent", "magenta"), ("explicit", "cyan")):
            values = [score[f"{name}_length"] for score in history.scores]
            axes.plot(steps, values, color=COLOURS[colour], label=name, marker="o", markersize=3, linewidth=1.2)
        _of_the_last_stage(axes, history)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("positions")
    axes.legend()


def _shares(axes: Any, history: History) -> None:
    for name, colour, label in (("signal", "green", "with signal"), ("invalid", "amber", "cut off")):
        _line(axes, history, name, colour, label, 100.0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("%")
    axes.legend()


def _policy(axes: Any, history: History) -> None:
    _line(axes, history, "clip_fraction", "amber", "clipped, share")
    _line(axes, history, "kl", "magenta", "KL")
    _line(axes, history, "rollout_gap", "grey", "rollout / training gap")
    axes.legend()


def _gradient(axes: Any, history: History) -> None:
    _line(axes, history, "grad_norm", "grey")
    norms = [step["grad_norm"] for step in history.steps if step.get("grad_norm")]
    if norms and max(norms) > 20 * min(norms):
        axes.set_yscale("log")


def _time(axes: Any, history: History) -> None:
    names = ("rollout_s", "verify_s", "update_s")
    rows = [step for step in history.steps if step.get("rollout_s") is not None]
    values = [[row.get(name) or 0.0 for row in rows] for name in names]
    colours = [COLOURS[name] for name in ("magenta", "amber", "cyan")]
    axes.stackplot(
        [row["step"] for row in rows], values, colors=colours, alpha=0.8, labels=("rollout", "verify", "update")
    )
    axes.set_ylabel("s a step")
    axes.legend(loc="lower left")


def _memory(axes: Any, history: History) -> None:
    _line(axes, history, "memory_used", "grey", "used", 1e-9)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("GB")


PANELS: Sequence[tuple[str, tuple[str, ...], Draw]] = (
    ("Reward", ("reward",), _reward),
    ("Loss", ("text", "chain"), _loss),
    ("Held-out Pass@1", ("scores",), _scores),
    ("Length of a response", ("scores",), _lengths),
    ("Groups and rollouts", ("signal", "invalid"), _shares),
    ("Policy", ("clip_fraction",), _policy),
    ("Gradient norm", ("grad_norm",), _gradient),
    ("Time", ("rollout_s",), _time),
    ("Memory", ("memory_used",), _memory),
)
