"""Paired differences in Pass@1 between checkpoints, pooled over seeds.

    python benchmarks/paired.py BEFORE:AFTER [BEFORE:AFTER ...] [--problems 1000] [--runs 2] [--noise 0]

Both checkpoints of a pair answer the same test problems with the same seeds. The standard error and the 95 % interval
of a difference are clustered by problem (lgrpo/compare.py): within a pair over problems, pooled over pairs over the
problems' means. Prints a line a pair, and as its last line one JSON object. For one pair, `lgrpo eval` says the same.
"""

import json
from itertools import islice
from statistics import fmean

import click

from lgrpo import arithmetic, evaluate, plan, session
from lgrpo.compare import Difference, paired
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
    score = evaluate.summarise(answered)
    return list(score.shares), score.length


@click.command()
@click.argument("pairs", nargs=-1, required=True)
@click.option("--problems", default=1000, show_default=True)
@click.option("--runs", default=2, show_default=True)
@click.option("--noise", default=0.0, show_default=True, help="Noise scale of the latent chain.")
def main(pairs: tuple[str, ...], problems: int, runs: int, noise: float) -> None:
    """Compare BEFORE:AFTER pairs of checkpoints on the arithmetic test problems."""
    rows, befores, afters = [], [], []
    with Verifier() as grader:
        for pair in pairs:
            before, after = pair.split(":")
            (old, old_length), (new, new_length) = (
                rates(checkpoint, problems, runs, noise, grader) for checkpoint in (before, after)
            )
            befores.append(old)
            afters.append(new)
            gain = paired(old, new)
            rows.append(
                {
                    "before": before, "after": after, "pass@1_before": fmean(old), "pass@1_after": fmean(new),
                    "difference": gain.mean, "difference_se": gain.standard_error,
                    "difference_interval": gain.interval, "length_before": old_length, "length_after": new_length,
                }
            )  # fmt: skip
            print(f"{before} {fmean(old):.3f} -> {after} {fmean(new):.3f}: {_signed(gain)}", flush=True)
    pooled = paired(*([fmean(shares) for shares in zip(*side, strict=True)] for side in (befores, afters)))
    print(f"pooled over {len(pairs)} pairs: {_signed(pooled)}")
    print(json.dumps({
        "problems": problems, "runs": runs, "noise": noise, "pairs": rows, "pooled": pooled.mean,
        "pooled_se": pooled.standard_error, "pooled_interval": pooled.interval,
    }))  # fmt: skip


def _signed(gain: Difference) -> str:
    return f"{gain.mean:+.3f} ± {gain.standard_error:.3f} [{gain.interval[0]:+.3f}, {gain.interval[1]:+.3f}]"


if __name__ == "__main__":
    main()
