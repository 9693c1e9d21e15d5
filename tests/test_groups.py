"""Drawing groups until a batch has signal: what is asked for, with which draws, and when it is enough."""

from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch

from lgrpo import noise
from lgrpo.groups import Sampler
from lgrpo.plan import Setting, train_settings
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout

PROBLEMS = [Problem(f"{number} + 1?", str(number + 1)) for number in range(5)]


class Engine:
    """Answers every request alike, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], done: Callable[[int, Rollout], None]) -> list[Rollout]:
        self.asked.append(list(requests))
        empty, tokens = torch.zeros(1, 2), torch.tensor([5])
        return [Rollout(one.prompt, tokens, empty.long(), empty, empty[0, :1], valid=True) for one in requests]


class Grader:
    """Of each group the first is right where its turn says so."""

    failures = 0

    def __init__(self, signal: Sequence[bool], group: int):
        self.turns, self.group = iter(signal), group

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        rewards: list[float] = []
        for _ in range(len(responses) // self.group):
            rewards += [float(next(self.turns)), *[0.0] * (self.group - 1)]
        return rewards


def sampler(signal: Sequence[bool], **changes: Any) -> tuple[Sampler, Engine]:
    settings, _ = train_settings(Setting("recipe", "tiny", ""), k=2, **{"group": 2, "update_batch": 1, **changes})
    engine = Engine()
    grader: Any = Grader(signal, settings.group)
    return Sampler(models.policy("llama", torch.float32), engine, PROBLEMS, grader, settings), engine  # type: ignore[arg-type]


def test_each_rollout_of_a_problem_draws_anew_in_each_epoch() -> None:
    """Sample s of epoch e is number e * G + s of its problem: none twice, however often the data is gone through."""
    drawing, engine = sampler([True] * 20, batch=5, seed=7)
    drawing.collect(0)
    drawing.collect(5)
    for epoch, requests in enumerate(engine.asked):
        expected = [noise.row_key(7, one.key, 2 * epoch + sample) for one in PROBLEMS for sample in range(2)]
        assert sorted(one.key for one in requests) == sorted(expected)


@pytest.mark.parametrize(
    ("signal", "draws", "sizes", "kept"),
    [
        ("1111", 9, [4], 4),  # enough at once: nothing more is drawn
        ("1010 111", 9, [4, 4], 4),  # half have signal: for the two that are missing four are drawn; the surplus goes
        ("1000 100 0110", 3, [4, 4, 4], 4),  # never more than a batch at a time
        ("0000 0001 0000", 3, [4, 4, 4], 1),  # draws are over
        ("1110 1", 9, [4, 1], 4),
    ],
)
def test_groups_are_drawn_until_enough_have_signal(signal: str, draws: int, sizes: list[int], kept: int) -> None:
    turns = [turn == "1" for turn in signal.replace(" ", "")] + [True] * 20
    drawing, engine = sampler(turns, batch=4, draws=draws)
    drawn = drawing.collect(3)
    assert [len(requests) // 2 for requests in engine.asked] == sizes
    assert drawn.cursor == 3 + sum(sizes)
    assert len(drawn.seen) == sum(sizes)
    with_signal = [group for group in drawn.seen if group.rewards == [1.0, 0.0]]
    assert len(drawn.kept) == kept
    assert all(one is other for one, other in zip(drawn.kept, with_signal, strict=False))
    assert min(drawn.rollout_s, drawn.verify_s) >= 0
