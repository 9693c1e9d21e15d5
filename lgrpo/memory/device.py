"""How much of a device's memory is used and left right now."""

import os
from pathlib import Path

import torch


def now_on(device: torch.device) -> dict[str, float]:
    """`memory_used` and `memory_free` in bytes: on a GPU the most that was reserved, and what is free for anybody; on a
    CPU what this process holds, and what is available. Empty where nobody knows.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return {"memory_used": float(torch.cuda.max_memory_reserved(device)), "memory_free": float(free)}
    available = available_on_host()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return {}
    used = float(pages * os.sysconf("SC_PAGE_SIZE"))
    return {"memory_used": used} | ({} if available is None else {"memory_free": float(available)})


def available_on_host() -> int | None:
    """Bytes that programs can still have; None where nobody knows."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
