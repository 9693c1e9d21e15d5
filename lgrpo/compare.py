"""How sure a score is, and whether one is better than another (docs/method.md, 7). Knows no model, imports no torch.

A *share* is the part of a problem's runs that were right, in [0, 1]. Problems are the evidence: runs of one problem
depend on each other, so every error here is clustered by problem. Intervals are at 95 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

Z = 1.959963984540054  # two-sided 95 % of a standard normal


@dataclass(frozen=True)
class Difference:
    """What changed from one checkpoint to another on the same problems."""

    mean: float  # of the differences, after - before
    standard_error: float  # clustered by problem
    interval: tuple[float, float]  # 95 %, within [-1, 1], never empty
    won: tuple[int, ...]  # places of the problems most runs got wrong before and most get right after
    lost: tuple[int, ...]  # the reverse


def clustered_standard_error(shares: Sequence[float]) -> float:
    """Standard error of the mean over problems; runs of one problem are no independent evidence."""
    return stdev(shares) / sqrt(len(shares)) if len(shares) > 1 else 0.0


def interval(shares: Sequence[float], runs: int) -> tuple[float, float]:
    """95 % interval of the mean share: Wilson's, with as many trials as the clustered standard error says.

    With many problems it is mean +- 1.96 standard errors. It stays within [0, 1], and where everything was right, or
    nothing, each problem counts as one trial, so that it is not empty. The number of trials p (1 - p) / se^2 is the
    usual effective sample size of clustered data; it lies between one a problem and one a run.
    """
    count = len(shares)
    assert count, "no problem, no score"
    mean, error = fmean(shares), clustered_standard_error(shares)
    trials = float(count)
    if 0.0 < mean < 1.0 and count > 1:
        most = float(count * runs)
        trials = min(most, mean * (1 - mean) / error**2) if error > 0 else most
    middle = (mean + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * sqrt(mean * (1 - mean) / trials + Z**2 / (4 * trials**2))
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def paired(before: Sequence[float], after: Sequence[float]) -> Difference:
    """The difference of two scores on the same problems, in the same order: each problem is compared with itself.

    The interval is Agresti and Min's (2005) for matched proportions, carried over to shares: two problems are added, of
    which half a one was won and half a one lost, then mean +- 1.96 standard errors. With many problems these do not
    matter; with few, or where nothing changed, they keep the interval from being too short or empty.
    """
    assert len(before) == len(after), (len(before), len(after))
    assert before, "no problem, no difference"
    differences = [new - old for old, new in zip(before, after, strict=True)]
    count = len(differences) + 2
    middle = sum(differences) / count
    spread = (sum(difference**2 for difference in differences) + 1) / count - middle**2
    half = Z * sqrt(spread / count)
    return Difference(
        mean=fmean(differences),
        standard_error=clustered_standard_error(differences),
        interval=(max(-1.0, middle - half), min(1.0, middle + half)),
        won=tuple(place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old < 0.5 < new),
        lost=tuple(place for place, (old, new) in enumerate(zip(before, after, strict=True)) if new < 0.5 < old),
    )
