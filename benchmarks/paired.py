"""Paired differences in Pass@1 between checkpoints, pooled over seeds.

    python benchmarks/paired.py BEFORE:AFTER [BEFORE:AFTER ...] [--problems 1000] [--runs 2] [--noise 0]

Both checkpoints of a pair answer the same test problems with the same seeds. The standard error of a difference
is clustered by problem: within a pair over problems, pooled over pairs over the problems' mean differences. Prints a
table, and as its last line one JSON object.
"""

import json
from itertools import islice
from statistics import fmean

import click

from lgrpo import arithmetic, evaluate, plan, session
from lgrpo.compare import clustered_standard_error
from lgrpo.engine import Engine
from lgrpo.verify import Verifier


def rates(checkpoint: str, problems: int, runs: int, noise: float, grader: Verifier) -> tuple[list[float], float]:
    """Share of right answers per test problem, and the mean length of valid responses."""
    policy = session.load(checkpoint, "cpu")
    recipe = plan.Setting("recipe", "tiny", "the arithmetic problems are its own")
    settings, _ = plan.train_settings(recipe, k=policy.card.k, explicit=not policy.latent)
    engine = Engine(policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots)
    asked = list(islice(arithmetic.draw("test", 1), problems))
    answered = evaluate.answer(
        policy, engine, asked, grader, runs=runs, noise_scale=noise, seed=1, temperature=settings.temperature
    )
    by_problem: list[list[bool]] = [[] for _ in asked]
    for one in answered:
        by_problem[one.problem].append(one.right)
    return [fmean(right) for right in by_problem], evaluate.summarise(answered).length


@click.command()
@click.argument("pairs", nargs=-1, required=True)
@click.option("--problems", default=1000, show_default=True)
@click.option("--runs", default=2, show_default=True)
@click.option("--noise", default=0.0, show_default=True, help="Noise scale of the latent chain.")
def main(pairs: tuple[str, ...], problems: int, runs: int, noise: float) -> None:
    """Compare BEFORE:AFTER pairs of checkpoints on the arithmetic test problems."""
    rows, gains = [], []
    with Verifier() as grader:
        for pair in pairs:
            before, after = pair.split(":")
            (old, old_length), (new, new_length) = (
                rates(checkpoint, problems, runs, noise, grader) for checkpoint in (before, after)
            )
            gain = [b - a for a, b in zip(old, new, strict=True)]
            gains.append(gain)
            rows.append(
                {
                    "before": before, "after": after, "pass@1_before": fmean(old), "pass@1_after": fmean(new),
                    "difference": fmean(gain), "difference_se": clustered_standard_error(gain),
                    "length_before": old_length, "length_after": new_length,
                }
            )  # fmt: skip
            print(f"{before} {fmean(old):.3f} -> {after} {fmean(new):.3f}: {_signed(gain)}", flush=True)
    pooled = [fmean(column) for column in zip(*gains, strict=True)]
    print(f"pooled over {len(pairs)} pairs: {_signed(pooled)}")
    print(json.dumps({
        "problems": problems, "runs": runs, "noise": noise, "pairs": rows, "pooled": fmean(pooled),
        "pooled_se": clustered_standard_error(pooled),
    }))  # fmt: skip


def _signed(differences: list[float]) -> str:
    return f"{fmean(differences):+.3f} ± {clustered_standard_error(differences):.3f}"


if __name__ == "__main__":
    main()
