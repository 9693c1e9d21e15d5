"""`lgrpo eval`: score models. Writes no file."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgrpo import ask, session
from lgrpo import evaluate as evaluation
from lgrpo.engine import Engine
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.screen import Show
from lgrpo.screen.scores import scores
from lgrpo.verify import Verifier

EVALUATED = 500  # problems of an endless source


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
    with Verifier() as grader, Show() as show:
        for checkpoint in names:
            policy = session.load(checkpoint, where.value)
            endless = limit is None and (data or policy.card.data or "").startswith(session.ARITHMETIC)
            problems, source = session.problems_for(policy, data, "test", EVALUATED if endless else limit or 0)
            settings = ask.engine_settings(policy, max_response)
            policy.card = ask.recognised(policy, checkpoint, problems, settings)
            session.check_room(policy, problems, max_response)
            score = _score(policy, problems, settings, runs, samples, seed, grader, show, checkpoint)
            results.append({"checkpoint": checkpoint, "results": [score.as_json(Path(source).stem)]})
        if grader.failures:
            show.warn(f"the verifier failed on {grader.failures} answers: {dict(grader.reasons)}")
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results))
    else:
        rows = [{"checkpoint": one["checkpoint"], **row} for one in results for row in one["results"]]
        scores(rows, sys.stdout)


def _score(
    policy: Policy,
    problems: Sequence[Problem],
    settings: TrainSettings,
    runs: int | None,
    samples: int,
    seed: int,
    grader: Verifier,
    show: Show,
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
