"""Scores by hand: pass@k, the clustered standard error, lengths and invalid responses."""

import random
from collections import Counter
from collections.abc import Sequence
from math import prod, sqrt

import models
import pytest
import torch

from lgrpo.compare import clustered_standard_error, interval
from lgrpo.evaluate import Answered, answer, pass_at_k, summarise
from lgrpo.exam.samples import Outcome
from lgrpo.problems import Problem
from lgrpo.rollout import LATENT, Rollout
from lgrpo.verify.verifier import Verdict


def answered(problem: int, run: int, right: bool, tokens: list[int], valid: bool = True) -> Answered:
    empty = torch.zeros(len(tokens), 2)
    rollout = Rollout((1,), torch.tensor(tokens), empty.long(), empty, empty[:, 0], valid)
    return Answered(problem, run, rollout, "", right)


@pytest.mark.parametrize(
    ("samples", "correct", "k", "expected"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 0, 4, 0.0), (4, 1, 4, 1.0), (8, 3, 4, 1 - 5 / 70)],
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(
    samples: int, correct: int, k: int, expected: float
) -> None:
    assert pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-12)


def test_runs_of_one_problem_are_one_piece_of_evidence() -> None:
    """Four problems, right always, never, always, never: se = sqrt(1/3) / 2, however many runs."""
    assert clustered_standard_error([1.0, 0.0, 1.0, 0.0]) == pytest.approx(sqrt(1 / 3) / 2, abs=1e-12)
    score = summarise([answered(p, r, p % 2 == 0, [5]) for p in range(4) for r in range(10)])
    assert (score.problems, score.runs, score.pass_at_1) == (4, 10, 0.5)
    assert score.pass_at_1_se == pytest.approx(sqrt(1 / 3) / 2, abs=1e-12)


def test_lengths_are_means_over_valid_responses_with_latent_and_explicit_apart() -> None:
    score = summarise(
        [
            answered(0, 0, True, [LATENT, LATENT, 7, 8]),
            answered(1, 0, True, [LATENT, 7, 8, 9]),
            answered(2, 0, False, [LATENT] * 50, valid=False),
        ]
    )
    assert (score.latent_length, score.explicit_length, score.length) == (1.5, 2.5, 4.0)
    assert score.invalid == pytest.approx(1 / 3)


def test_pass_at_k_comes_from_the_explored_samples_only() -> None:
    score = summarise([answered(0, 0, True, [5])], [answered(0, r, r == 0, [5]) for r in range(4)])
    assert score.pass_at_1 == 1.0
    assert score.pass_at_k == {1: 0.25, 2: 0.5, 4: 1.0}


def test_the_interval_of_pass_at_k_is_clustered_by_problem() -> None:
    """Right 0, 1, 2 and 4 times of 4: pass@2 is 0, 1/2, 5/6 and 1; of 4 samples there are two sets apart."""
    score = summarise([], [answered(p, r, r < right, [5]) for p, right in enumerate([0, 1, 2, 4]) for r in range(4)])
    expected = {1: interval([0, 0.25, 0.5, 1], 4), 2: interval([0, 0.5, 5 / 6, 1], 2), 4: interval([0, 1, 1, 1], 1)}
    assert score.pass_at_k_interval == {k: pytest.approx(ends, abs=1e-12) for k, ends in expected.items()}
    assert score.as_json("x")["pass@k_interval"] == {str(k): pytest.approx(ends) for k, ends in expected.items()}


@pytest.mark.parametrize(("problems", "right"), [(30, 0.5), (30, 0.1), (100, 0.3)])
def test_intervals_of_pass_at_k_cover_the_truth_about_as_often_as_they_say(problems: int, right: float) -> None:
    """Chances by a beta distribution, so k answers are all wrong by a product of (b + i) / (1 + i)."""
    random.seed(0)
    ks, covered = (1, 2, 4, 8), Counter[int]()
    truth = {k: 1 - prod((1 - right + i) / (1 + i) for i in range(k)) for k in ks}
    for _ in range(300):
        chances = [random.betavariate(right, 1 - right) for _ in range(problems)]
        explored = [
            Outcome(place, run, random.random() < chance, True, 0, 0)
            for place, chance in enumerate(chances)
            for run in range(8)
        ]
        for k, (low, high) in summarise([], explored).pass_at_k_interval.items():
            covered[k] += low <= truth[k] <= high
    assert all(covered[k] / 300 >= 0.9 for k in ks), covered


def test_problems_count_alike_however_many_responses_they_have() -> None:
    uneven = [answered(0, run, run == 0, [5]) for run in range(4)] + [answered(1, run, True, [5]) for run in range(2)]
    score = summarise(uneven, uneven)
    assert score.pass_at_1 == (0.25 + 1.0) / 2
    assert score.pass_at_k == {1: (0.25 + 1.0) / 2, 2: (0.5 + 1.0) / 2}  # as many as each has


def test_a_score_without_any_valid_response_is_all_zeros_but_invalid() -> None:
    score = summarise([answered(0, 0, False, [LATENT], valid=False)])
    assert (score.pass_at_1, score.length, score.invalid) == (0.0, 0.0, 1.0)


def test_shares_are_by_problem_in_whatever_order_responses_came() -> None:
    score = summarise([answered(2, 0, True, [5]), answered(0, 0, False, [5]), answered(1, 1, True, [5]),
                       answered(0, 1, True, [5]), answered(1, 0, True, [5]), answered(2, 1, False, [5])])  # fmt: skip
    assert score.shares == (0.5, 1.0, 0.5)
    low, high = score.as_json("x")["pass@1_interval"]
    assert 0 < low < 2 / 3 < high < 1


def test_a_response_that_was_cut_off_is_wrong_whatever_it_says() -> None:
    """All answers are graded right; only those that ended by themselves count."""
    policy = models.policy("smollm")
    problems = [Problem(f"w{n} w{n + 1}", "1") for n in range(6)]

    class Generous:
        failures = 0

        def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
            return [1.0] * len(responses)

        def verdicts(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
            return [Verdict(1.0)] * len(responses)

    made = answer(
        policy, models.engine(policy, slots=4), problems, Generous(), runs=3, noise_scale=1.0, seed=0, temperature=0.6
    )
    assert {one.valid for one in made} == {True, False}
    assert [one.right for one in made] == [one.rollout.valid for one in made]
