"""One step of reinforcement learning: rollouts, rewards, updates; ours beside TRL's GRPOTrainer.

    OMP_NUM_THREADS=1 python benchmarks/rl_step.py [--model RUN] [--repeats 5]
    python benchmarks/rl_step.py --device cuda --shape llama-3.2-1b
    python benchmarks/rl_step.py --device cuda --shape qwen2.5-7b --groups 2 --cold --repeats 1

The first form takes the steps of one batch on the embedded model: 64 arithmetic problems x 8 rollouts of at most 64
positions, boxed answers graded by lgrpo's verifier, four optimiser steps of 16 problems each. Every side rolls out the
same 64 problems, learns from all 512 rows, and begins each repeat with the first weights.

- `explicit`: one draw of `Sampler` and `Learner.learn` on *all* its groups. Training drops groups whose rewards are all
  equal and draws others instead; TRL does not, so here they are kept: their advantage is 0, their cost is not.
- `latent`: the same on the latent checkpoint --model.
- `TRL`: `GRPOTrainer.train` with max_steps 4, from the beginning of its first step to the end of its last. It generates
  once for the four, without vLLM. Tried with several sizes of micro-batch; without gradient checkpointing, with
  embedding and head frozen as ours are. Its AdamW has float32 states (torch's fused one; --trl-optimizer
  adamw_bnb_8bit for ours); ours has 8-bit states, which cost more time on a CPU.

The other forms: rl_step_shape.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import click
import shapes
import side_by_side
import transformers
import trl_side
from rl_step_shape import random_shape

from lgrpo import plan
from lgrpo.groups import Group, Sampler
from lgrpo.learner import Learner
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.verify import Verifier

MICRO_BATCHES = (32, 128)  # rows of TRL's


@dataclass(frozen=True)
class Step:
    """One side in one repeat."""

    seconds: side_by_side.Seconds
    rollout: float  # seconds of it that made the rollouts
    lengths: list[int]
    rewards: list[float]


Side = Callable[[int], Step]


def ours(policy: Policy, settings: plan.TrainSettings, asked: list[Problem], grader: Verifier) -> Side:
    """One draw of the sampler, and all optimiser steps on all of its groups."""
    engine = side_by_side.engine_of(policy, settings)
    learner = Learner(policy, settings)
    initial = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    generating = 0.0
    plain = engine.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        nonlocal generating
        out, seconds = side_by_side.timed(policy.device, lambda: plain(*args, **kwargs))
        generating += seconds.wall
        return out

    engine.generate = generate  # type: ignore[method-assign]

    def step(seed: int) -> list[Group]:
        # The order of the problems is the seed's, and so are the samples.
        drawn = Sampler(policy, engine, asked, grader, replace(settings, seed=seed)).collect(0)
        learner.learn(drawn.seen)
        return drawn.seen

    def side(repeat: int) -> Step:
        nonlocal generating
        policy.model.load_state_dict(initial)
        generating = 0.0
        groups, seconds = side_by_side.timed(policy.device, lambda: step(repeat + 1))
        lengths = [rollout.length for group in groups for rollout in group.rollouts]
        return Step(seconds, generating, lengths, [reward for group in groups for reward in group.rewards])

    return side


def trl(
    policy: Policy, model: Any, settings: plan.TrainSettings, asked: list[Problem], grader: Verifier, *how: Any
) -> Side:
    trainer = trl_side.Trainer(policy, model, settings, asked, grader, *how)

    def side(repeat: int) -> Step:
        done = trainer.train(seed=repeat + 1)
        return Step(done.seconds, done.rollout, done.lengths, done.rewards)

    return side


def natural(
    model: str | None, problems: int, repeats: int, micro: list[int], optimizer: str, lend: bool
) -> dict[str, Any]:
    """The embedded model; prints the table."""
    asked = side_by_side.problems(problems)

    def settings_of(policy: Policy) -> plan.TrainSettings:
        chosen = {"draws": 1, "batch": problems}
        return side_by_side.tiny_settings(policy.card.k, not policy.latent, **chosen)

    with Verifier() as grader:
        policy = side_by_side.load(None)[0]
        settings = settings_of(policy)
        sides: dict[str, Side] = {}
        if trl_side.available():
            for rows in micro:
                sides[f"TRL, {rows} rows"] = trl(
                    policy, side_by_side.other(policy, lend), settings, asked, grader, rows, optimizer
                )
        else:
            print(trl_side.HINT)
        sides = {"explicit": ours(policy, settings, asked, grader), **sides}
        if model is not None:
            walker = side_by_side.load(model)[0]
            assert walker.latent, f"{model} has no latent chain"
            sides["latent"] = ours(walker, settings_of(walker), asked, grader)
        runs = side_by_side.alternately(sides, repeats)

    lines, found = [], {}
    for name, steps in runs.items():
        wall = side_by_side.Spread.of([step.seconds.wall for step in steps])
        over, over_cpu = (
            side_by_side.ratios([s.seconds[clock] for s in steps], [s.seconds[clock] for s in runs["explicit"]])
            for clock in (0, 1)
        )
        rows = len(steps[0].lengths)
        rollout = median(step.rollout for step in steps)
        length = fmean(n for step in steps for n in step.lengths)
        reward = fmean(r for step in steps for r in step.rewards)
        found[name] = {
            "seconds": wall.as_json(), "rollout_s": rollout, "rows_per_s": rows / wall.median, "length": length,
            "reward": reward, "over_explicit": over.as_json(), "over_explicit_by_cpu_time": over_cpu.as_json(),
        }  # fmt: skip
        times = wall.text(2), f"{rollout:.2f}", f"{wall.median - rollout:.2f}", f"{rows / wall.median:,.0f}"
        lines.append([name, str(rows), f"{length:.2f}", f"{reward:.3f}", *times, over.text(2), over_cpu.text(2)])
    header = ["side", "rows", "length", "reward", "s", "rollout", "rest", "rows/s", "times explicit's", "by CPU time"]
    print(side_by_side.table(header, lines))
    others = [name for name in found if name.startswith("TRL")]
    best = min(others, key=lambda name: found[name]["seconds"]["median"], default=None)
    if best is not None:
        print(
            f"\nexplicit against the best of TRL ({best}): {found[best]['over_explicit']['median']:.2f} times as fast"
        )
    return {"sides": found, "best_trl": best, "trl_optimizer": optimizer}


@click.command()
@click.option("--model", help="A latent checkpoint for the latent side.")
@click.option("--problems", default=64, show_default=True, help="A multiple of 16.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--micro", default=",".join(map(str, MICRO_BATCHES)), show_default=True, help="TRL's micro-batches.")
@click.option("--trl-optimizer", default="adamw_torch_fused", show_default=True)
@click.option("--lend", is_flag=True, help="Let TRL multiply as we do (lgrpo/policy/products.py).")
@click.option("--shape", type=click.Choice(list(shapes.SHAPES)), help="Random weights instead of the embedded model.")
@click.option("--groups", type=int, help="Prompts of the shape's batch.  [default: its recipe's]")
@click.option("--response", type=int, help="Positions of its responses.  [default: its recipe's]")
@click.option("--cold", is_flag=True, help="No warm-up step: for shapes whose step takes minutes.")
@click.option("--device", default="cpu", show_default=True)
def main(
    model: str | None,
    problems: int,
    repeats: int,
    micro: str,
    trl_optimizer: str,
    lend: bool,
    shape: str | None,
    groups: int | None,
    response: int | None,
    cold: bool,
    device: str,
) -> None:
    """Measure one step side by side."""
    transformers.logging.set_verbosity_error()
    if shape is None:
        if device != "cpu":
            raise click.UsageError("the embedded model is measured on the CPU; name a --shape for another device")
        numbers = natural(model, problems, repeats, [int(rows) for rows in micro.split(",")], trl_optimizer, lend)
    else:
        numbers = random_shape(shape, device, repeats, groups, response, not cold)
    print(
        json.dumps(
            {"benchmark": "rl_step", "lent": lend, **numbers, "repeats": repeats, **side_by_side.machine(device)}
        )
    )


if __name__ == "__main__":
    main()
