"""Intervals by hand and by simulation, and paired differences."""

import random
import subprocess
import sys
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgrpo.compare import Z, clustered_standard_error, interval, paired

RUNS = 4
SHARES = st.lists(st.integers(0, RUNS).map(lambda right: right / RUNS), min_size=1, max_size=30)


def test_one_run_of_many_problems_has_wilsons_interval() -> None:
    """8 of 10 once each: se^2 = .16 / 9, hence 9 trials; Wilson's bounds for p = .8, n = 9 by hand."""
    low, high = interval([1.0] * 8 + [0.0] * 2, runs=1)
    centre, half = (0.8 + Z**2 / 18) / (1 + Z**2 / 9), Z * sqrt(0.16 / 9 + Z**2 / 324) / (1 + Z**2 / 9)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert (low, high) == pytest.approx((0.4738, 0.9467), abs=1e-4)


def test_with_nothing_or_everything_right_each_problem_is_one_trial_however_many_runs() -> None:
    """Wilson at p = 1: n / (n + z^2)."""
    assert interval([1.0] * 30, runs=64) == pytest.approx((30 / (30 + Z**2), 1.0), abs=1e-12)
    assert interval([0.0] * 30, runs=64) == pytest.approx((0.0, Z**2 / (30 + Z**2)), abs=1e-12)


def test_with_many_problems_the_interval_is_two_standard_errors_wide() -> None:
    shares = [place % 6 / 5 for place in range(6000)]
    low, high = interval(shares, runs=5)
    error = clustered_standard_error(shares)
    assert (low, high) == pytest.approx((0.5 - Z * error, 0.5 + Z * error), abs=2e-5)


@given(SHARES)
def test_an_interval_holds_its_score_is_never_empty_and_stays_between_0_and_1(shares: list[float]) -> None:
    low, high = interval(shares, RUNS)
    mean = sum(shares) / len(shares)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    assert high - low > 0.01


@given(st.lists(st.tuples(st.integers(0, RUNS), st.integers(0, RUNS)), min_size=1, max_size=30))
def test_a_difference_is_turned_around_by_turning_the_pair_around(pairs: list[tuple[int, int]]) -> None:
    before, after = [old / RUNS for old, _ in pairs], [new / RUNS for _, new in pairs]
    forth, back = paired(before, after), paired(after, before)
    low, high = forth.interval
    assert -1 <= low <= forth.mean <= high <= 1
    assert high - low > 0.01
    assert (forth.mean, low, high) == pytest.approx((-back.mean, -back.interval[1], -back.interval[0]), abs=1e-12)
    assert (forth.won, forth.lost) == (back.lost, back.won)


def test_a_difference_by_hand() -> None:
    """Differences 1, -1/2, 0, 1/4: mean 3/16; with half a problem won and half a one lost, 6 problems, sum 3/4."""
    found = paired([0.0, 1.0, 0.5, 0.25], [1.0, 0.5, 0.5, 0.5])
    assert found.mean == pytest.approx(3 / 16, abs=1e-12)
    assert found.standard_error == pytest.approx(sqrt((1 + 1 / 4 + 1 / 16 - 4 * 9 / 256) / 3) / 2, abs=1e-12)
    half = Z * sqrt(((1 + 1 / 4 + 1 / 16 + 1) / 6 - (3 / 4 / 6) ** 2) / 6)
    assert found.interval == pytest.approx((0.125 - half, 0.125 + half), abs=1e-12)


def test_pairing_takes_out_what_makes_problems_hard() -> None:
    """Half the problems are hopeless; each of the others is right once more of ten. Unpaired, nothing is certain."""
    before, after = [0.0, 0.5] * 50, [0.0, 0.6] * 50
    found = paired(before, after)
    assert found.mean == pytest.approx(0.05)
    assert found.interval[0] > 0
    assert interval(before, 10)[1] > interval(after, 10)[0]


def test_a_flip_needs_a_majority_on_either_side() -> None:
    found = paired([0.25, 0.75, 0.5, 0.25, 0.0, 1.0], [0.75, 0.25, 1.0, 0.5, 0.0, 1.0])
    assert (found.won, found.lost) == ((0,), (1,))


@pytest.mark.parametrize(("problems", "runs", "right"), [(30, 1, 0.1), (30, 5, 0.03), (100, 5, 0.8), (30, 5, 0.5)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(problems: int, runs: int, right: float) -> None:
    """Problems whose chances differ (a beta distribution): an interval of 95 % misses in 1 to 9 % of the cases."""
    random.seed(0)
    covered = {"one": 0, "paired": 0}
    for _ in range(500):
        chances = [random.betavariate(right, 1 - right) for _ in range(problems)]
        first, second = ([sum(random.random() < c for _ in range(runs)) / runs for c in chances] for _ in range(2))
        low, high = interval(first, runs)
        covered["one"] += low <= right <= high
        low, high = paired(first, second).interval
        covered["paired"] += low <= 0 <= high
    assert 0.91 <= covered["one"] / 500 <= 0.99
    assert covered["paired"] / 500 >= 0.94


def test_comparing_needs_no_torch() -> None:
    code = "import sys, lgrpo.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_runs_that_agree_by_chance_are_no_more_trials_than_runs() -> None:
    # One problem in ten was right twice, the others once of twice: p (1 - p) / se^2 = .2475 / .0025 = 99 of 20 runs.
    low, high = interval([0.5] * 9 + [1.0], runs=2)
    assert (low, high) == pytest.approx((0.34209, 0.74180), abs=1e-5)  # Wilson's of 11 of 20
