"""A run that is killed at any moment, within a save too, and started again is the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("killed.py")


pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kills by Linux means")


def killed(*arguments: object) -> Any:
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["train", "init"])
def test_a_kill_at_each_moment_of_a_save_loses_nothing(tmp_path: Path, kind: str) -> None:
    found = killed(kind, tmp_path)
    assert found["files"] > 5
    assert list(found["moments"]) == ["a file is flushed", "it is renamed", "the record follows"]
    for name, moment in found["moments"].items():
        assert moment["codes"] == [-signal.SIGKILL, 0], name
        assert moment["half"] == (name != "the record follows"), name  # a folder that is not whole was left behind
        assert moment["same"], name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "init"])
@pytest.mark.parametrize("kills", [60])
def test_a_run_killed_at_random_is_bit_for_bit_the_run_that_never_stopped(
    tmp_path: Path, kind: str, kills: int
) -> None:
    count = killed(kind, tmp_path, kills, 0)
    assert count["kills"] >= kills
    assert count["in_save"] > 0  # a kill left a half-written folder behind
    assert count["finished"] > 0
    assert count["files"] > 5
    assert (count["different"], count["failed"]) == (0, 0), count
