"""What a user asks of `init` and `train`, as it came from the command line or as a run kept it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lgrpo.errors import UserError
from lgrpo.overrides import joined
from lgrpo.runs.durable import read_json


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user asks of either command; None leaves it to the recipe, the model or the data."""

    data: str | None = None
    out: Path | None = None
    recipe: str | None = None
    overrides: Sequence[str] = ()
    steps: int | None = None
    lr: float | None = None
    overwrite: bool = False
    seed: int | None = None  # 0, or as the run began
    device: str | None = None
    log_to: str | None = None


@dataclass(frozen=True, kw_only=True)
class InitOptions(Options):
    """What a user asks of `init`."""

    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """What a user asks of `train`."""

    checkpoint: str | None = None
    without: Sequence[str] = ()
    surrogate: str | None = None
    explicit: bool = False


def recorded(folder: Path) -> InitOptions | TrainOptions | None:
    """The options a run began with; None where the folder is no run. Raises UserError where they are damaged."""
    record = read_json(folder / "run.json") or {}
    if not record.get("options"):
        return None
    kinds: dict[Any, type[InitOptions] | type[TrainOptions]] = {"init": InitOptions, "train": TrainOptions}
    damaged = UserError(f"{folder / 'run.json'} is damaged (options); begin the run again with --overwrite")
    options, command = record["options"], record.get("command")
    if not isinstance(options, dict) or not isinstance(command, str) or command not in kinds:
        raise damaged
    declared = get_type_hints(kinds[command])
    for name, value in options.items():
        if name not in declared or not _is_a(value, declared[name]):
            raise damaged
    return _found_from(record.get("cwd"), kinds[command](**options))


def _found_from(began_in: Any, asked: InitOptions | TrainOptions) -> InitOptions | TrainOptions:
    """The same options, their data where the run was begun, in the folder `began_in`, where it is not here."""
    if isinstance(began_in, str) and asked.data and not Path(asked.data).exists():
        there = Path(began_in, asked.data)
        return replace(asked, data=str(there)) if there.exists() else asked
    return asked


def command_line(asked: TrainOptions) -> str:
    """The command that asks for this, as a shell reads it."""
    words = ["lgrpo", "train", *([asked.checkpoint] if asked.checkpoint else [])]
    for name, value in asdict(asked).items():
        option = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
        if name == "checkpoint" or value is None or value is False:
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [option] if one is True else [option, str(one)]
    return shlex.join(words)


def continued(folder: Path, began: TrainOptions, asked: TrainOptions) -> TrainOptions:
    """Options of a run of `train`, with what was given now on top."""
    given = {name: value for name, value in asdict(asked).items() if value not in (None, ()) and value is not False}
    given |= {"checkpoint": began.checkpoint, "out": folder, "overrides": joined(began.overrides, asked.overrides)}
    merged = replace(began, **given)
    done = _steps(folder)
    if done is None:
        raise UserError(f"{folder / 'run.json'} is damaged (settings); begin the run again with --overwrite")
    finished = (read_json(folder / "run.json") or {}).get("finished")
    if finished and (merged.steps or 0) <= done and not merged.overwrite:
        raise UserError(f"{folder} has finished its {done} steps; `lgrpo eval` scores it, --steps N trains on")
    return merged


def has_more_steps(folder: Path, steps: int) -> bool:
    """Whether a run of so many steps goes on where the one in the folder has ended, or will."""
    return (done := _steps(folder)) is not None and steps > done


def _steps(folder: Path) -> int | None:
    """Of the plan of the run in a folder; None where it does not say."""
    try:
        return int((read_json(folder / "run.json") or {})["settings"]["steps"]["value"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is what a field of the options is declared as."""
    if value is None:
        return type(None) in get_args(kind)
    if get_origin(kind) is Sequence:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    kinds = get_args(kind) or (kind,)
    if float in kinds and type(value) in (int, float):
        return 0 < value <= 1
    if int in kinds and type(value) is int:
        return 0 <= value < 1 << 32
    return type(value) in kinds and type(value) in (str, bool)
