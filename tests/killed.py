"""Kills runs of `train` or `init`, starts them again, and compares them with one that was never stopped.

    python tests/killed.py train|init FOLDER                  once at each kind of moment around a save
    python tests/killed.py train|init FOLDER KILLS SEED       again and again, at random moments

A run is a process forked from this one, which imports everything once and computes nothing itself. At random, two kills
in three come from outside (SIGKILL, SIGTERM or SIGINT); the third is the run's own SIGKILL at a random one of the calls
that make a save durable. Prints what happened as JSON.
"""

import itertools
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import test_initialise
import test_train

from lgrpo.history import read_lines
from lgrpo.metrics import group
from lgrpo.report import pictures
from lgrpo.runs.durable import read_json

STEPS = 6  # of `train`
CALLS = 60  # durable calls of about two saves


def work(kind: str, folder: Path, steps: int) -> None:
    if kind == "train":
        test_train.run_to(folder, steps, eval_every=1)
        if not (read_json(folder / "run.json") or {})["finished"]:
            raise KeyboardInterrupt  # it was asked to stop, and did
    else:
        with test_initialise.start(folder) as run:
            test_initialise.go(
                run, test_initialise.Recorder(), grader=test_initialise.ByText(), eval_every=1, save_every=1
            )


class Call(NamedTuple):
    """One of the calls that make a save durable, before it is made."""

    name: str  # fsync, rename or replace
    path: Path  # what is flushed, or the new name
    number: int  # among all, from 1
    saved: int  # checkpoints that this process has made visible

    @property
    def publishes(self) -> bool:
        return self.name == "rename" and self.path.parent.name == "checkpoints" and not self.path.name.startswith(".")


# Around the second save. Reports are written as time goes by, so a call has no number that is the same each time.
MOMENTS: dict[str, Callable[[Call], bool]] = {
    "a file is flushed": lambda call: call.saved == 1 and call.path.parent.name.endswith(".new"),
    "it is renamed": lambda call: call.saved == 1 and call.publishes,
    "the record follows": lambda call: call.saved == 2 and call.path.name == "run.json",
}


def die_at(moment: Callable[[Call], bool]) -> None:
    """From now on the first call at this moment is this process's end."""
    numbers, saved = itertools.count(1), 0

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal saved
            path = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else arguments[1]
            now = Call(name, Path(path), next(numbers), saved)
            if moment(now):
                os.kill(os.getpid(), signal.SIGKILL)
            saved += now.publishes
            return real(*arguments, **named)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, watched(name, getattr(os, name)))


def attempt(
    kind: str,
    folder: Path,
    after: float | None = None,
    number: int = signal.SIGKILL,
    own: Callable[[Call], bool] | None = None,
    steps: int = STEPS,
) -> int:
    """Run, and send the signal `number` after `after` seconds; or let it die at its `own` moment."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        try:
            if own:
                die_at(own)
            work(kind, folder, steps)
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    with open(os.pidfd_open(child), closefd=True) as process:
        if not select.select([process], [], [], after)[0]:
            os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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


def around_a_save(kind: str, where: Path) -> None:
    pictures.svg, pictures.png = (
        (lambda history: "<svg></svg>"),
        (lambda history: b""),
    )  # they take longer than the rest
    assert attempt(kind, where / "whole", steps=2) == 0
    whole = content(where / "whole")
    out: dict[str, Any] = {}
    for name, moment in MOMENTS.items():
        folder = where / name
        killed = attempt(kind, folder, own=moment, steps=2)
        half = any((folder / "checkpoints").glob(".*"))
        finished = attempt(kind, folder, steps=2)
        out[name] = {"codes": [killed, finished], "half": half, "same": content(folder) == whole}
    print(json.dumps({"files": len(whole["files"]), "moments": out}))


def at_random(kind: str, where: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    began = time.monotonic()
    assert attempt(kind, where / "whole") == 0
    usual, whole = time.monotonic() - began, content(where / "whole")
    count = {"kills": 0, "in_save": 0, "finished": 0, "different": 0, "failed": 0, "files": len(whole["files"])}
    while count["kills"] < kills:
        folder = where / "pieces"
        code = None
        while code != 0:
            if count["kills"] >= kills:
                code = attempt(kind, folder)
            elif chance.random() < 1 / 3:
                at = chance.randint(1, CALLS)
                code = attempt(kind, folder, own=lambda call, at=at: call.number == at)
            else:
                number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                code = attempt(kind, folder, chance.uniform(0, usual), number)
            count["kills"] += code != 0
            count["failed"] += code not in {0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
            count["in_save"] += any((folder / "checkpoints").glob(".*"))
            if count["failed"] > 3:
                break
        count["finished"] += 1
        found = content(folder)
        if found != whole:
            count["different"] += 1
            print(differences(found, whole), file=sys.stderr)
        shutil.rmtree(folder)
        if count["failed"]:
            break
    print(json.dumps(count))


if __name__ == "__main__":
    kind, where, *rest = sys.argv[1:]
    if rest:
        at_random(kind, Path(where), *map(int, rest))
    else:
        around_a_save(kind, Path(where))
