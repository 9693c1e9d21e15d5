"""A run that is killed at random moments, a save among them, and started again is the run that was never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed.py")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kills by Linux means")
@pytest.mark.parametrize("kind", ["train", "init"])
@pytest.mark.slow
@pytest.mark.parametrize("kills", [60])
def test_a_killed_run_is_bit_for_bit_the_run_that_never_stopped(tmp_path: Path, kind: str, kills: int) -> None:
    command = [sys.executable, str(SCRIPT), kind, str(tmp_path), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    count = json.loads(done.stdout)
    assert count["kills"] >= kills
    assert count["in_save"] > 0  # a kill left a half-written folder behind
    assert count["finished"] > 0
    assert count["files"] > 5
    assert (count["different"], count["failed"]) == (0, 0), count
