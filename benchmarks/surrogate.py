"""What a positive advantage does to a latent step, under each surrogate.

    python benchmarks/surrogate.py CHECKPOINT [--problems 64] [--noise 1.0]

Rolls out groups with exploration noise, and follows the gradient of each latent step's surrogate log-probability
into the step's logits: does the heaviest component of the mixture gain probability, does the most likely token, does
the entropy rise, and how much of the gradient goes to components that hardly take part? Prints a table, and last one
JSON object.
"""

import json
from itertools import islice

import click
import torch

from lgrpo import arithmetic, noise, plan, scoring, session, superposition
from lgrpo.engine import Engine
from lgrpo.rollout import Request

NEGLIGIBLE = 0.05  # weight of a component that hardly takes part


@click.command()
@click.argument("checkpoint")
@click.option("--problems", default=64, show_default=True)
@click.option("--noise", "noise_scale", default=1.0, show_default=True)
@click.option("--k", type=int, help="Tokens in a superposition.  [default: the checkpoint's]")
def main(checkpoint: str, problems: int, noise_scale: float, k: int | None) -> None:
    """Compare the two surrogates on the rollouts of CHECKPOINT."""
    policy = session.load(checkpoint, "cpu")
    recipe = plan.Setting("recipe", "tiny", "the arithmetic problems are its own")
    settings, _ = plan.train_settings(recipe, k=k or policy.card.k, noise_scale=noise_scale)
    engine = Engine(policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots)
    rollouts = engine.generate(
        [
            Request(tuple(policy.prompt_ids(one.problem, True)), noise.row_key(0, one.key, n), True, noise_scale)
            for one in islice(arithmetic.draw("train", 0), problems)
            for n in range(settings.group)
        ]
    )
    batch = scoring.collate(policy, rollouts, settings.tau)
    with torch.no_grad():
        states = scoring.states_of(policy, batch)[batch.latent[batch.mask]]
        logits = policy.head(states)
    logits.requires_grad_()
    indices, scores = batch.indices[batch.latent], batch.scores[batch.latent]
    log_probs = logits.log_softmax(-1)
    components = log_probs.gather(1, indices)
    weights = superposition.weights_of(scores, settings.tau)
    heaviest, likeliest = indices.gather(1, weights.argmax(1, keepdim=True)), log_probs.argmax(1, keepdim=True)
    (toward_entropy,) = torch.autograd.grad(-(log_probs.exp() * log_probs).sum(), logits, retain_graph=True)

    results = {}
    for name, given in (("published", None), ("weighted", weights)):
        surrogate = superposition.surrogate_logprob(components, scores, None, given)
        (slope,) = torch.autograd.grad(surrogate.sum(), logits, retain_graph=True)
        chosen = slope.gather(1, indices).abs()
        results[name] = {
            "heaviest loses": _share(slope.gather(1, heaviest) < 0),
            "likeliest loses": _share(slope.gather(1, likeliest) < 0),
            "entropy rises": _share((slope * toward_entropy).sum(1) > 0),
            "gradient on negligible": float((chosen * (weights < NEGLIGIBLE)).sum() / chosen.sum()),
        }
    print(f"{len(logits)} latent steps, K {settings.k}, noise {noise_scale}; share of steps in which, going up,")
    for measure in results["published"]:
        print(f"  {measure:24}" + "".join(f"  {name} {values[measure]:.3f}" for name, values in results.items()))
    print(json.dumps({"steps": len(logits), "k": settings.k, "noise": noise_scale, **results}))


def _share(true: torch.Tensor) -> float:
    return float(true.float().mean())


if __name__ == "__main__":
    main()
