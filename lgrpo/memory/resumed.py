"""What a run that goes on keeps of its plan, however much memory is free by now.

How its work is cut decides the order in which sums are taken, and joint_steps what is learnt: derived anew, they would
make it another run. run.json keeps them as `cut`; what a later process could afford stands in its plan alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lgrpo.latent_sft.schedule import Schedule
from lgrpo.plan import Setting, TrainSettings
from lgrpo.runs.durable import read_json

DERIVED = ("joint_steps", "slots", "micro_tokens", "keep_cache", "checkpointing")  # by `settle`, from memory
_POSITIVE = ("slots", "micro_tokens")
S = TypeVar("S", TrainSettings, Schedule)


def as_begun(
    folder: Path | None, command: str, settings: S, rows: Sequence[Setting], chosen: Collection[str]
) -> tuple[S, list[Setting], dict[str, Any]]:
    """Settings and plan with what the run of `command` in `folder` began with, and these by name.

    Names in `chosen` stay: the user sets them now. What memory has no room for any more, `settle` makes smaller.
    """
    record = read_json(folder / "run.json") if folder else None
    known = record.get("cut") if record and record.get("command") == command else None
    if not isinstance(known, dict):
        return settings, list(rows), {}
    begun: dict[str, Any] = {}
    for name, value in known.items():
        alike = name in DERIVED and type(value) is type(getattr(settings, name, None))
        if name not in chosen and alike and (value > 0 or name not in _POSITIVE):
            begun[name] = value
    settings = replace(settings, **begun)
    kept = [Setting(n, begun[n], "as this run began") if begun.get(n, v) != v else Setting(n, v, w) for n, v, w in rows]
    return settings, kept, begun


def cut_of(settings: TrainSettings | Schedule, begun: Mapping[str, Any]) -> dict[str, Any]:
    """For run.json: as the run began, else as it begins."""
    return {**{name: getattr(settings, name) for name in DERIVED if hasattr(settings, name)}, **begun}
