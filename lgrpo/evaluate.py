"""Scores of a policy on a set of problems (docs/method.md, 7): Pass@1, pass@k, lengths, invalid share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import fmean

from lgrpo import noise
from lgrpo.compare import clustered_standard_error
from lgrpo.engine import Engine
from lgrpo.groups import Grader
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout


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

    def as_json(self, benchmark: str) -> dict[str, object]:
        """One entry of `results` in `lgrpo eval --json`."""
        return {
            "benchmark": benchmark,
            "problems": self.problems,
            "runs": self.runs,
            "pass@1": self.pass_at_1,
            "pass@1_se": self.pass_at_1_se,
            "pass@k": {str(k): value for k, value in self.pass_at_k.items()},
            "latent_length": self.latent_length,
            "explicit_length": self.explicit_length,
            "length": self.length,
            "invalid": self.invalid,
        }


@dataclass(frozen=True)
class Answered:
    """One response of an evaluation."""

    problem: int  # index
    run: int
    rollout: Rollout
    text: str  # the hard tokens
    right: bool


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
    on_finish: Callable[[int, bool], None] | None = None,
) -> list[Answered]:
    """Answer each problem `runs` times, ordered by problem, then run.

    noise_scale 0 leaves the chain deterministic. `on_finish(done, right)` is called after each problem's worth
    of work is graded.
    """
    out: list[Answered] = []
    step = max(1, 4 * engine.slots // runs)  # problems handed to the engine at a time
    for start in range(0, len(problems), step):
        part = problems[start : start + step]
        requests = []
        for problem in part:
            prompt = tuple(policy.prompt_ids(problem.problem, latent=policy.latent))
            requests += [
                Request(prompt, noise.row_key(seed, problem.key, run), policy.latent, noise_scale, temperature)
                for run in range(runs)
            ]
        rollouts = engine.generate(requests)
        texts = [policy.decode(rollout.hard_tokens) for rollout in rollouts]
        rewards = grader.grade(texts, [problem.answer for problem in part for _ in range(runs)])
        for number, (rollout, text, reward) in enumerate(zip(rollouts, texts, rewards, strict=True)):
            right = reward > 0 and rollout.valid
            out.append(Answered(start + number // runs, number % runs, rollout, text, right))
        if on_finish:
            on_finish(start + len(part), out[-1].right)
    return out


def summarise(answered: Sequence[Answered], explored: Sequence[Answered] = ()) -> Score:
    """Score from noise-free responses and, for pass@k, from explored ones."""
    by_problem: dict[int, list[bool]] = {}
    for one in answered:
        by_problem.setdefault(one.problem, []).append(one.right)
    rates = [fmean(right) for right in by_problem.values()]
    valid = [one.rollout for one in answered if one.rollout.valid]
    return Score(
        problems=len(by_problem),
        runs=max((one.run for one in answered), default=-1) + 1,
        pass_at_1=fmean(rates) if rates else 0.0,
        pass_at_1_se=clustered_standard_error(rates),
        latent_length=fmean([r.latent_length for r in valid]) if valid else 0.0,
        explicit_length=fmean([r.explicit_length for r in valid]) if valid else 0.0,
        length=fmean([r.length for r in valid]) if valid else 0.0,
        invalid=1 - len(valid) / max(len(answered), 1),
        pass_at_k=_all_pass_at_k(explored),
    )


def _all_pass_at_k(explored: Sequence[Answered]) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, ... up to the number of samples."""
    by_problem: dict[int, list[bool]] = {}
    for one in explored:
        by_problem.setdefault(one.problem, []).append(one.right)
    if not by_problem:
        return {}
    samples = min(len(right) for right in by_problem.values())
    ks = [1 << power for power in range(samples.bit_length())]
    return {k: fmean(pass_at_k(len(right), sum(right), k) for right in by_problem.values()) for k in ks}
