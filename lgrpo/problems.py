"""Problems: the record every part of lgrpo shares."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem: its text, its reference answer (no box around it), and its chain of thought where one is known."""

    problem: str
    answer: str
    cot: str | None = None

    @property
    def key(self) -> int:
        """A stable 63-bit hash of the problem's text: seeds that do not depend on a problem's place in a file."""
        return int.from_bytes(hashlib.blake2b(self.problem.encode(), digest_size=8).digest(), "big") >> 1
