"""Sums in the same order each time: the same update twice is then the same to the bit, on a GPU too.

Many kernels of a GPU, and some of a CPU with several threads, add up in whatever order their threads come. PyTorch has
others that do not, for all that an update of a transformer does: among them attention's gradient, which repeats in the
strict form of its switch only, and cuBLAS' products, which repeat with work space of a given size.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

_deterministic: Any = torch.utils.deterministic
_REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation|not deterministic because it uses (CuBLAS)")
T = TypeVar("T")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # 32 MiB, as by itself on newer GPUs; read at first use


class Repeatable:
    """Runs work over and over; `on_refused(operation)` hears of the first that has no form that repeats."""

    def __init__(self, on_refused: Callable[[str], None]):
        self.on_refused, self.strict = on_refused, True

    def run(self, work: Callable[[], T], undo: Callable[[], None]) -> T:
        """`work()`, its sums in the same order each time; where that cannot be, once more after `undo()` as it can."""
        if self.strict:
            try:
                with repeating(strict=True):
                    return work()
            except RuntimeError as error:
                refused = _REFUSAL.search(str(error))
                if refused is None:
                    raise
            self.strict = False
            undo()
            self.on_refused(refused[1] or refused[2])
        with repeating(strict=False):
            return work()


@contextmanager
def repeating(strict: bool) -> Iterator[None]:
    """Inside, PyTorch takes the kernels that repeat, in the whole process; `strict`: RuntimeError where it has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _deterministic.fill_uninitialized_memory
    _deterministic.fill_uninitialized_memory = False  # it takes time, and nothing reads such memory
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*deterministic", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        _deterministic.fill_uninitialized_memory = filled
