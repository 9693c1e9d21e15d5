"""Which answers are the same, and where chains part."""

from collections.abc import Sequence

import torch

from lgrpo.asking.ask import Answer
from lgrpo.asking.vote import count, parting
from lgrpo.problems import Problem
from lgrpo.reading import Word
from lgrpo.rollout import Rollout
from lgrpo.verify import Verifier

NOTHING = Rollout((), torch.zeros(0).long(), torch.zeros(0, 2).long(), torch.zeros(0, 2), torch.zeros(0), valid=True)


def chain(words: str) -> list[list[Word]]:
    return [[Word(ord(word), word, 0.7), Word(0, "?", 0.3)] for word in words]


def answers(*given: tuple[str, str]) -> list[Answer]:
    return [Answer(Problem("?", ""), n, NOTHING, chain(words), text) for n, (words, text) in enumerate(given)]


def box(text: str) -> str:
    return f"so \\boxed{{{text}}}"


def test_the_largest_bloc_comes_first_and_those_without_an_answer_last() -> None:
    with Verifier() as grader:
        blocs = count(
            answers(
                ("ab", "no idea"),
                ("ab", box("0.5")),
                ("ac", box("3")),
                ("ab", box("\\frac{1}{2}")),
                ("ac", box("1/2")),
                ("ab", "none"),
                ("x", "nothing"),
                ("ab", box("3.0")),
            ),
            grader,
        )
    assert [(bloc.answer, bloc.samples) for bloc in blocs] == [
        ("0.5", [1, 3, 4]),
        ("3", [2, 7]),
        (None, [0, 5, 6]),
    ]
    assert [strand.samples for strand in blocs[0].strands] == [[1, 3], [4]]
    assert [strand.samples for strand in blocs[1].strands] == [[2], [7]]
    assert [strand.samples for strand in blocs[2].strands] == [[0, 5], [6]]


class Slow:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        self.asked += len(responses)
        return [0.0] * len(responses)


def test_a_thousand_different_answers_are_not_all_compared_with_each_other() -> None:
    grader = Slow()
    blocs = count(answers(*[("a", box(str(n))) for n in range(1000)]), grader)
    assert len(blocs) == 1000
    assert grader.asked < 16 * 1000


def test_chains_part_where_heaviest_words_differ_or_one_of_them_ends() -> None:
    assert parting([chain("abc"), chain("abc")]) is None
    assert parting([chain("abc"), chain("abd"), chain("abc")]) == 2
    assert parting([chain("abc"), chain("ab")]) == 2
    assert parting([chain("abc"), chain("xbc")]) == 0
    assert parting([[], []]) is None
    assert parting([]) is None
