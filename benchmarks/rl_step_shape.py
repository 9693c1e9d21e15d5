"""One step of a published recipe on random weights of a shape: seconds, use of the hardware, peak memory.

Random prompts of the recipe's longest length, and responses that all reach its cap; rewards 0 and 1 in turn, without
grading; every response learns. `latent` makes every position a superposition, which no trained model does: it
is the dearest case. Run by `rl_step.py --shape`.

MFU counts the operations of forward and backward pass (shapes.update_operations) over the time of the update and the
peak of bf16. The forward pass that scores the old policy is needed, too, and so is that of the initial policy where the
recipe has a KL: `with old` adds the former, which the first optimiser step of a batch does not need.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import shapes
import side_by_side
import torch

from lgrpo import noise, plan
from lgrpo.groups import Group
from lgrpo.learner import Learner
from lgrpo.memory import reinforcement as memory
from lgrpo.problems import Problem
from lgrpo.rollout import Request


def random_shape(
    name: str, device: str, repeats: int, groups: int | None, response: int | None, warm: bool
) -> dict[str, Any]:
    """One step of the shape's recipe on random weights; prints the table."""
    shape = shapes.SHAPES[name]
    shape = replace(shape, groups=groups or shape.groups, response=response or shape.response)
    policy = shapes.endless(shapes.random_policy(shape, device))
    recipe = plan.Setting("recipe", shape.recipe, "its batch")
    chosen = {
        "batch": shape.groups, "group": shape.group, "max_prompt": shape.prompt, "max_response": shape.response,
        "slots": shape.groups * shape.group,
        "mask_invalid": False,  # masking would leave no advantage: every response is cut off
    }  # fmt: skip
    settings, _ = plan.train_settings(recipe, k=10, **chosen)
    settings = memory.fit(memory.shape_of(policy), settings, shape.room)
    learner = Learner(policy, settings)
    engine = side_by_side.engine_of(policy, settings)
    prompts = shapes.random_prompts(shape)
    rewards = [float(n % 2) for n in range(shape.group)]

    def side_of(latent: bool) -> Callable[[int], dict[str, float]]:
        def side(repeat: int) -> dict[str, float]:
            asked = [
                Request(prompt, noise.row_key(repeat, place, n), latent)
                for place, prompt in enumerate(prompts)
                for n in range(shape.group)
            ]
            _reset_peak(device)
            rollouts, rolling = side_by_side.timed(device, lambda: engine.generate(asked))
            rollout_gb = _peak(device)
            cut = [rollouts[at : at + shape.group] for at in range(0, len(rollouts), shape.group)]
            groups = [Group(Problem(str(n), "0"), part, rewards) for n, part in enumerate(cut)]
            if not settings.keep_cache:
                engine.release()
            _reset_peak(device)
            _, updating = side_by_side.timed(device, lambda: learner.learn(groups))
            return {
                "s": rolling.wall + updating.wall, "rollout_s": rolling.wall, "update_s": updating.wall,
                "rollout_gb": rollout_gb, "update_gb": _peak(device),
            }  # fmt: skip

        return side

    runs = side_by_side.alternately({"latent": side_of(True), "explicit": side_of(False)}, repeats, warm)
    _, operations, source = shapes.peaks(device, policy.dtype)
    needed = shapes.update_operations(policy, shape)
    # The first optimiser step of a batch gives its old log-probabilities itself; the others are scored before.
    steps_taken = -(-settings.batch // settings.update_batch)
    with_old = 1 + (steps_taken - 1) / (3 * steps_taken)
    lines, found = [], {}
    for side, steps in runs.items():
        middle = {key: median(step[key] for step in steps) for key in steps[0] if not key.endswith("_gb")}
        mfu = needed / middle["update_s"] / operations
        spread = side_by_side.Spread.of([step["s"] for step in steps])
        most = {key: max(step[key] for step in steps) for key in ("rollout_gb", "update_gb")}
        found[side] = {
            **middle,
            **most,
            "step_s": spread.as_json(),
            "mfu": mfu,
            "mfu_with_old_policy": mfu * with_old,
        }
        seconds = spread.text(2), f"{middle['rollout_s']:.2f}", f"{middle['update_s']:.2f}"
        cells = [f"{value:.1f}" for value in most.values()]
        lines.append([side, *seconds, f"{mfu:.1%}", f"{mfu * with_old:.1%}", *cells])
    rows = len(prompts) * shape.group
    print(f"{name}: {policy.parameters / 1e6:,.0f} M random weights, {policy.dtype}, {rows} rows, {shape.prompt} +")
    print(f"{shape.response} positions; peak {operations / 1e12:,.1f} TFLOP/s ({source})")
    header = ["side", "s a step", "rollout", "update", "update MFU", "with old", "GB, rollout", "GB, update"]
    print(side_by_side.table(header, lines))
    return {"shape": name, "sides": found, "peaks": source, "operations_per_s": operations, "update_operations": needed}


def _reset_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> float:
    """Most memory reserved since the last reset, in GB: graphs hold what no tensor does. 0 where nobody counts."""
    return torch.cuda.max_memory_reserved() / 1e9 if torch.device(device).type == "cuda" else 0.0
