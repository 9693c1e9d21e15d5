"""What ran: versions, command line, machine and commit, for the record of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from lgrpo import __version__
from lgrpo.runs.durable import now

WHERE = ("device", "dtype")  # of a process; a run may go on elsewhere
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
        "started": now(),
        "versions": versions,
        "platform": platform.platform(),
        "git": _git_commit(),
    }


def earlier_processes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that went on with the run of this record."""
    known = record.get("resumed")
    return [one for one in known if isinstance(one, dict)] if isinstance(known, list) else []


def elsewhere(processes: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> str:
    """Where the last of the processes that said so worked, if not at `where`: "cuda in bfloat16"; else "".

    Two devices of a kind are one: `cuda` and `cuda:1`.
    """
    known = [[one[name] for one in processes if name in one] for name in where]
    before = [values[-1] if values else now for values, now in zip(known, where.values(), strict=True)]
    then, here = ([str(value).removeprefix("torch.") for value in values] for values in (before, where.values()))
    alike = [value.split(":")[0] for value in then] == [value.split(":")[0] for value in here]
    return "" if alike else " in ".join(then)


def _git_commit() -> str | None:
    """The commit checked out in the working directory, with -dirty where files differ from it; None without git."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
