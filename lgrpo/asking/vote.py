"""Several answers to one problem: which of them are the same, and where their chains part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lgrpo.asking.ask import Answer
from lgrpo.groups import Grader
from lgrpo.reading import Word

COMPARED = 16  # answers that others are compared with: the most frequent ones


@dataclass(frozen=True)
class Strand:
    """Samples whose chains have the same heaviest words, step by step."""

    samples: list[int]
    chain: list[list[Word]]  # the first one's


@dataclass(frozen=True)
class Bloc:
    """Samples with the same answer, written as the first one has it; None: no boxed answer."""

    answer: str | None
    samples: list[int]
    strands: list[Strand]  # the most frequent first


def count(answers: Sequence[Answer], grader: Grader) -> list[Bloc]:
    """The blocs, largest first, of equal ones the earlier first; samples without an answer last.

    Answers are the same where the verifier says so: 1/2 and 0.5 are one bloc.
    """
    by_text: dict[str | None, list[Answer]] = {}
    for answer in answers:
        by_text.setdefault(answer.boxed, []).append(answer)
    blocs: list[tuple[str | None, list[Answer]]] = []
    for text, group in sorted(by_text.items(), key=lambda item: -len(item[1])):
        compared = [text for text, _ in blocs[:COMPARED]] if text is not None else []
        place = next((at for at, other in enumerate(compared) if _same(grader, text, other)), None)
        if place is None:
            blocs.append((text, list(group)))
        else:
            blocs[place][1].extend(group)
    made = []
    for _, unordered in blocs:
        group = sorted(unordered, key=lambda answer: answer.sample)
        made.append(Bloc(group[0].boxed, [answer.sample for answer in group], strands(group)))
    return sorted(made, key=lambda bloc: (bloc.answer is None, -len(bloc.samples), bloc.samples[0]))


def _same(grader: Grader, text: str | None, other: str | None) -> bool:
    if text is None or other is None:
        return False
    return grader.grade([f"\\boxed{{{text}}}"], [other])[0] > 0


def strands(answers: Sequence[Answer]) -> list[Strand]:
    """The answers by their heaviest words, the most frequent first, of equal ones the earlier first."""
    by_words: dict[tuple[int, ...], Strand] = {}
    for answer in answers:
        strand = by_words.setdefault(heaviest(answer.chain), Strand([], answer.chain))
        strand.samples.append(answer.sample)
    return sorted(by_words.values(), key=lambda strand: (-len(strand.samples), strand.samples[0]))


def parting(chains: Sequence[Sequence[Sequence[Word]]]) -> int | None:
    """The first step, from 0, at which heaviest words differ, or a chain has ended and another has not; else None."""
    words = [heaviest(chain) for chain in chains]
    longest = max(map(len, words), default=0)
    return next((at for at in range(longest) if len({word[at : at + 1] for word in words}) > 1), None)


def heaviest(chain: Sequence[Sequence[Word]]) -> tuple[int, ...]:
    """The heaviest token of each step."""
    return tuple(step[0].token for step in chain)
