"""Finding checkpoints: which ones a run folder holds, which is meant by a word on the command line. Reads only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from lgrpo.errors import UserError
from lgrpo.runs.contents import NOTE, damage, is_model_file
from lgrpo.runs.durable import is_utf8, read_json

KINDS = ("init", "grpo", "explicit")  # endings of run folders' names
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Saved(NamedTuple):
    """One complete checkpoint: its folder, its place in the order of saving, when (UTC, ISO 8601), and its score."""

    path: Path
    sequence: int
    time: str
    score: float | None


def saved_checkpoints(run: Path) -> list[Saved]:
    """The complete checkpoints of a run folder, in the order of saving; empty where it has none.

    Raises OSError where it may not be looked into: that there is nothing would be another answer.
    """
    found, folder = [], run / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        path.lstat()  # raises where names may be seen and nothing else
        note = read_json(path / NOTE) or {}
        sequence, score = note.get("sequence"), note.get("score")
        if type(sequence) is int:
            real = isinstance(score, (int, float)) and abs(score) <= 1e300  # false for NaN, too
            found.append(Saved(path, sequence, str(note.get("saved")), score if real else None))
    return sorted(found, key=lambda saved: saved.sequence)


def latest_saved(run: Path) -> Saved | None:
    """The checkpoint saved last."""
    return max(saved_checkpoints(run), key=lambda saved: saved.sequence, default=None)


def best_saved(run: Path) -> Saved | None:
    """The checkpoint with the highest score, the earliest of equals; None where none has a score."""
    scored = [saved for saved in saved_checkpoints(run) if saved.score is not None]
    return max(scored, key=lambda saved: (saved.score, -saved.sequence), default=None)


def resolve_checkpoint(source: str, say: Callable[[str], None]) -> str:
    """The model folder or hub name meant by `source`: the first of `candidates` that is as it was saved.

    `say` hears of each that is damaged. Raises UserError, with the remedy, where all are.
    """
    damaged = ""
    for candidate in candidates(source):
        what = damage(Path(candidate), is_model_file) if Path(candidate).is_dir() else None
        if what is None:
            if damaged:
                say(f"{damaged}; {candidate} is used instead")
            return candidate
        damaged = damaged or f"{candidate} is damaged ({what})"
    raise UserError(f"{damaged}; name another checkpoint")


def candidates(source: str) -> list[str]:
    """What `source` may mean, the first choice first; never empty, and the files themselves are not read.

    A run folder means its best checkpoint, or its latest where none has a score, and after it, for when it is damaged,
    the others from the newest on. A folder with a config.json means itself; a name like owner/name that is no path here
    is the hub's. Anything else is a UserError with the remedy.
    """
    try:
        return _candidates(source)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{source} cannot be read ({reason}); mend its permissions, or name another") from error


def _candidates(source: str) -> list[str]:
    path = Path(source)
    try:
        there = path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        there = False
    if not source.strip() or (not there and not _is_hub_name(source)):
        raise UserError(
            f"there is no {source[:200]!r}{_similar(path)}; name a run, a model folder, or a hub model as owner/name"
        )
    if not there:
        return [source]
    if not path.is_dir():
        raise UserError(f"{source} is a file; name the folder of the run or model")
    if not is_utf8(path):
        raise UserError(
            f"{source}: the name, or the locale, is not UTF-8, by which models are read; rename the folder, or set "
            "LC_ALL=C.UTF-8"
        )
    if (path / "run.json").exists():
        models = [saved for saved in saved_checkpoints(path) if (saved.path / "config.json").exists()]
        if not models:
            raise UserError(f"{source} holds no checkpoint yet; let that run save one first, or name another")
        best = best_saved(path) or models[-1]
        return [str(best.path), *(str(saved.path) for saved in reversed(models) if saved.path != best.path)]
    if not (path / "config.json").exists():
        raise UserError(f"{source} is neither a run (run.json) nor a model (config.json); name the folder that is")
    return [source]


def _is_hub_name(source: str) -> bool:
    """owner/name, unless owner is a folder here: then a mistyped path is the likelier meaning."""
    owner = source.split("/")[0]
    return bool(_HUB_NAME.fullmatch(source)) and len(source) <= 100 and owner != "runs" and not Path(owner).exists()


def _similar(path: Path) -> str:
    try:
        there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, there, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def newest_run(root: Path = Path("runs"), commands: Collection[str] = ("train", "init")) -> Path | None:
    """The run under `root` that saved a checkpoint last, among those of these commands; None where there is none."""
    newest: tuple[str, Path] | None = None
    for folder in sorted(root.glob("*")):
        record = read_json(folder / "run.json")
        try:
            saved = latest_saved(folder) if record else None
        except OSError:  # one that may not be read is nobody's newest
            continue
        if record and saved and record.get("command") in list(commands):
            newest = max(newest or ("", folder), (saved.time, folder))
    return newest[1] if newest else None


def run_folder(root: Path, model: str, kind: str) -> Path:
    """runs/<model>-<kind> for a hub name, a model folder, a run folder, or a checkpoint inside one.

    A run's own ending is replaced, so that training runs/tiny-init goes to runs/tiny-grpo.
    """
    path = Path(model)
    if path.parent.name == "checkpoints" and (path.parent.parent / "run.json").exists():
        path = path.parent.parent
    stem = re.sub(rf"-({'|'.join(KINDS)})$", "", path.name or path.resolve().name)
    return root / f"{safe_name(stem)}-{safe_name(kind)}"


def safe_name(text: str) -> str:
    """`text` as the name of one file or folder: letters, digits and `._+-`, no leading dot, at most 100 bytes.

    Whole letters of UTF-8. File systems take 255 bytes, encrypted ones 143: a kind, a hash and an ending have room.
    """
    name = re.sub(r"[^\w.+-]+", "-", text).strip("-").lstrip(".-")
    return name.encode()[:100].decode("utf-8", "ignore") or "model"
