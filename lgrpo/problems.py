"""Problems: the record every part of lgrpo shares, and what is done with a list of them. Reading them: lgrpo.data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lgrpo.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One problem: its text, its reference answer (no box around it), and its chain of thought where one is known."""

    problem: str
    answer: str
    cot: str | None = None

    @property
    def key(self) -> int:
        """A stable 63-bit hash of the problem's text: seeds that do not depend on a problem's place in a file."""
        return _hash(self.problem) >> 1


def hold_out(problems: Sequence[Problem], count: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(training problems, `count` held-out ones), both in their first order.

    The choice is by a hash of seed and normalised text, so it depends neither on the order nor on what else is in the
    data. Copies of a held-out problem are in neither list: what is held out is seen once and never trained on.
    """
    groups: dict[str, int] = {}  # normalised text -> place of its first copy
    texts = [normalised(problem.problem) for problem in problems]
    for place, text in enumerate(texts):
        groups.setdefault(text, place)
    if not 0 < count < len(groups):
        raise UserError(f"{count} of {len(groups)} different problems cannot be held out; give more problems")
    chosen = set(sorted(groups, key=lambda text: (_hash(f"{seed} {text}"), text))[:count])
    train = [problem for problem, text in zip(problems, texts, strict=True) if text not in chosen]
    return train, [problems[place] for text, place in groups.items() if text in chosen]


def overlap(a: Iterable[Problem], b: Iterable[Problem]) -> int:
    """How many different problems are in both, by normalised text."""
    return len({normalised(problem.problem) for problem in a} & {normalised(problem.problem) for problem in b})


def normalised(text: str) -> str:
    """Letters and digits in lower case; the text itself where it has neither."""
    return "".join(filter(str.isalnum, text.lower())) or text


def _hash(text: str) -> int:
    """64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
