"""A run that is killed, a save among its moments, and started again is the run that was never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kills by Linux means")


def told(script: str, *arguments: str) -> Any:
    """What a script beside this file prints at its end."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    on_cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # there a run is the same to the bit, and a fork can go on
    done = subprocess.run(command, capture_output=True, text=True, env=on_cpu)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_killed_in_saves_and_between_them_is_bit_for_bit_the_run_that_never_stopped(tmp_path: Path) -> None:
    for command, ended in told("killed_at_calls.py", str(tmp_path)).items():
        places = [died.split(":")[0] for died in ended["died"]]
        assert places.count("in a save") >= 4, (command, places)
        assert places.count("between saves") >= 4, (command, places)
        assert ended["files"] > 10
        assert (ended["code"], ended["different"]) == (0, None), (command, ended["different"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "init"])
@pytest.mark.parametrize("kills", [60])
def test_a_run_killed_at_random_is_bit_for_bit_the_run_that_never_stopped(
    tmp_path: Path, kind: str, kills: int
) -> None:
    count = told("killed_at_random.py", kind, str(tmp_path), str(kills), "0")
    assert count["kills"] >= kills
    assert count["in_save"] > 0  # a kill left a half-written folder behind
    assert count["finished"] > 0
    assert count["files"] > 5
    assert (count["different"], count["failed"]) == (0, 0), count
