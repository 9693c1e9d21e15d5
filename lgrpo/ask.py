"""`sample` and `eval`: ask a model, and score one. Neither writes a file."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lgrpo import console, noise, plan, reading, session
from lgrpo import evaluate as evaluation
from lgrpo.engine import Engine
from lgrpo.errors import UserError
from lgrpo.plan import TrainSettings
from lgrpo.policy import CARD, Card, Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request
from lgrpo.text import clean
from lgrpo.verify import Verifier, boxed

EVALUATED = 500  # problems of an endless source


def sample(
    problem: str | None,
    model: str | None,
    samples: int,
    explore: bool,
    temperature: float | None,
    max_response: int | None,
    chain: bool,
    as_json: bool,
    seed: int,
    device: str | None,
) -> None:
    """Answer one problem: the answer on stdout, the latent chain on stderr."""
    if problem is None:
        problem = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    if not problem.strip():
        raise UserError("no problem given; put it in quotes, or pipe it in")
    where = session.pick_device(device)
    model = model or str(session.newest())
    policy = session.load(model, where.value)
    asked = Problem(problem, "")
    settings = _engine_settings(policy, max_response)
    policy.card = _recognised(policy, model, [asked], settings)
    engine = Engine(policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots)
    session.check_room(policy, [asked], max_response)
    prompt = tuple(policy.prompt_ids(problem, policy.latent))
    scale = settings.noise_scale if explore else 0.0
    warmth = settings.temperature if temperature is None else temperature
    requests = [
        Request(prompt, noise.row_key(seed, asked.key, number), policy.latent, scale, warmth)
        for number in range(samples)
    ]
    for rollout in engine.generate(requests):
        steps = reading.latent_steps(policy, rollout, settings.tau)
        text = reading.answer_text(policy, rollout)
        if chain:
            for number, words in enumerate(steps, 1):
                line = "  ".join(f"{clean(word)} {weight:.2f}" for word, weight in words if weight >= 0.005)
                print(f"{number:3}  {line}", file=sys.stderr)
        if not rollout.valid:
            print(f"(cut off after {rollout.length} positions; --max-response allows more)", file=sys.stderr)
        if as_json:
            print(json.dumps({
                "problem": problem, "answer": boxed(text), "text": text, "latent_length": rollout.latent_length,
                "explicit_length": rollout.explicit_length, "valid": rollout.valid, "chain": steps,
            }))  # fmt: skip
        else:
            print(clean(text, lines=True))


def evaluate(
    checkpoints: Sequence[str],
    data: str | None,
    limit: int | None,
    runs: int | None,
    samples: int,
    max_response: int | None,
    as_json: bool,
    seed: int,
    device: str | None,
) -> None:
    """Score each checkpoint: a table, or JSON, on stdout."""
    where = session.pick_device(device)
    names = checkpoints or [str(session.newest())]
    for checkpoint in names:
        session.find(checkpoint)  # all names first: a wrong one must not cost the minutes of those before it
    results: list[dict[str, Any]] = []
    with Verifier() as grader, console.Show() as show:
        for checkpoint in names:
            policy = session.load(checkpoint, where.value)
            endless = limit is None and (data or policy.card.data or "").startswith(session.ARITHMETIC)
            problems, source = session.problems_for(policy, data, "test", EVALUATED if endless else limit or 0)
            settings = _engine_settings(policy, max_response)
            policy.card = _recognised(policy, checkpoint, problems, settings)
            session.check_room(policy, problems, max_response)
            score = _score(policy, problems, settings, runs, samples, seed, grader, show, checkpoint)
            results.append({"checkpoint": checkpoint, "results": [score.as_json(Path(source).stem)]})
        if grader.failures:
            show.warn(f"the verifier failed on {grader.failures} answers: {dict(grader.reasons)}")
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results))
    else:
        rows = [{"checkpoint": one["checkpoint"], **row} for one in results for row in one["results"]]
        console.scores(rows, sys.stdout)


def _score(
    policy: Policy,
    problems: Sequence[Problem],
    settings: TrainSettings,
    runs: int | None,
    samples: int,
    seed: int,
    grader: Verifier,
    show: console.Show,
    name: str,
) -> evaluation.Score:
    engine = Engine(
        policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots, show.warn
    )
    runs = runs or (4 if settings.recipe == "high" else 5)

    def ask(title: str, count: int, scale: float) -> list[evaluation.Answered]:
        show.stage(f"{title} {name}", len(problems))
        return evaluation.answer(
            policy, engine, problems, grader, runs=count, noise_scale=scale, seed=seed,
            temperature=settings.temperature, on_finish=lambda done, right: show.step(done, {}),
        )  # fmt: skip

    answered = ask("Pass@1", runs, 0.0)
    explored = ask("pass@k", samples, settings.noise_scale) if samples else []
    return evaluation.summarise(answered, explored)


def _recognised(policy: Policy, name: str, problems: Sequence[Problem], settings: TrainSettings) -> Card:
    """The policy's card; a latent one where the checkpoint has none and turns out to have a latent chain."""
    source = None if session.is_tiny(name) else session.find(name)
    if policy.latent or not session.has_latent_chain(policy, source, problems, settings):
        return policy.card
    print(f"{name} has no {CARD}, but answers after a latent chain: it is asked for one", file=sys.stderr)
    return replace(policy.card, mode="latent")


def _engine_settings(policy: Policy, max_response: int | None) -> TrainSettings:
    """Rollout settings of a policy that is only asked: those it was trained under, else the recipe's."""
    chosen = plan.choose_recipe(policy.card.recipe, None, policy.parameters)
    kept: dict[str, Any] = {name: value for name, value in policy.card.rollout.items() if name in plan.ROLLOUT}
    if max_response is not None:
        kept["max_response"] = max_response
    settings, _ = plan.train_settings(chosen, k=policy.card.k, explicit=not policy.latent, **kept)
    return settings
