"""What ran: versions, command line, machine and commit, for the record of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from lgrpo import __version__
from lgrpo.runs.durable import now

WHERE = ("device", "dtype", "threads")  # of a process; a run may go on elsewhere
_PACKAGES = ("torch", "transformers", "bitsandbytes", "safetensors", "tokenizers", "math-verify")


def this_process() -> dict[str, Any]:
    """This process, for run.json: at the start, and again at each resume, as any of it may have changed."""
    versions = {"lgrpo": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "argv": sys.argv,
        "cwd": _working_directory(),
        "started": now(),
        "versions": versions,
        "platform": platform.platform(),
        "git": _git_commit(),
    }


def earlier_processes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that went on with the run of this record."""
    known = record.get("resumed")
    return [one for one in known if isinstance(one, dict)] if isinstance(known, list) else []


def place(process: Mapping[str, Any]) -> str:
    """Where a process says that it worked, as far as it does: "cpu in float32 with 2 threads"."""
    known = " in ".join(str(process[name]).removeprefix("torch.") for name in ("device", "dtype") if name in process)
    threads = process.get("threads") if str(process.get("device")).startswith("cpu") else None
    return f"{known} with {threads} thread{'s' * (threads != 1)}" if threads else known


def elsewhere(processes: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> str:
    """The `place` of the last of the processes that said so, if not `where`; else "".

    Two devices of a kind are one: `cuda` and `cuda:1`.
    """
    known = {name: [one[name] for one in processes if name in one] for name in where}
    before = {name: values[-1] if values else where[name] for name, values in known.items()}
    then, here = ({name: str(value).split(":")[0] for name, value in one.items()} for one in (before, where))
    return "" if then == here else place(before)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _git_commit() -> str | None:
    """The commit checked out in the working directory, with -dirty where files differ from it; None without git."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
