"""What a run writes goes to TensorBoard, Weights & Biases or Trackio too (`--log-to`).

A tracker is a spectator: it is opened at the first numbers, never asks anything, and where it fails the run says so
once and goes on without it. Its package is an extra and is imported only when it is asked for.
"""

from __future__ import annotations

import io
import math
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lgrpo.errors import UserError
from lgrpo.runs import Run
from lgrpo.runs.guard import refuse_links
from lgrpo.text import columns, setting

PROJECT = "lgrpo"  # at Weights & Biases, unless WANDB_PROJECT names another, and at Trackio
UPLOAD_TIMEOUT = 60.0  # seconds Weights & Biases may take to begin, and to send what is left at the end
_SAME_FOR_ALL_STEPS = ("step", "problems", "runs")  # of a held-out score


class Tracker(Protocol):
    """An open tracker. Each call may raise whatever its package raises."""

    note: str  # one line: where to look, or what to do with what it wrote

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add finite numbers by name at `step`, which may be an earlier one's again."""

    def close(self, failed: bool = False) -> None:
        """Write and send what is left."""


def available(name: str) -> bool:
    """Whether the tracker's package is installed; a mere folder of that name, such as a run's `wandb`, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def check(name: str | None) -> None:
    """Raises UserError where the tracker's package is missing: to be called before anything long starts."""
    if name in _TRACKERS and not available(name):
        raise UserError(f"--log-to {name} needs a package that is not installed: pip install {name}")


@contextmanager
def tracking(run: Run, name: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """While inside, the metrics and held-out scores of `run` go to the tracker `name` too; None and `none` are none.

    say: hears where to look, and once why the tracker was left. Nothing a tracker raises gets out of here.
    """
    if name is None or name == "none":
        yield
        return
    feed = _Feed(run, name, say)
    run.listeners.append(feed.hear)
    failed = True
    try:
        yield
        failed = False
    except KeyboardInterrupt:  # stopped, not failed: the run goes on another time
        failed = False
        raise
    finally:
        run.listeners.remove(feed.hear)
        feed.close(failed)


class _Feed:
    """Picks the numbers out of what a run writes, and guards the run from the tracker."""

    def __init__(self, run: Run, name: str, say: Callable[[str], None]) -> None:
        self._run, self._name, self._say = run, name, say
        self._tracker: Tracker | None = None
        self._left = False
        self._step: int | None = None  # of the newest metrics; a held-out score belongs to them

    def hear(self, kind: str, entry: Mapping[str, Any]) -> None:
        if kind == "metrics":
            self._step = entry["step"]
            self._log(self._step, {name: value for name, value in entry.items() if name != "step"})
        elif kind == "held_out":
            scores = {name: value for name, value in entry.items() if name not in _SAME_FOR_ALL_STEPS}
            self._log(entry["step"] if self._step is None else self._step, {"held_out": scores})

    def _log(self, step: int, entry: Mapping[str, Any]) -> None:
        if self._left:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open(step)
                self._say(self._tracker.note)
            self._tracker.log(step, finite_numbers(entry))
        except Exception as error:
            self._leave(error)

    def _open(self, first: int) -> Tracker:
        run = self._run
        if "id" not in run.record:  # of an earlier version
            run.update(id=secrets.token_hex(4))
        settings = {name: row["value"] for name, row in run.record["settings"].items()}
        settings = {"command": run.record["command"], **run.record["identity"], **settings}
        return open_tracker(
            self._name, run.folder.resolve().name, run.folder, settings, run_id=run.record["id"], first=first
        )

    def _leave(self, error: Exception) -> None:
        self._left = True
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        self._say(f"{self._name} failed ({reason}); the run goes on without it, metrics.jsonl has all numbers")

    def close(self, failed: bool) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.close(failed)
        except Exception as error:
            if not self._left:
                self._leave(error)


def finite_numbers(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line of metrics, by name; those of an inner object are called outer/inner."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= finite_numbers(value, f"{prefix}{name}/")
            continue
        value = value.item() if hasattr(value, "item") else value  # scalar tensors
        if isinstance(value, (int, float)) and math.isfinite(value):
            found[prefix + name] = value
    return found


def open_tracker(
    name: str, run_name: str, folder: Path, settings: Mapping[str, Any], *, run_id: str, first: int
) -> Tracker:
    """Open the tracker `name` for the run in `folder`. Raises UserError where what it would write in there is a link.

    settings: shown with the run. run_id: the same whenever this run goes on, and no other run's. first: the step of
    the first numbers to come; what an interrupted process logged from there on is replaced.
    """
    refuse_links(folder, [name])
    return _TRACKERS[name](run_name, folder, settings, run_id, first)


class _TensorBoard:
    """Event files in the run's folder `tensorboard`; each process adds one."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Any], run_id: str, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        where = folder / "tensorboard"
        self._writer = SummaryWriter(str(where), purge_step=first)
        table = columns([(name, setting(value)) for name, value in settings.items()])
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in table), first)  # indented: as it is
        self.note = f"numbers go to TensorBoard too: tensorboard --logdir {shlex.quote(str(where))}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, failed: bool = False) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases: online where a key is at hand, else in the run's folder `wandb`, to be sent later."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Any], run_id: str, first: int) -> None:
        import wandb

        # Silent is also what forbids the package to ask for a key. It must not take stdout and stderr over either.
        quiet = wandb.Settings(
            silent=True, console="off", init_timeout=UPLOAD_TIMEOUT / 2, finish_timeout=UPLOAD_TIMEOUT
        )
        wandb.setup(settings=wandb.Settings(silent=True))
        options = {
            "project": None if wandb.setup().settings.project else PROJECT,
            "name": run_name,
            "id": run_id,
            "resume": "allow",
            "dir": str(folder),
            "config": dict(settings),
            "settings": quiet,
        }
        why = ""
        try:
            self._run = wandb.init(**options)
        except wandb.Error as error:  # no key, a wrong one, no network
            why = f" ({' '.join(str(error).split())[:200]})"
            wandb.teardown()  # else the attempt still has the id
            self._run = wandb.init(**options, mode="offline")
        self._run.define_metric("*", step_metric="step")  # its own count of steps cannot go back
        if self._run.disabled:
            self.note = "WANDB_MODE has switched Weights & Biases off: no numbers go there"
        elif self._run.offline:
            runs = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
            self.note = f"Weights & Biases is offline{why}; to send the numbers: wandb sync {runs}"
        else:
            self.note = f"numbers go to Weights & Biases too: {self._run.url}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """A run of Trackio, in its local database unless its environment variables name a Space."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Any], run_id: str, first: int) -> None:
        import trackio

        self._finish = trackio.finish
        with redirect_stdout(io.StringIO()):  # it speaks on stdout, which is for answers
            self._run = trackio.init(PROJECT, name=f"{run_name}-{run_id}", resume="allow", config=dict(settings))
        self.note = f"numbers go to Trackio too: trackio show --project {PROJECT}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, failed: bool = False) -> None:
        with redirect_stdout(io.StringIO()):
            self._finish()  # the run's own would leave it open, to be finished again at the process's end


_TRACKERS: dict[str, Callable[[str, Path, Mapping[str, Any], str, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}
