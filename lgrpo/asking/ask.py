"""How a policy that is only asked, by `sample` or `eval`, is taken: as it was trained, latent or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lgrpo import context, noise, plan, reading, session
from lgrpo.engine import Engine
from lgrpo.plan import TrainSettings
from lgrpo.policy import CARD, Card, Policy
from lgrpo.problems import Problem
from lgrpo.reading import Unfolding, Word
from lgrpo.rollout import Part, Request, Rollout
from lgrpo.text import whole_characters
from lgrpo.verify import boxed


def recognised(policy: Policy, name: str, problems: Sequence[Problem], settings: TrainSettings) -> Card:
    """The policy's card; a latent one where the checkpoint has none and turns out to have a latent chain."""
    if policy.latent:
        return policy.card
    source = None if session.is_tiny(name) else session.find(name)
    if not session.has_latent_chain(policy, source, problems, settings):
        return policy.card
    session.on_stderr(f"{name} has no {CARD}, but answers after a latent chain: it is asked for one")
    return replace(policy.card, mode="latent")


def engine_settings(policy: Policy, max_response: int | None, report: Callable[[str], None]) -> TrainSettings:
    """Rollout settings of a policy that is only asked: those it was trained under, else the recipe's.

    `report` hears where the model has too few positions for them. Raises UserError where `max_response` is too long.
    """
    chosen = plan.choose_recipe(policy.card.recipe, None, policy.parameters)
    kept: dict[str, Any] = {name: value for name, value in policy.card.rollout.items() if name in plan.ROLLOUT}
    if max_response is not None:
        kept["max_response"] = max_response
    settings, rows = plan.train_settings(chosen, k=policy.card.k, explicit=not policy.latent, **kept)
    return context.settle_asked(policy, settings, rows, max_response is not None, report)


def question(text: str) -> Problem:
    """What somebody typed, as a problem without an answer: without the halves of characters no tokenizer takes."""
    return Problem(whole_characters(text).strip(), "")


@dataclass(frozen=True)
class Wish:
    """What answers are wanted."""

    samples: int = 1
    explore: float | bool = False  # noise on the chain: as in training, or its scale
    temperature: float | None = None  # of the answer's tokens; None: as it was trained
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One answer. Times are in seconds since the problem was asked, None where many were asked together."""

    problem: Problem
    sample: int  # 0, 1, ...
    rollout: Rollout
    chain: list[list[Word]]
    text: str
    seconds: float | None = None
    first: float | None = None  # the first token of the answer; None where there is none

    @cached_property
    def boxed(self) -> str | None:
        return boxed(self.text)

    @property
    def trouble(self) -> str | None:
        """Why the answer is not whole, for people."""
        if self.rollout.broken:
            return f"stopped after {self.rollout.length} positions: the model's logits are no numbers"
        if not self.rollout.valid:
            return f"cut off after {self.rollout.length} positions; --max-response allows more"
        return None


class Asker:
    """A model that is there to be asked, as it was trained. `name` is what the user calls it."""

    def __init__(
        self, model: str | None, device: str | None, max_response: int | None, report: Callable[[str], None]
    ) -> None:
        """`report` hears, in a line, of memory that runs out. Raises UserError where the model cannot be had."""
        where = session.pick_device(device)
        self.name = model or str(session.newest())
        self.policy = session.load(self.name, where.value)
        self.settings = settings = engine_settings(self.policy, max_response, report)
        self.engine = Engine(
            self.policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots, report
        )
        self._met = False

    def meet(self, rows: Sequence[tuple[str, Problem]]) -> None:
        """Before problems are asked: find out, once, whether a foreign model has a latent chain, and if they fit.

        rows: (what a person calls it, the problem). Raises UserError where one leaves the model no room for a response.
        """
        if not self._met:
            self.policy.card = recognised(self.policy, self.name, [one for _, one in rows], self.settings)
            self._met = True
        context.check_room(self.policy, rows, self.settings.max_response)

    def noise_scale(self, wish: Wish) -> float:
        return self.settings.noise_scale if wish.explore is True else float(wish.explore)

    def temperature(self, wish: Wish) -> float:
        return self.settings.temperature if wish.temperature is None else wish.temperature

    def requests(self, problem: Problem, wish: Wish) -> list[Request]:
        """One a sample. A draw depends on seed, problem and sample, and on nothing else that is asked."""
        prompt = self.policy.asked(problem.problem)
        how = self.policy.latent, self.noise_scale(wish), self.temperature(wish)
        return [Request(prompt, noise.row_key(wish.seed, problem.key, n), *how) for n in range(wish.samples)]

    def answer(self, problem: Problem, sample: int, rollout: Rollout) -> Answer:
        chain = reading.latent_steps(self.policy, rollout, self.settings.tau)
        return Answer(problem, sample, rollout, chain, reading.answer_text(self.policy, rollout))

    def ask(
        self,
        problem: Problem,
        wish: Wish,
        on_steps: Callable[[int, Part, Unfolding], None] = lambda sample, part, text: None,
        on_end: Callable[[Answer], None] = lambda answer: None,
    ) -> list[Answer]:
        """All answers to one problem, by sample.

        `on_steps(sample, part, text)` hears of the positions of each as they come, `on_end` of each answer as it ends.
        Raises UserError where the problem leaves the model no room for them.
        """
        self.meet([("the problem", problem)])
        texts = [Unfolding(self.policy) for _ in range(wish.samples)]
        first: dict[int, float] = {}
        answers: dict[int, Answer] = {}
        began = time.perf_counter()

        def hear(sample: int, part: Part) -> None:
            text = texts[sample]
            text.add(part.tokens)
            if text.begun:
                first.setdefault(sample, time.perf_counter() - began)
            on_steps(sample, part, text)

        def end(sample: int, rollout: Rollout) -> None:
            took = time.perf_counter() - began
            answer = self.answer(problem, sample, rollout)
            answers[sample] = replace(answer, seconds=took, first=first.get(sample))
            on_end(answers[sample])

        self.engine.generate(self.requests(problem, wish), end, hear)
        return [answers[sample] for sample in range(wish.samples)]

    def as_json(self, answer: Answer, wish: Wish, chain: bool = True) -> dict[str, Any]:
        """Everything about one answer, in the order people look for it. A latent step is its K words."""
        rollout, latent = answer.rollout, self.settings.latent_settings
        return {
            "problem": answer.problem.problem,
            "sample": answer.sample + 1,
            "seed": wish.seed,
            "answer": answer.boxed,
            "text": answer.text,
            "valid": rollout.valid,
            "latent_length": rollout.latent_length,
            "explicit_length": rollout.explicit_length,
            "tokens": rollout.hard_tokens,
            **({"chain": [[_word(word) for word in step] for step in answer.chain]} if chain else {}),
            "seconds": answer.seconds,
            "tokens_per_s": rollout.length / answer.seconds if answer.seconds else None,
            "time_to_first_answer_token": answer.first,
            "model": self.name,
            "settings": {
                "latent": self.policy.latent,
                "noise_scale": self.noise_scale(wish) if self.policy.latent else 0.0,
                "temperature": self.temperature(wish),
                "max_response": self.settings.max_response,
                "k": latent.k,
                "tau": latent.tau,
                "top_p": self.settings.top_p,
                "top_k": self.settings.top_k,
            },
        }


def _word(word: Word) -> dict[str, Any]:
    return {"id": word.token, "word": word.text, "weight": round(word.weight, 6)}
