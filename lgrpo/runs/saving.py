"""Writing checkpoints: each is whole or not there, damaged ones are set aside, older ones go.

Of one run folder, which the caller (run.py) has locked. Finding checkpoints is checkpoints.py's part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lgrpo.runs.checkpoints import best_saved, safe_name, saved_checkpoints
from lgrpo.runs.contents import NOTE, damage, seal
from lgrpo.runs.durable import mend_folders, now, publish_folder, remove, remove_folder, sync
from lgrpo.runs.guard import writing


def save(run: Path, name: str, write: Callable[[Path], None], score: float | None) -> Path:
    """The checkpoint that `write(folder)` made, complete and on disk, or nothing changed: see `Run.save`."""
    if safe_name(name) != name:
        raise ValueError(f"not a name for a folder: {name!r}")
    target = run / "checkpoints" / name
    beside = target.with_name(f".{name}.new")
    order = [saved.sequence for saved in saved_checkpoints(run)]
    try:
        with writing(run):
            remove(beside)
            beside.mkdir(parents=True)
            write(beside)
            seal(beside, {"sequence": max(order, default=0) + 1, "saved": now(), "score": score})
            publish_folder(beside, target)
            sync(run)
    except BaseException:
        mend_folders(target.parent)
        raise
    return target


def set_aside_damaged(run: Path) -> Iterator[tuple[Path, str, str]]:
    """Rename each checkpoint that is not what was saved: (where it was, its name now, what is wrong with it)."""
    for path in sorted((run / "checkpoints").glob("[!.]*")):
        what = damage(path) if (path / NOTE).exists() else f"{NOTE} is missing"
        if what is not None:
            aside = path.with_name(f".{path.name}.damaged")
            remove(aside)
            os.rename(path, aside)
            yield path, aside.name, what


def prune(run: Path) -> None:
    """Remove all but the best and the newest two of each kind, and what was set aside: see `Run.prune`."""
    kinds: dict[str, list[Path]] = {}
    saved = [one.path for one in saved_checkpoints(run)]
    for path in saved:
        kinds.setdefault(path.name.rpartition("-")[0], []).append(path)
    stay = {path for paths in kinds.values() for path in paths[-2:]}
    if best := best_saved(run):
        stay.add(best.path)
    with writing(run):
        for path in saved:
            if path not in stay:
                remove_folder(path)
        for path in (run / "checkpoints").glob(".*.damaged"):
            remove(path)
