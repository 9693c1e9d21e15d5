"""What every test shares: no network, one thread, a fixed seed."""

import os

# Before torch or transformers is imported anywhere: a test that reaches for the hub fails at once, the same everywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
import sys

import pytest

from lgrpo.report import pictures

# A shell's background job ignores Ctrl-C, and Python then leaves it so: here it is what it is on a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers for a test alone as in the whole suite. Costs nothing where torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run ends with a report, whose curves take seconds to draw: only tests marked `draws` look at them."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(pictures, "svg", lambda history: "<svg></svg>")
        monkeypatch.setattr(pictures, "png", lambda history: b"")


@pytest.fixture(autouse=True)
def _hardly_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run begins with an estimate of its time, for which work is timed until it is enough: here the least is."""
    if estimate := sys.modules.get("lgrpo.estimate"):
        monkeypatch.setattr(estimate, "ENOUGH", 0.0)
