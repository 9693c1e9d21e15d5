"""Scores of a policy on a set of problems (docs/method.md, 7): Pass@1, pass@k, lengths, invalid share."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import fmean
from typing import NamedTuple, Protocol

from lgrpo import compare, noise
from lgrpo.engine import Engine
from lgrpo.groups import Grader
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout
from lgrpo.verify.verifier import Verdict

GRADED = 64  # answers graded together: enough to be quick, few enough that an interruption costs little
WAITED = 2.0  # seconds that the first of fewer waits at most

Check = Callable[[Sequence[str], Sequence[str]], Sequence[Verdict]]  # of responses and references


class Asked(NamedTuple):
    """One response to be made."""

    problem: int  # index
    run: int


class Graded(Protocol):
    """What a score needs of a response."""

    @property
    def problem(self) -> int: ...
    @property
    def run(self) -> int: ...
    @property
    def right(self) -> bool: ...
    @property
    def valid(self) -> bool: ...
    @property
    def latent_length(self) -> int: ...
    @property
    def explicit_length(self) -> int: ...
    @property
    def unchecked(self) -> str | None: ...


@dataclass(frozen=True)
class Answered:
    """One response of an evaluation."""

    problem: int  # index
    run: int
    rollout: Rollout
    text: str  # the hard tokens
    right: bool
    unchecked: str | None = None  # why the answer could not be checked

    @property
    def valid(self) -> bool:
        return self.rollout.valid

    @property
    def latent_length(self) -> int:
        return self.rollout.latent_length

    @property
    def explicit_length(self) -> int:
        return self.rollout.explicit_length


@dataclass(frozen=True)
class Score:
    """What `eval` prints. Lengths are means over valid responses, in positions."""

    problems: int
    runs: int
    pass_at_1: float  # noise off, mean over problems and runs
    pass_at_1_se: float  # clustered by problem
    latent_length: float
    explicit_length: float
    length: float
    invalid: float  # share of responses that reached the length limit
    pass_at_k: dict[int, float] = field(default_factory=dict)  # noise on, unbiased
    pass_at_k_interval: dict[int, tuple[float, float]] = field(default_factory=dict)  # 95 %, clustered by problem
    unchecked: Mapping[str, int] = field(default_factory=dict)  # why answers could not be checked, and how many
    shares: tuple[float, ...] = ()  # part of the runs that was right, of each problem: what `compare` compares

    def as_json(self, benchmark: str) -> dict[str, object]:
        """One entry of `results` in `lgrpo eval --json`."""
        return {
            "benchmark": benchmark,
            "problems": self.problems,
            "runs": self.runs,
            "pass@1": self.pass_at_1,
            "pass@1_se": self.pass_at_1_se,
            "pass@1_interval": list(compare.interval(self.shares, self.runs)) if self.shares else None,
            "pass@k": {str(k): value for k, value in self.pass_at_k.items()},
            "pass@k_interval": {str(k): list(ends) for k, ends in self.pass_at_k_interval.items()},
            "latent_length": self.latent_length,
            "explicit_length": self.explicit_length,
            "length": self.length,
            "invalid": self.invalid,
            "unchecked": sum(self.unchecked.values()),
        }


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate that at least one of k samples is right: 1 - C(n - c, k) / C(n, k). Needs k <= n."""
    assert 1 <= k <= samples
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def answer(
    policy: Policy,
    engine: Engine,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    runs: int,
    noise_scale: float,
    seed: int,
    temperature: float,
) -> list[Answered]:
    """Answer each problem `runs` times, ordered by problem, then run. noise_scale 0 leaves the chain deterministic."""
    asked = [Asked(problem, run) for problem in range(len(problems)) for run in range(runs)]
    out: list[Answered] = []
    answer_each(
        policy, engine, problems, asked, grader.verdicts, out.extend,
        noise_scale=noise_scale, seed=seed, temperature=temperature,
    )  # fmt: skip
    return sorted(out, key=lambda one: (one.problem, one.run))


def answer_each(
    policy: Policy,
    engine: Engine,
    problems: Sequence[Problem],
    asked: Sequence[Asked],
    check: Check,
    take: Callable[[Sequence[Answered]], None],
    *,
    noise_scale: float,
    seed: int,
    temperature: float,
) -> float:
    """Make the responses asked for, and hand each to `take` soon after it has ended and was graded, a few at a time.

    A response depends on policy, settings, seed, problem and run alone, so what is missing of an evaluation can be
    made at any time. Returns the seconds that the rollouts took, without grading and `take`.
    """
    seconds = 0.0
    step = 4 * engine.slots  # handed to the engine at a time: long enough for few slots to idle at the end
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        prompts = {place: policy.asked(problems[place].problem) for place, _ in part}
        requests = [
            Request(
                prompts[one.problem],
                noise.row_key(seed, problems[one.problem].key, one.run),
                policy.latent,
                noise_scale,
                temperature,
            )
            for one in part
        ]
        grading = _Grading(policy, problems, part, check, take)
        began = time.monotonic()
        engine.generate(requests, grading.add)
        seconds += time.monotonic() - began - grading.seconds
        grading.hand_on()
    return seconds


class _Grading:
    """Grades responses as they end."""

    def __init__(
        self,
        policy: Policy,
        problems: Sequence[Problem],
        asked: Sequence[Asked],
        check: Check,
        take: Callable[[Sequence[Answered]], None],
    ) -> None:
        self._policy, self._problems, self._asked, self._check, self._take = policy, problems, asked, check, take
        self._ended: list[tuple[Asked, Rollout]] = []
        self._first = 0.0  # when the first of these ended
        self.seconds = 0.0  # spent here

    def add(self, number: int, rollout: Rollout) -> None:
        if not self._ended:
            self._first = time.monotonic()
        self._ended.append((self._asked[number], rollout))
        if len(self._ended) >= GRADED or time.monotonic() - self._first > WAITED:
            self.hand_on()

    def hand_on(self) -> None:
        began = time.monotonic()
        ended, self._ended = self._ended, []
        texts = [self._policy.decode(rollout.hard_tokens) for _, rollout in ended]
        verdicts = self._check(texts, [self._problems[asked.problem].answer for asked, _ in ended])
        if ended:
            self._take(
                [
                    Answered(*asked, rollout, text, found.reward > 0 and rollout.valid, found.unchecked)
                    for (asked, rollout), text, found in zip(ended, texts, verdicts, strict=True)
                ]
            )
        self.seconds += time.monotonic() - began


def summarise(answered: Sequence[Graded], explored: Sequence[Graded] = ()) -> Score:
    """Score from noise-free responses and, for pass@k, from explored ones, each in any order."""
    by_problem = _by_problem(answered)
    shares = [fmean(right) for right in by_problem]
    estimates = _pass_at_k_by_problem(explored)
    most = max(estimates, default=0)
    valid = [one for one in answered if one.valid]
    latent, explicit = _mean(one.latent_length for one in valid), _mean(one.explicit_length for one in valid)
    return Score(
        problems=len(shares),
        runs=max((one.run for one in answered), default=-1) + 1,
        pass_at_1=_mean(shares),
        pass_at_1_se=compare.clustered_standard_error(shares),
        latent_length=latent,
        explicit_length=explicit,
        length=_mean(one.latent_length + one.explicit_length for one in valid),
        invalid=1 - len(valid) / max(len(answered), 1),
        pass_at_k={k: fmean(each) for k, each in estimates.items()},
        pass_at_k_interval={k: compare.interval(each, most // k) for k, each in estimates.items()},
        unchecked=Counter(one.unchecked for one in (*answered, *explored) if one.unchecked is not None),
        shares=tuple(shares),
    )


def _by_problem(answered: Sequence[Graded]) -> list[list[bool]]:
    """Which runs were right, of each problem in the order of the problems."""
    found: dict[int, list[bool]] = {}
    for one in answered:
        found.setdefault(one.problem, []).append(one.right)
    return [found[problem] for problem in sorted(found)]


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return fmean(kept) if kept else 0.0


def _pass_at_k_by_problem(explored: Sequence[Graded]) -> dict[int, list[float]]:
    """The estimate of each problem, for k = 1, 2, 4, ... up to the number of samples."""
    by_problem = _by_problem(explored)
    samples = min(map(len, by_problem), default=0)
    ks = [1 << power for power in range(samples.bit_length())]
    return {k: [pass_at_k(len(right), sum(right), k) for right in by_problem] for k in ks}
