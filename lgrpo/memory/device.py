"""How much of a device's memory is used and left right now."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_VERSION_1 = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_VERSION_2 = "", "memory.max", "memory.current", "inactive_file"
_UNLIMITED = 1 << 60  # what a group without a limit says is near the most that 64 bits hold


def now_on(device: torch.device) -> dict[str, float]:
    """`memory_used` and `memory_free` in bytes: on a GPU the most that was reserved, and what is free for anybody; on a
    CPU what this process holds, and what is available. Empty where nobody knows.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return {"memory_used": float(torch.cuda.max_memory_reserved(device)), "memory_free": float(free)}
    held, available = _lines(PROC / "self/statm"), available_on_host()
    numbers = {"memory_used": float(int(held[0].split()[1]) * os.sysconf("SC_PAGE_SIZE"))} if held else {}
    return numbers | ({} if available is None else {"memory_free": float(available)})


def available_on_host() -> int | None:
    """Bytes that this process can still have, by the machine and by the container it is in; None where nobody knows."""
    return min((*_left_of_machine(), *_left_of_groups()), default=None)


def _left_of_machine() -> list[int]:
    lines = _lines(PROC / "meminfo")
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _left_of_groups() -> Iterator[int]:
    """Of each control group with a limit that this process is in, which is what a container's limit is.

    What a group uses counts without the pages of files that the kernel gives up first. Where the group's own folder
    is not to be seen, as within some containers, the nearest that is stands for it.
    """
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit, use, files = _VERSION_1 if controllers else _VERSION_2
        parts = [part for part in place.split("/") if part]
        for depth in range(len(parts) if ".." not in parts else 0, -1, -1):
            folder = GROUPS.joinpath(root, *parts[:depth])
            given = _lines(folder / limit)
            if given and given[0].isdecimal() and int(given[0]) < _UNLIMITED:
                kept = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[:1] == [files]]
                used = sum(map(int, _lines(folder / use)))
                yield max(0, int(given[0]) - used + sum(kept))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
