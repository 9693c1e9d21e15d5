"""`lgrpo sample`: ask a model. Writes no file."""

import json
import sys

from lgrpo import ask, noise, reading, session
from lgrpo.engine import Engine
from lgrpo.errors import UserError
from lgrpo.problems import Problem
from lgrpo.rollout import Request
from lgrpo.text import clean
from lgrpo.verify import boxed


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
    settings = ask.engine_settings(policy, max_response)
    policy.card = ask.recognised(policy, model, [asked], settings)
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
