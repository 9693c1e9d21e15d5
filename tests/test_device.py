"""What memory is left: by the machine, and by the control groups that a container's limit is made of."""

import os
from pathlib import Path

import pytest
import torch

from lgrpo.memory import device

MEMINFO = "MemTotal: 64000 kB\nMemFree: 1 kB\nMemAvailable: 40000 kB\n"
ONE = {  # version 1: the group within the container's
    "sys/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/memory/box/memory.limit_in_bytes": "8000000\n",
    "sys/memory/box/memory.usage_in_bytes": "5000000\n",
    "sys/memory/box/memory.stat": "inactive_file 7\ntotal_cache 9\ntotal_inactive_file 1000000\n",
    "sys/memory/box/run/memory.limit_in_bytes": "9223372036854771712\n",
}
TWO = {
    "sys/box/memory.max": "8000000\n",
    "sys/box/memory.current": "5000000\n",
    "sys/box/memory.stat": "anon 5\ninactive_file 1000000\nactive_file 3\n",
    "sys/box/run/memory.max": "max\n",
}
WITHIN = {name.replace("box/", ""): text for name, text in TWO.items() if "/run/" not in name}


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("", {}, 40_960_000),
        ("4:memory:/box/run\n1:cpu:/other\n0::/\n", ONE, 4_000_000),
        ("4:cpu,memory:/box\n", ONE, 4_000_000),
        ("4:cpu:/box\n", ONE, 40_960_000),
        ("0::/box/run\n", TWO, 4_000_000),
        ("0::/box/run\n", {**TWO, "sys/box/run/memory.max": "300\n", "sys/box/run/memory.current": "1\n"}, 299),
        ("0::/box/run\n", {**TWO, "sys/box/memory.current": "9500000\n"}, 0),
        ("0::/box/run\n", {**TWO, "sys/box/memory.max": "80000000000\n"}, 40_960_000),
        ("0::/box\n", {"sys/box/memory.max": "8000000\n"}, 8_000_000),  # a system that shows the limit alone
        ("0::/\n", WITHIN, 4_000_000),  # its own folder is the root of what it sees
        ("0::/box/run\n", WITHIN, 4_000_000),  # its own folder is not to be seen
        ("0::/../run\n", WITHIN, 4_000_000),
    ],
)
def test_what_is_left_is_the_least_of_all_that_limits_it(
    groups: str, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(device, "PROC", tmp_path / "proc")
    monkeypatch.setattr(device, "GROUPS", tmp_path / "sys")
    assert device.available_on_host() == left


def test_where_nobody_knows_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROC", tmp_path)
    assert device.available_on_host() is None
    assert device.now_on(torch.device("cpu")) == {}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what a process holds")
def test_what_this_process_holds_grows_with_what_it_takes() -> None:
    before = device.now_on(torch.device("cpu"))["memory_used"]
    taken = torch.ones(1 << 26, dtype=torch.uint8)
    after = device.now_on(torch.device("cpu"))["memory_used"]
    assert 0.9 * taken.numel() <= after - before <= 1.5 * taken.numel()
    assert after <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
