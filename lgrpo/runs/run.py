"""Run folders: what was run, its numbers, and checkpoints that are whole or not there.

    runs/<model>-<kind>/
        run.json            command, settings with reasons, versions, device, seed, ...; "finished" at the end
        metrics.jsonl       one object a step, no step twice
        events.jsonl        what happened besides: skipped steps, out of memory, resumed, ...
        checkpoints/<kind>-<number>/ the caller's files (tensors as safetensors, the rest JSON) and saved.json
        tensorboard/ wandb/ what a tracker wrote, where one was asked for (trackers.py)
        lock                held while a process works here

Order and score of a checkpoint stand in its own saved.json, so "latest" and "best" are derived from what is there and
cannot disagree with it, whatever the moment of a crash. Finding them is checkpoints.py's part, writing them
saving.py's, hashes are contents.py's. A run that goes on sets damaged checkpoints aside as `.<name>.damaged`, so that
the one before is the latest; `prune` removes them once another is saved.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lgrpo.errors import UserError
from lgrpo.runs import saving
from lgrpo.runs.checkpoints import best_saved, latest_saved, saved_checkpoints
from lgrpo.runs.durable import (
    FolderLock,
    from_json,
    mend_folders,
    now,
    read_json,
    remove_folder,
    sync,
    to_json,
    whole_lines,
    write_bytes,
    write_json,
)
from lgrpo.runs.guard import refuse, refuse_links, unfinished, writing
from lgrpo.runs.provenance import WHERE, earlier_processes, elsewhere, this_process

Listener = Callable[[str, Mapping[str, Any]], None]  # ("metrics" or the kind of an event, its entries)


class Run:
    """One run folder, locked for this process from construction until `close`; a context manager.

    Made by `start` or `open`. Whatever these refuse they refuse with a UserError, having written nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = {}
        self.resumed = False
        self.listeners: list[Listener] = []  # told each line of metrics, and each event, once it is written
        self.damaged: list[str] = []  # checkpoints that were set aside when the run went on, and why
        self.elsewhere = ""  # where the process before it worked, if not where this one does
        self._opened, self._seconds = time.monotonic(), 0.0  # when this process began, what those before it worked
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            refuse_links(folder, ("lock", "metrics.jsonl", "events.jsonl"))
            self._lock = FolderLock(folder)

    @classmethod
    def start(
        cls,
        folder: Path,
        command: str,
        settings: Iterable[tuple[str, Any, str]],
        *,
        identity: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        **facts: Any,
    ) -> Run:
        """Go on with the run of this command in `folder`, or begin one there; `resumed` says which.

        settings: (name, value, reason) each, recorded. identity: what must be equal for it to be the same run, such as
        start checkpoint, data, recipe and seed. facts: recorded as they are, device and dtype of each process.
        A folder that holds another run is refused unless `overwrite`, which begins a finished one anew, too; one that
        was stopped goes on whatever `overwrite` says. Files that are no run are never replaced.
        """
        same = from_json(to_json(dict(identity or {}))) or {}
        overwrite = overwrite and not unfinished(folder, command, same)  # else a repeated command would lose its run
        refuse(folder, command, same, overwrite)
        run = cls(folder)
        try:
            with writing(folder):
                if not overwrite and refuse(folder, command, same, overwrite):
                    where = {name: facts.pop(name) for name in WHERE if name in facts}
                    run._go_on(where)
                    run.update(settings=_by_name(settings), **facts)  # what the identity leaves free may have changed
                else:
                    run._begin(command, settings, same, facts)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Go on with the run in `folder`, whatever it is."""
        if not read_json(folder / "run.json"):
            raise UserError(f"{folder} holds no run (no readable run.json); name a run folder")
        run = cls(folder)
        try:
            with writing(folder):
                run._go_on()
        except BaseException:
            run.close()
            raise
        return run

    def _begin(
        self, command: str, settings: Iterable[tuple[str, Any, str]], identity: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        if (self.folder / "checkpoints").exists():  # first: a replacement cut short must not mix two runs' checkpoints
            remove_folder(self.folder / "checkpoints")
        for name in ("metrics.jsonl", "events.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("tensorboard", "wandb"):  # what trackers.py had written of the run before
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.record = {
            "command": command,
            "identity": identity,
            "settings": _by_name(settings),
            **facts,
            **this_process(),
            "id": secrets.token_hex(4),
            "resumed": [],
            "finished": None,
            "seconds": 0.0,
        }
        write_json(self.folder / "run.json", self.record)
        sync(self.folder.parent)

    def _go_on(self, where: Mapping[str, Any] | None = None) -> None:
        self.record = read_json(self.folder / "run.json") or {}
        self.resumed = True
        seconds = self.record.get("seconds")
        self._seconds = float(seconds) if isinstance(seconds, (int, float)) else 0.0
        mend_folders(self.folder / "checkpoints")
        for name in ("metrics.jsonl", "events.jsonl"):
            whole_lines(self.folder / name)
        where, before = dict(where or {}), earlier_processes(self.record)
        self.elsewhere = elsewhere([self.record, *before], where)
        self.record["resumed"] = [*before, {**this_process(), **where}]
        write_json(self.folder / "run.json", self.record)
        for path, aside, what in saving.set_aside_damaged(self.folder):
            self.damaged.append(f"{path} is damaged ({what}) and set aside as {aside}")
            self.event("damaged", checkpoint=path.name, what=what)
        latest = self.latest()
        self.event("resumed", checkpoint=latest.name if latest else None, **where)

    # -- numbers and events

    def log(self, step: int, **numbers: Any) -> None:
        """Add one line to metrics.jsonl. Non-finite numbers are written as null."""
        self._append("metrics.jsonl", {"step": step, **numbers})
        self._tell("metrics", {"step": step, **numbers})

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, and lines that are none: on resuming from there, before the first `log`."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        with writing(self.folder):
            lines = path.read_bytes().splitlines(keepends=True)
            steps = [(from_json(line) or {}).get("step") for line in lines]
            kept = [line for line, at in zip(lines, steps, strict=True) if type(at) is int and at <= step]
            if len(kept) < len(lines):
                write_bytes(path, b"".join(kept))

    def event(self, kind: str, **detail: Any) -> None:
        """Add one line to events.jsonl: what happened, when."""
        self._append("events.jsonl", {"time": now(), "event": kind, **detail})
        self._tell(kind, detail)

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        """Another line. The file is opened each time: what a full disk did not take must not come up again later."""
        with writing(self.folder), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(to_json(entry) + "\n")

    def _tell(self, kind: str, entry: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener(kind, entry)

    def update(self, **facts: Any) -> None:
        """Set entries of run.json, atomically: what was measured or decided after the start.

        `seconds` is brought along: the wall time of all processes that worked on the run.
        """
        self.record.update(facts, seconds=self._seconds + time.monotonic() - self._opened)
        with writing(self.folder):
            write_json(self.folder / "run.json", self.record)

    def finish(self, **facts: Any) -> None:
        """Mark the run as finished, now."""
        self.update(finished=now(), **facts)

    @property
    def finished(self) -> bool:
        return bool(self.record.get("finished"))

    # -- checkpoints

    def save(self, name: str, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Call `write(folder)` and make that folder the checkpoint `name`, complete and on disk, or change nothing.

        A checkpoint of that name is replaced. score: higher is better; see `best`. Raises what `write` raises. Files
        are read back from disk for their hashes (contents.py); that tensors are as in memory is for `write` to compare.
        """
        with writing(self.folder):
            self._flush()
        saved = saving.save(self.folder, name, write, score)
        self.update()
        return saved

    def _flush(self) -> None:
        """Metrics and events on disk are never older than the newest checkpoint."""
        for name in ("metrics.jsonl", "events.jsonl"):
            if (self.folder / name).exists():
                sync(self.folder / name)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [saved.path for saved in saved_checkpoints(self.folder)]

    def latest(self) -> Path | None:
        """The checkpoint saved last."""
        saved = latest_saved(self.folder)
        return saved.path if saved else None

    def best(self) -> Path | None:
        """The checkpoint with the highest score, the earliest of equals; None where none has a score."""
        saved = best_saved(self.folder)
        return saved.path if saved else None

    def best_score(self) -> float | None:
        """The score of `best`."""
        saved = best_saved(self.folder)
        return saved.score if saved else None

    def prune(self) -> None:
        """Remove all checkpoints but the best and, of each kind (`step-12` is a `step`), the newest and the one before.

        The one before is what a run falls back on where the newest turns out to be damaged.
        """
        saving.prune(self.folder)

    def close(self) -> None:
        """Let other processes in. Twice is once."""
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _by_name(settings: Iterable[tuple[str, Any, str]]) -> dict[str, dict[str, Any]]:
    return {name: {"value": value, "reason": reason} for name, value, reason in settings}
