"""A disk that is really full: a small one is mounted, which takes root on Linux, and filled while a run is at work."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killed import content, differences
from killed_at_calls import init, train
from test_cli import _small, latent, lgrpo, mixed_rewards, policy  # noqa: F401 - fixtures among them
from test_initialise import Recorder

from lgrpo.errors import UserError
from lgrpo.evaluate import Asked
from lgrpo.exam.samples import PASS_AT_1, Outcome, Samples
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.runs import Run
from lgrpo.runs.checkpoints import resolve_checkpoint
from lgrpo.runs.contents import damage
from lgrpo.screen import Show

FULL = "No space left on device; free some space and run the same command again"


class Disk:
    """64 MB at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def fill(self, free: int = 0) -> None:
        """Take all room but `free` bytes."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        assert shutil.disk_usage(self.folder).free == 0
        if free:
            os.truncate(self._filler, self._filler.stat().st_size - free)

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=128m", self.folder], check=True)

    def clear(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def filling(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on it. Once there is a checkpoint, the next step that is shown leaves no more room than for half one."""
    out, filled = disk.folder / "run", []

    def fill_after(real: Callable[..., None]) -> Callable[..., None]:
        def step(self: Any, *numbers: Any) -> None:
            real(self, *numbers)
            if not filled and any(out.glob("checkpoints/[!.]*")):
                filled.append(True)
                disk.fill(free=32 << 10)

        return step

    for show in (Show, Recorder):
        monkeypatch.setattr(show, "step", fill_after(show.step))
    return out


def intact(out: Path) -> dict[str, int]:
    """The checkpoints that are there, and when they were made. All are what was saved, and nothing is beside them."""
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()}
    assert kept
    assert {name: damage(out / "checkpoints" / name) for name in kept} == dict.fromkeys(kept)
    return kept


@pytest.mark.usefixtures("mixed_rewards")
def test_the_command_ends_in_one_line_and_keeps_what_it_had_saved(filling: Path, latent: str) -> None:  # noqa: F811
    result = lgrpo("train", latent, "--steps", "2", "--set", "eval_every=1", "--out", str(filling))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: cannot write in {filling}: {FULL}"
    assert "Traceback" not in result.stderr
    assert list(intact(filling)) == ["step-000000"]
    assert Policy.load(resolve_checkpoint(str(filling), pytest.fail)).latent


@pytest.mark.parametrize("work", [train, init])
def test_a_run_that_met_a_full_disk_goes_on_bit_for_bit_once_there_is_room(
    work: Callable[[Path], None], disk: Disk, filling: Path, tmp_path: Path
) -> None:
    work(tmp_path / "whole")
    with pytest.raises(UserError, match=FULL):
        work(filling)
    kept = intact(filling)
    disk.fill()
    with pytest.raises(UserError, match=FULL):  # still no room, and none at all
        work(filling)
    assert intact(filling) == kept
    disk.grow()
    work(filling)
    found, whole = content(filling), content(tmp_path / "whole")
    assert len(found["files"]) > 5
    assert found == whole, differences(found, whole)


def many(write: Callable[[int], Any]) -> None:
    """Lines of 100 bytes, until they take a block that is not there."""
    for number in range(1000):
        write(number)


WRITES: dict[str, Callable[[Run], None]] = {
    "metrics.jsonl": lambda run: many(lambda number: run.log(number, text="x" * 100)),
    "events.jsonl": lambda run: many(lambda number: run.event("oom", text="x" * 100)),
    "run.json": lambda run: run.update(text="x" * 100_000),
    "a checkpoint": lambda run: run.save("step-2", lambda folder: None),
}


@pytest.mark.parametrize("what", WRITES)
def test_whatever_a_full_disk_does_not_take_is_one_line_and_leaves_what_was_there(disk: Disk, what: str) -> None:
    out = disk.folder / "run"
    with Run.start(out, "train", [], identity={"seed": 3}) as run:
        run.log(1, loss=0.5)
        run.save("step-1", lambda folder: (folder / "config.json").write_text("{}"))
    disk.fill()
    with pytest.raises(UserError, match=FULL), Run.start(out, "train", [], identity={"seed": 3}):
        pass
    disk.clear()
    with Run.start(out, "train", [], identity={"seed": 3}) as run:
        disk.fill()
        with pytest.raises(UserError, match=FULL):
            WRITES[what](run)
    record = json.loads((out / "run.json").read_text())
    assert record["identity"] == {"seed": 3}
    assert os.listdir(out / "checkpoints") == ["step-1"]
    disk.clear()
    with Run.start(out, "train", [], identity={"seed": 3}) as run:
        assert run.resumed
        assert run.damaged == []
        run.rewind(1)
        run.log(2, loss=0.25)
        run.finish()
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = [json.loads(line) for line in (out / name).read_text().splitlines()]
        assert {"step": 2, "loss": 0.25} in lines or name == "events.jsonl"
    disk.fill()
    with pytest.raises(UserError, match=FULL):
        Run.start(disk.folder / "other", "train", [])
    assert not (disk.folder / "other/run.json").exists()


def test_an_evaluation_that_met_a_full_disk_keeps_its_samples_and_goes_on(disk: Disk) -> None:
    problems = [Problem(f"What is {number} + 1?", str(number + 1)) for number in range(2000)]
    path, taken = disk.folder / "eval.jsonl", 0
    with Samples(path, problems) as samples:

        def add() -> None:
            nonlocal taken
            samples.add(PASS_AT_1, [Outcome(taken, 0, True, True, 3, 4)], [{}])
            taken += 1

        add()
        disk.fill()
        with pytest.raises(UserError, match=FULL):
            many(lambda number: add())
    assert 0 < taken < 1000
    disk.clear()
    with Samples(path, problems) as samples:
        missing = samples.missing(PASS_AT_1, 1)
        assert missing[0] == Asked(taken, 0)
        assert len(missing) == 2000 - taken
