"""Kills a run of `train` or `init` again and again, starts it again each time, and compares it with one never stopped.

    python tests/killed_at_random.py train|init FOLDER KILLS SEED

Two kills in three come from outside at a random moment (SIGKILL, SIGTERM or SIGINT); the third is the run's own SIGKILL
at a random one of the calls that make a save durable. Prints what happened as JSON.
"""

import itertools
import json
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import killed

WORK: dict[str, killed.Work] = {"train": partial(killed.train, steps=6), "init": killed.init}
CALLS = 60  # durable calls of about two saves


def die_at(number: int) -> None:
    """The `number`-th durable call from now on is this process's end."""
    left = itertools.count(number - 1, -1)
    killed.before_durable_calls(lambda name, path: killed.die() if next(left) == 0 else None)


def attempt(work: killed.Work, folder: Path, chance: random.Random, usual: float) -> int:
    """Run, and die or be killed some time; a run that is quicker than that ends well."""
    if chance.random() < 1 / 3:
        return killed.end_of(killed.start(work, folder, partial(die_at, chance.randint(1, CALLS))))
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    return killed.end_of(killed.start(work, folder), chance.uniform(0, usual), number)


def main(kind: str, where: Path, kills: int, seed: int) -> None:
    work, chance = WORK[kind], random.Random(seed)
    began = time.monotonic()
    assert killed.end_of(killed.start(work, where / "whole")) == 0
    usual, whole = time.monotonic() - began, killed.content(where / "whole")
    count = {"kills": 0, "in_save": 0, "finished": 0, "different": 0, "failed": 0, "files": len(whole["files"])}
    folder = where / "pieces"
    while count["kills"] < kills and not count["failed"]:
        code = None
        while code != 0 and count["failed"] <= 3:
            more = count["kills"] < kills
            code = attempt(work, folder, chance, usual) if more else killed.end_of(killed.start(work, folder))
            count["kills"] += code != 0
            count["failed"] += code not in {0, killed.STOPPED, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
            count["in_save"] += killed.saving(folder)
        count["finished"] += 1
        found = killed.content(folder)
        if found != whole:
            count["different"] += 1
            print(killed.differences(found, whole), file=sys.stderr)
        shutil.rmtree(folder)
    print(json.dumps(count))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
