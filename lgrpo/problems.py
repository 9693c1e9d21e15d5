"""Problems: the record every part of lgrpo shares, and what is done with a list of them. Reading them: lgrpo.data."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lgrpo.errors import UserError

_TWO = r"[^\W\d_]{2}"  # letters of a word: one alone may be a variable
_LAYOUT = re.compile(  # these signs, where
    r"""[$\\_"?;…— .,:!'-](?:(?<=[$\\_"?;…—])"""
    r"|(?<= )(?!\d)|(?<=\D )"  # 1 2/3 is not 12/3
    r"|(?<=[.,:])(?! ?\d)|(?<=\D[.,:])(?!\d)"  # (1, 2) is not (12)
    r"|(?<=\d,)(?=\d{3}(?!\d))"  # 1,000
    rf"|(?<={_TWO}!)|(?<= !)"  # 5! and n! are factorials
    rf"|(?<={_TWO}-)(?={_TWO})"  # twenty-five, but a-b and x - 1
    rf"|(?<=[^\W\d_]')(?=[^\W\d_])|(?<={_TWO}')|(?<=\W')(?=\w)|(?<=^')"  # Ann's, dogs', 'so', but f'(x)
    r")"
)
_ALIKE = str.maketrans({"‐": "-", "‑": "-", "–": "-", "−": "-", "‘": "'", "’": "'", **dict.fromkeys("“”„«»", '"')})


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

    The choice is by a hash of seed, letters and digits, so it depends neither on the order nor on what else is in the
    data. Copies of a held-out problem are in neither list: what is held out is seen once and never trained on.
    """
    keys = [_digest(problem) for problem in problems]  # a million texts would be a second copy of the data
    groups: dict[bytes, int] = {}  # digest of the normalised text -> place of its first copy
    for place, key in enumerate(keys):
        groups.setdefault(key, place)
    if not 0 < count < len(groups):
        raise UserError(f"{count} of {len(groups)} different problems cannot be held out; give more problems")

    def rank(key: bytes) -> tuple[int, str]:
        text = problems[groups[key]].problem
        signs = "".join(filter(str.isalnum, text.lower())) or text  # as ever: a run that goes on holds out the same
        return _hash(f"{seed} {signs}"), normalised(text)

    chosen = set(heapq.nsmallest(count, groups, rank))
    train = [problem for problem, key in zip(problems, keys, strict=True) if key not in chosen]
    return train, [problems[place] for key, place in groups.items() if key in chosen]


def overlap(a: Iterable[Problem], b: Iterable[Problem]) -> int:
    """How many different problems are in both, by normalised text."""
    return len(set(map(_digest, a)) & set(map(_digest, b)))


def copies(problems: Sequence[Problem]) -> tuple[int, int]:
    """(how many problems are copies of one before them, how many problems have copies with another answer)."""
    first: dict[bytes, int] = {}  # digest of the text -> hash of its first copy's answer
    torn = set()
    for one in problems:
        key, answer = _digest(one), _hash(one.answer)
        if first.setdefault(key, answer) != answer:
            torn.add(key)
    return len(problems) - len(first), len(torn)


def normalised(text: str) -> str:
    """Without case, layout and the punctuation of sentences; the text itself where it is nothing else.

    What may decide a problem stays: operators, relations, brackets, and points, commas, colons and gaps in numbers.
    """
    plain = text.lower() if text.isascii() else text.lower().translate(_ALIKE)
    return _LAYOUT.sub("", " ".join(plain.replace("`", '"').split())) or text


def text_hash(problem: Problem) -> int:
    """64 bits, signed, that stand for the normalised text."""
    return int.from_bytes(_digest(problem)[:8], "big", signed=True)


def _digest(problem: Problem) -> bytes:
    """16 bytes that stand for the normalised text."""
    return hashlib.blake2b(_bytes(normalised(problem.problem)), digest_size=16).digest()


def _hash(text: str) -> int:
    """64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(_bytes(text), digest_size=8).digest(), "big")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
