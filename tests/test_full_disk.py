"""A disk that really is full, folders that really cannot be read, and links: one line, and nothing is lost."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_train import run_to, weights

from lgrpo.errors import UserError
from lgrpo.history import read_lines
from lgrpo.metrics import group
from lgrpo.runs.checkpoints import resolve_checkpoint, saved_checkpoints
from lgrpo.runs.contents import damage, seal

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(where)], capture_output=True)
    except OSError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip("mounting is not allowed here")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
    return ballast


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("checkpoints/**/*") if path.is_file()}


def metrics(run: Path) -> list[dict[str, object]]:
    """But for what the machine decides."""
    return [
        {name: value for name, value in line.items() if group(name) not in {"time", "device"}}
        for line in read_lines(run / "metrics.jsonl")
    ]


@pytest.mark.parametrize("left", [0, MEGABYTE, 3 * MEGABYTE], ids=["nothing", "a megabyte", "half a checkpoint"])
def test_a_full_disk_ends_a_run_in_a_line_and_with_room_it_goes_on(disk: Path, tmp_path: Path, left: int) -> None:
    run_to(disk / "run", 1)
    before = files(disk / "run")
    ballast = fill(disk, left)
    with pytest.raises(UserError, match=r"^cannot write in .*run.*: No space left on device; [^\n]*$"):
        run_to(disk / "run", 3)
    assert files(disk / "run") == before
    assert [damage(saved.path) for saved in saved_checkpoints(disk / "run")] == [None] * 2
    ballast.unlink()
    pieces, whole = run_to(disk / "run", 3), run_to(tmp_path / "whole", 3)
    ours, theirs = weights(pieces), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(disk / "run") == metrics(tmp_path / "whole")


def checkpoint(run: Path, name: str = "step-1", sequence: int = 1) -> Path:
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    seal(folder, {"sequence": sequence, "saved": "2026-01-01", "score": 0.5})
    (run / "run.json").write_text('{"command": "train"}')
    return folder


def test_a_link_to_a_checkpoint_or_a_run_is_what_it_points_to(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "model").symlink_to(folder)
    assert resolve_checkpoint(str(tmp_path / "link"), pytest.fail) == str(tmp_path / "link/checkpoints/step-1")
    assert resolve_checkpoint(str(tmp_path / "model"), pytest.fail) == str(tmp_path / "model")


def test_links_to_nothing_and_in_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("broken", "circle"):
        with pytest.raises(UserError, match="there is no "):
            resolve_checkpoint(str(tmp_path / name), pytest.fail)
    folder = checkpoint(tmp_path / "run")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        resolve_checkpoint(str(tmp_path / "run"), pytest.fail)


@pytest.mark.parametrize("name", ["../../../secret.json", "/etc/hostname"])
def test_a_record_that_names_files_elsewhere_is_not_what_was_written(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "run")
    (tmp_path / "secret.json").write_text("{}")
    note = json.loads((folder / "saved.json").read_text())
    note["files"][name] = note["files"]["config.json"]
    (folder / "saved.json").write_text(json.dumps(note))
    assert damage(folder) == "saved.json is not what was written"
    with pytest.raises(UserError, match=r"saved\.json is not what was written"):
        resolve_checkpoint(str(tmp_path / "run"), pytest.fail)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["", "checkpoints", "checkpoints/step-1", "checkpoints/step-1/config.json"])
def test_what_may_not_be_read_is_refused_in_a_line(closed: str) -> None:
    """As somebody else than root, who may read everything."""
    code = (
        "import os, sys\nfrom lgrpo.runs.checkpoints import resolve_checkpoint\nfrom lgrpo.errors import UserError\n"
        "os.setgid(65534)\nos.setuid(65534)\n"
        "try:\n    resolve_checkpoint(sys.argv[1], print)\nexcept UserError as error:\n    print('refused:', error)\n"
    )
    with tempfile.TemporaryDirectory() as where:  # not pytest's, which is root's alone
        run = Path(where, "run")
        checkpoint(run)
        for path in (run.parent, *run.parent.rglob("*")):
            path.chmod(path.stat().st_mode | 0o555)
        (run / closed).chmod(0)
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()
    assert said.startswith("refused: ")
