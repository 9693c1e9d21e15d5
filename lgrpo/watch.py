"""What is kept and shown of a run while it goes on: in its files, on the screen, and whether its numbers are well."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lgrpo import health, reading
from lgrpo.evaluate import Answered, Score
from lgrpo.history import History
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.runs import Run
from lgrpo.screen import Show

SAMPLES = 6  # held-out problems whose chains are kept with each score, always the same ones
SAMPLE_STEPS = 60  # latent steps of them that are kept
REPORT_EVERY = 300.0  # seconds between two reports of a run that goes on: one takes two or three


class Watch:
    """One for a run; `run` is None where nothing is kept."""

    def __init__(self, run: Run | None, show: Show) -> None:
        self.run, self.show = run, show
        self.history = History()
        self._offset = 0
        self._reported = float("-inf")
        self._troubles: Sequence[health.Trouble] = ()

    def stage(self, title: str, total: int, done: int = 0, offset: int = 0) -> None:
        """Begin a stage, of which `done` steps are behind; `offset` steps of other stages are before it.

        metrics.jsonl counts the steps of all stages, everything else those of the stage.
        """
        self._offset, self.history = offset, History()
        if self.run is not None and done:
            whole = History.read(self.run.folder)
            steps: list[Mapping[str, Any]] = [{**one, "step": one["step"] - offset} for one in whole.steps]
            self.history = replace(whole, steps=[one for one in steps if one["step"] > 0]).until(done)
        self.show.stage(title, total, done, self.history)

    def step(self, step: int, numbers: Mapping[str, Any], **facts: Any) -> None:
        """`step` of the stage is behind. `facts` go to the file alone."""
        if self.run is not None:
            self.run.log(self._offset + step, **facts, **numbers)
        self.history.add({"step": step, **numbers})
        self.show.step(step, numbers)
        self._look()

    def score(self, step: int, score: Score, policy: Policy, answered: Sequence[Answered], problems: Sequence[Problem],
              tau: float) -> None:  # fmt: skip
        """A score on the held-out `problems`, and what was answered."""
        facts = {"step": step, **score.as_json("held-out")}
        if self.run is not None:
            samples = [_sample(policy, one, problems[one.problem], tau) for one in answered[:SAMPLES]]
            self.run.event("held_out", **facts, shares=score.shares, samples=samples)
        self.history.scores.append(facts)
        self.show.score(facts)
        self._look()

    def report(self, every: float = 0.0) -> None:
        """The run's report as of now, where the last one is `every` seconds old; a run goes on without one.

        Save before: whatever goes wrong in drawing must not cost a checkpoint.
        """
        if self.run is None or time.monotonic() < self._reported + every:
            return
        from lgrpo.report import write_report  # matplotlib: slow to import, and not needed before the first score

        self.show.phase("writing the report")
        try:
            write_report(self.run.folder)
        except Exception as error:  # disk, settings of the drawing library, a damaged file: none is worth a run
            self.show.warn(f"the report could not be written ({type(error).__name__}: {error}); the run goes on")
        self.show.phase("")
        self._reported = time.monotonic()

    def _look(self) -> None:
        """Troubles to the screen, and each once to the run's events."""
        before, now = {trouble.name for trouble in self._troubles}, health.troubles(self.history)
        step = self.history.steps[-1]["step"] if self.history.steps else 0
        for trouble in now:
            if self.run is not None and trouble.name not in before:
                self.run.event("health", step=step, name=trouble.name, what=trouble.what, helps=trouble.help)
        self._troubles = now
        self.show.health(now)


def _sample(policy: Policy, one: Answered, problem: Problem, tau: float) -> dict[str, Any]:
    """A response with its chain in words, heaviest first: [[[word, weight], ...], ...]."""
    return {
        "problem": problem.problem,
        "reference": problem.answer,
        "chain": reading.heaviest(policy, one.rollout, tau, {})[:SAMPLE_STEPS],
        "latent_length": one.rollout.latent_length,
        "answer": reading.answer_text(policy, one.rollout),
        "right": one.right,
        "unchecked": one.unchecked,
    }
