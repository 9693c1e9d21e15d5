"""A run of `train` or `init` in a process of its own, its death at a moment or at a call, and what it left behind.

The process is forked from one that has imported everything. killed_at_random.py and killed_at_calls.py are the tests.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import bitsandbytes  # noqa: F401 - what a run would import first, once for all of them
import test_initialise
import test_train
import transformers.models.llama.modeling_llama  # noqa: F401

from lgrpo.history import read_lines
from lgrpo.initialise import drop_progress
from lgrpo.metrics import group
from lgrpo.runs.durable import read_json

Work = Callable[[Path], None]  # in a folder: begins a run or goes on with it, to its end
STOPPED = 130  # exit code of a run that was asked to stop, and did


def train(folder: Path, steps: int) -> None:
    test_train.run_to(folder, steps, eval_every=1)
    if not (read_json(folder / "run.json") or {})["finished"]:
        raise KeyboardInterrupt  # it was asked to stop, and did


def init(folder: Path, **steps: int) -> None:
    with test_initialise.start(folder) as run:
        if run.finished:
            drop_progress(run)  # as the command does
        else:
            grader = test_initialise.ByText()
            test_initialise.go(run, test_initialise.Recorder(), grader=grader, eval_every=1, save_every=1, **steps)


def before_durable_calls(do: Callable[[str, Path], None]) -> None:
    """From now on `do(name, path)` comes before each call that makes a save durable; of a rename, the new path."""

    def preceded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            do(name, Path(os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else arguments[1]))
            return real(*arguments)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, preceded(name, getattr(os, name)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start(work: Work, folder: Path, first: Callable[[], None] = lambda: None) -> int:
    """A process that does `first` and then the work; returns its id. Its exit code is 0, 1 for an error, or STOPPED."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        first()
        work(folder)
        code = 0
    except KeyboardInterrupt:
        code = STOPPED
    finally:
        os._exit(code)


def end_of(child: int, moment: float | None = None, number: int = signal.SIGKILL) -> int:
    """Wait for a process; after `moment` seconds it gets the signal. Returns its exit code, or -signal."""
    with open(os.pidfd_open(child), closefd=True) as watched:
        if not select.select([watched], [], [], moment)[0]:
            os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saving(folder: Path) -> bool:
    """Whether a checkpoint is half written there."""
    return any((folder / "checkpoints").glob(".*.new"))


def content(folder: Path) -> dict[str, Any]:
    """All that must be the same of two runs: checkpoints to the byte, and metrics but for what the machine decides."""
    files = {}
    for path in sorted(folder.glob("checkpoints/*/*")):
        if path.suffix in {".safetensors", ".json"} and path.name != "saved.json":
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    metrics = [
        {name: value for name, value in line.items() if group(name) not in {"time", "device"}}
        for line in read_lines(folder / "metrics.jsonl")
    ]
    return {"files": files, "metrics": metrics}


def differences(found: dict[str, Any], whole: dict[str, Any]) -> str:
    names = sorted(
        name for name in found["files"].keys() | whole["files"].keys()
        if found["files"].get(name) != whole["files"].get(name)
    )  # fmt: skip
    lines = [(one, other) for one, other in zip(found["metrics"], whole["metrics"], strict=False) if one != other]
    return f"files {names}, metrics {len(found['metrics'])} and {len(whole['metrics'])}, first {lines[:1]}"
