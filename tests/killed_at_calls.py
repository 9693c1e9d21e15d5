"""Kills a small run of `train` or `init` at chosen ones of the calls that make a save durable.

    python tests/killed_at_calls.py FOLDER

A run that nothing stops tells which calls there are, and which of them come while a checkpoint is half written. Another
one dies at the first of those chosen, goes on, dies at the next, and so on: at the same places however busy the machine
is. Prints as JSON, of each command, where it died, and what is different at the end.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import killed
import test_initialise
import test_train

from lgrpo.policy import Policy
from lgrpo.report import pictures
from lgrpo.runs import Run
from lgrpo.screen import Show
from lgrpo.train import train as train_policy


class Call(NamedTuple):
    """One of the calls that make a save durable, as it is about to be made."""

    name: str
    path: str  # within the run
    saving: bool  # whether a checkpoint is half written


def train(folder: Path) -> None:
    """As test_train.py does, with a model that learns in no time."""
    start = folder.with_name("start")
    if not start.exists():
        test_initialise.base().save(start)
    problems, settings = test_initialise.PROBLEMS, test_train.settings(steps=3, eval_every=1)
    with Run.start(folder, "train", [], identity={"seed": 0}) as run, Show() as show:
        policy = Policy.load(run.latest() or start)
        train_policy(policy, problems[:12], problems[12:14], settings, test_train.Parity(), run, show)


def init(folder: Path) -> None:
    killed.init(folder, warm_up_steps=1, decoder_steps=1, walk_steps=2)


def calls_of(work: killed.Work, folder: Path) -> list[Call]:
    """Do the work, and say what was called."""
    calls, real = [], (os.fsync, os.rename, os.replace)

    def note(name: str, path: Path) -> None:
        calls.append(Call(name, os.path.relpath(path, folder), killed.saving(folder)))

    killed.before_durable_calls(note)
    work(folder)
    os.fsync, os.rename, os.replace = real
    return calls


def chosen(calls: list[Call]) -> list[Call]:
    """Where to die, one after the other. What was saved before is not saved again, so the first call alike is meant.

    The run's first record. Of the second checkpoint the first call, one in the middle, the rename that makes it visible
    and the one after. The record of a run that goes on. Each later rename to a checkpoint, and the last one of all.
    """
    record = next(call for call in calls if (call.name, call.path) == ("replace", "run.json"))
    renames = [number for number, call in enumerate(calls) if call.name == "rename"]
    visible = [number for number in renames if calls[number].saving]
    last = visible[1]
    first = next(number for number in range(visible[0] + 1, last) if calls[number].saving)
    second = [calls[number] for number in (first, (first + last) // 2, last, last + 1)]
    return [record, *second, record, *(calls[number] for number in (*visible[2:], renames[-1]))]


def die_at(wanted: Call, folder: Path) -> None:
    def look(name: str, path: Path) -> None:
        if (name, os.path.relpath(path, folder)) == (wanted.name, wanted.path):
            killed.die()

    killed.before_durable_calls(look)


def attempt(work: killed.Work, folder: Path, call: Call) -> str:
    """Go on to a call, and die there; says in words where it was."""
    code = killed.end_of(killed.start(work, folder, partial(die_at, call, folder)))
    if code != -signal.SIGKILL or killed.saving(folder) != call.saving:
        raise AssertionError(f"exit code {code} on the way to {call}")
    return f"{'in a save' if call.saving else 'between saves'}: {call.name} {call.path}"


def main(where: Path) -> None:
    pictures.svg, pictures.png = lambda history: "<svg></svg>", lambda history: b""  # the slowest, and no part of this
    report = {}
    for work in (train, init):
        calls = calls_of(work, where / work.__name__ / "whole")
        whole, folder = killed.content(where / work.__name__ / "whole"), where / work.__name__ / "pieces"
        died = [attempt(work, folder, call) for call in chosen(calls)]
        code, found = killed.end_of(killed.start(work, folder)), killed.content(folder)
        different = killed.differences(found, whole) if found != whole else None
        report[work.__name__] = {"died": died, "files": len(found["files"]), "code": code, "different": different}
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
