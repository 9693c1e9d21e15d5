"""Speed of rollouts: our engine, latent and explicit, beside transformers.generate and TRL's generation.

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py [--model RUN] [--repeats 5]
    python benchmarks/rollouts.py --device cuda --shape llama-3.2-1b

The first form rolls out 64 arithmetic problems x 8 with the embedded model, lengths as they come, at most 64 positions.
The sides take turns: same weights, prompts, sampling and threads. A token counts when it is part of a response, up to
and including its end; padding does not. `generate` is tried at several batch sizes; TRL generates all rows at once.

- `explicit`: our engine on the embedded model, as `lgrpo train --explicit` uses it.
- `latent`: the same on the latent checkpoint --model, with training's exploration noise. Its responses are shorter, so
  a prompt's prefill is shared by fewer positions: per position it has a disadvantage that is not the latent step's.
- `equal`: the latent and the explicit mode of the same weights (--model's, else the embedded ones) on the same prompts,
  where nothing can end: the ids that end a response or a chain are replaced by one that no token has. Every row
  has exactly --equal positions, so rows in flight, prefill and attention are the same, and the ratio of the
  two is what a latent step costs against an explicit one.

The second form has random weights of a shape, random prompts, and responses that all reach the cap. The time of a
decode step is (time of the whole - time of a run with one position) / (positions - 1); the ceiling is what the memory
could deliver if a step read all weights and all live keys and values once.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from statistics import fmean, median
from typing import Any

import click
import shapes
import side_by_side
import transformers
import trl_side
from rollout_sides import Side, equally_long, generate, ours, trl

from lgrpo import noise, plan
from lgrpo.engine import GRAPHED
from lgrpo.rollout import Request
from lgrpo.verify import Verifier

BATCHES = (64, 128, 256, 512)  # of generate


def natural(
    model: str | None, problems: int, repeats: int, batches: list[int], equal: int, lend: bool
) -> dict[str, Any]:
    """The embedded model, lengths as they come; prints the table."""
    policy, settings = side_by_side.load(None)
    asked = side_by_side.problems(problems)
    settings = replace(settings, batch=problems, update_batch=min(settings.update_batch, problems))
    answers = [one.answer for one in asked for _ in range(settings.group)]
    prompts = [r.prompt for r in side_by_side.requests(policy, settings, asked, 0)]
    sides = {"explicit": ours(policy, settings, lambda seed: side_by_side.requests(policy, settings, asked, seed))}
    walker, walking = policy, settings
    if model is not None:
        walker, walking = side_by_side.load(model)
        assert walker.latent, f"{model} has no latent chain"
        sides["latent"] = ours(walker, walking, lambda seed: side_by_side.requests(walker, walking, asked, seed))
    for batch in batches:
        sides[f"generate, {batch} rows"] = generate(policy, settings, prompts, batch, side_by_side.other(policy, lend))
    if trl_side.available():
        sides["TRL"] = trl(policy, settings, asked, prompts, side_by_side.other(policy, lend))
    else:
        print(trl_side.HINT)
    for mode in ("explicit", "latent"):
        sides[f"equal, {mode}"] = equally_long(walker, walking, asked, equal, mode == "latent")
    runs = side_by_side.alternately(sides, repeats)

    rows, found = [], {}
    with Verifier() as grader:
        for name, results in runs.items():
            speeds = [run.speed for run in results]
            base = "equal, explicit" if name.startswith("equal") else "explicit"
            beside = side_by_side.ratios([run.speed for run in runs[base]], speeds)
            by_cpu = side_by_side.ratios([run.cpu_speed for run in runs[base]], [run.cpu_speed for run in results])
            right = [r for run in results for r in grader.grade([policy.decode(t) for t in run.responses], answers)]
            length = fmean(n for run in results for n in run.lengths)
            seconds = median(run.seconds.wall for run in results)
            found[name] = {
                "tokens_per_s": side_by_side.Spread.of(speeds).as_json(), "explicit_over_this": beside.as_json(),
                "explicit_over_this_by_cpu_time": by_cpu.as_json(),
                "rows": len(prompts), "tokens": sum(results[0].lengths), "length": length, "seconds": seconds,
                "pass@1": fmean(right),
            }  # fmt: skip
            rows.append([
                name, str(len(prompts)), f"{length:.2f}", f"{fmean(right):.3f}", f"{seconds:.2f}",
                side_by_side.Spread.of(speeds).text(), beside.text(2),
                by_cpu.text(2),
            ])  # fmt: skip
    header = ["side", "rows", "length", "right", "s", "tokens/s", "explicit is faster by", "by CPU time"]
    print(side_by_side.table(header, rows))
    best = max((n for n in found if n.startswith("generate")), key=lambda n: found[n]["tokens_per_s"]["median"])
    latent, latent_by_cpu = (
        side_by_side.ratios([speed(r) for r in runs["equal, latent"]], [speed(r) for r in runs["equal, explicit"]])
        for speed in (attrgetter("speed"), attrgetter("cpu_speed"))
    )
    print(f"\nexplicit against the best of generate ({best}): {found[best]['explicit_over_this']['median']:.2f} times")
    if "TRL" in found:
        print(f"explicit against TRL: {found['TRL']['explicit_over_this']['median']:.2f} times")
    print(f"a latent position against an explicit one, equal lengths of {equal}: {latent.text(2)} of its speed,")
    print(f"{latent_by_cpu.text(2)} by CPU time")
    return {
        "sides": found, "best_generate": best, "equal": equal, "latent_over_explicit_equal": latent.as_json(),
        "latent_over_explicit_equal_by_cpu_time": latent_by_cpu.as_json(),
    }  # fmt: skip


def random_shape(name: str, device: str, repeats: int) -> dict[str, Any]:
    """Random weights of a shape, all responses to the cap; prints the table."""
    shape = shapes.SHAPES[name]
    policy = shapes.endless(shapes.random_policy(shape, device))
    recipe = plan.Setting("recipe", shape.recipe, "its batch")
    settings, _ = plan.train_settings(recipe, k=10)
    prompts = [prompt for prompt in shapes.random_prompts(shape) for _ in range(shape.group)]
    rows = len(prompts)

    def sides_of(cap: int) -> dict[str, Side]:
        limits = replace(settings, max_response=cap, slots=rows)

        def make(latent: bool) -> Callable[[int], list[Request]]:
            return lambda seed: [Request(p, noise.row_key(seed, 0, n), latent) for n, p in enumerate(prompts)]

        return {
            "explicit": ours(policy, limits, make(False)),
            "latent": ours(policy, limits, make(True)),
            "generate": generate(policy, limits, prompts, rows, policy.model),
        }

    whole = side_by_side.alternately(sides_of(shape.response), repeats)
    first = side_by_side.alternately(sides_of(GRAPHED.look), repeats)
    assert all(set(run.lengths) == {shape.response} for runs in whole.values() for run in runs)
    bandwidth, operations, source = shapes.peaks(device, policy.dtype)
    # The usual ceiling lets each row read its own prompt, as `generate` does; our engine reads one a group.
    floor = shapes.decode_step_bytes(policy, rows, rows, shape.prompt, shape.response) / bandwidth
    shared = shapes.decode_step_bytes(policy, rows, shape.groups, shape.prompt, shape.response) / bandwidth
    found, lines = {}, []
    for side, runs in whole.items():
        step = (median(r.seconds.wall for r in runs) - median(r.seconds.wall for r in first[side])) / (
            shape.response - GRAPHED.look
        )
        faster = side_by_side.ratios([r.speed for r in runs], [r.speed for r in whole["generate"]])
        speed = side_by_side.Spread.of([r.speed for r in runs])
        found[side] = {
            "tokens_per_s": speed.as_json(), "decode_step_ms": step * 1e3, "decode_tokens_per_s": rows / step,
            "share_of_ceiling": floor / step,
            "share_of_shared_ceiling": shared / step, "over_generate": faster.as_json(),
        }  # fmt: skip
        cells = (
            f"{step * 1e3:.2f}",
            f"{rows / step:,.0f}",
            f"{floor / step:.1%}",
            f"{shared / step:.1%}",
            f"{faster.median:.2f}",
        )
        lines.append([side, speed.text(), *cells])
    header = [
        "side",
        "tokens/s",
        "ms a decode step",
        "tokens/s in decoding",
        "of the ceiling",
        "of the shared one",
        "times generate",
    ]
    ceiling = f"{rows / floor:,.0f} tokens/s: {floor * 1e3:.2f} ms a step"
    print(f"{name}: {policy.parameters / 1e6:,.0f} M random weights, {policy.dtype}, {rows} rows,")
    print(f"{shape.prompt} + {shape.response} positions; ceiling {ceiling}")
    print(f"at {bandwidth / 1e9:,.0f} GB/s ({source})\n{side_by_side.table(header, lines)}")
    latent = side_by_side.ratios([r.speed for r in whole["latent"]], [r.speed for r in whole["explicit"]])
    print(f"\na latent position against an explicit one: {latent.text(2)} of its speed")
    return {
        "shape": name, "latent_over_explicit": latent.as_json(),
        "rows": rows, "sides": found, "ceiling_ms": floor * 1e3, "shared_ceiling_ms": shared * 1e3,
        "bandwidth": bandwidth, "peaks": source, "compute_floor_ms": 2e3 * policy.parameters * rows / operations,
    }  # fmt: skip


@click.command()
@click.option("--model", help="A latent checkpoint for the latent side.")
@click.option("--problems", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--batches", default=",".join(map(str, BATCHES)), show_default=True, help="Rows generate is tried with.")
@click.option("--equal", default=24, show_default=True, help="Positions of each row in the comparison of modes.")
@click.option("--lend", is_flag=True, help="Let the other sides multiply as we do (lgrpo/policy/products.py).")
@click.option("--shape", type=click.Choice(list(shapes.SHAPES)), help="Random weights instead of the embedded model.")
@click.option("--device", default="cpu", show_default=True)
def main(
    model: str | None,
    problems: int,
    repeats: int,
    batches: str,
    equal: int,
    lend: bool,
    shape: str | None,
    device: str,
) -> None:
    """Measure rollouts side by side."""
    transformers.logging.set_verbosity_error()
    if shape is None:
        if device != "cpu":
            raise click.UsageError("the embedded model is measured on the CPU; name a --shape for another device")
        numbers = natural(model, problems, repeats, [int(size) for size in batches.split(",")], equal, lend)
    else:
        numbers = random_shape(shape, device, repeats)
    print(
        json.dumps(
            {"benchmark": "rollouts", "lent": lend, **numbers, "repeats": repeats, **side_by_side.machine(device)}
        )
    )


if __name__ == "__main__":
    main()
