"""Drawing groups of rollouts that teach something (docs/method.md, 4, dynamic sampling)."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lgrpo import noise, objective
from lgrpo.engine import Engine
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout
from lgrpo.verify.verifier import Verdict


class Grader(Protocol):
    """Anything that scores responses: `verify.Verifier`."""

    @property
    def failures(self) -> int:
        """Answers that could not be checked so far."""

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        """One reward a response, 1.0 where its boxed answer is equivalent to the reference."""

    def verdicts(self, responses: Sequence[str], references: Sequence[str]) -> Sequence[Verdict]:
        """The same, and why each could not be checked where it could not."""


@dataclass(frozen=True)
class Group:
    """One problem and its G rollouts."""

    problem: Problem
    rollouts: list[Rollout]
    rewards: list[float]  # 1.0 right, 0.0 wrong
    texts: Sequence[str] = ()  # the hard tokens of each rollout, decoded

    def has_signal(self, settings: TrainSettings) -> bool:
        """Rewards differ, and masking leaves some rollout an advantage."""
        return min(self.rewards) != max(self.rewards) and bool(advantages_of([self], settings).any())


@dataclass(frozen=True)
class Drawn:
    """What one search for a batch brought."""

    kept: list[Group]  # with signal, at most `batch`
    seen: list[Group]  # all that were rolled out
    cursor: int  # prompts drawn in the whole run, after this
    rollout_s: float = 0.0  # seconds of rolling out, and of checking answers
    verify_s: float = 0.0
    unchecked: int = 0  # answers that could not be checked


def advantages_of(groups: Sequence[Group], settings: TrainSettings) -> Tensor:
    """Advantages [N] of all rollouts of all groups, in order (docs/method.md, 4)."""
    rewards = torch.tensor([reward for group in groups for reward in group.rewards])
    valid = torch.tensor([rollout.valid or not settings.mask_invalid for g in groups for rollout in g.rollouts])
    return objective.group_advantages(rewards, valid, group_numbers(groups), settings.keep_invalid_in_statistics)


def group_numbers(groups: Sequence[Group]) -> Tensor:
    """Which group each rollout is of: int64 [N]."""
    return torch.tensor([number for number, group in enumerate(groups) for _ in group.rollouts])


class Sampler:
    """Rolls out problems in a seeded order. A draw depends on (seed, cursor) alone."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        problems: Sequence[Problem],
        grader: Grader,
        settings: TrainSettings,
        phase: Callable[[str], None] = lambda text: None,
    ):
        """`phase` hears what is being done, often."""
        self.policy, self.engine, self.problems = policy, engine, problems
        self.grader, self.settings, self.phase = grader, settings, phase
        self._rollout_s = self._verify_s = 0.0

    def collect(self, cursor: int) -> Drawn:
        """Draw groups from `cursor` on until `batch` have signal or `draws` draws were made, each of a batch at most.

        The size of each further draw follows from how many groups had signal so far.
        """
        wanted = self.settings.batch
        self._rollout_s = self._verify_s = 0.0
        failures = self.grader.failures
        kept: list[Group] = []
        seen: list[Group] = []
        for _ in range(self.settings.draws):
            missing = wanted - len(kept)
            rate = len(kept) / len(seen) if seen else 1.0
            size = min(wanted, max(1, round(missing / max(rate, 0.1))))
            groups = self._roll_out(cursor, size)
            cursor += size
            seen += groups
            kept += [group for group in groups if group.has_signal(self.settings)]
            if len(kept) >= wanted:
                break
        return Drawn(kept[:wanted], seen, cursor, self._rollout_s, self._verify_s, self.grader.failures - failures)

    def _roll_out(self, cursor: int, count: int) -> list[Group]:
        settings = self.settings
        places = [self._place(number) for number in range(cursor, cursor + count)]
        requests = []
        for epoch, index in places:
            problem = self.problems[index]
            prompt = tuple(self.policy.prompt_ids(problem.problem, latent=not settings.explicit))
            for sample in range(settings.group):
                key = noise.row_key(settings.seed, problem.key, epoch * settings.group + sample)
                requests.append(Request(prompt, key, not settings.explicit, settings.noise_scale, settings.temperature))
        began, done = time.monotonic(), itertools.count(1)

        def finished(number: int, rollout: Rollout) -> None:
            self.phase(f"rolling out {next(done)}/{len(requests)}")

        rollouts = self.engine.generate(requests, finished)
        self._rollout_s += (ended := time.monotonic()) - began
        self.phase("checking answers")
        texts = [self.policy.decode(rollout.hard_tokens) for rollout in rollouts]
        chosen = [self.problems[index] for _, index in places]
        references = [problem.answer for problem in chosen for _ in range(settings.group)]
        rewards = self.grader.grade(texts, references)
        self._verify_s += time.monotonic() - ended
        size = settings.group
        return [
            Group(problem, rollouts[at : at + size], rewards[at : at + size], texts[at : at + size])
            for problem, at in zip(chosen, range(0, len(rollouts), size), strict=True)
        ]

    def _place(self, number: int) -> tuple[int, int]:
        """Epoch and problem of the run's n-th draw: each epoch visits all problems in an order of its own."""
        epoch, place = divmod(number, len(self.problems))
        if self._order_of != epoch:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self.problems), generator=generator).tolist()
            self._order_of = epoch
        return epoch, self._order[place]

    _order_of = -1
    _order: list[int] = []  # noqa: RUF012 - replaced, never changed in place
