"""Where the time of a CPU rollout goes: matrix products, attention, and everything else.

    OMP_NUM_THREADS=1 python benchmarks/profile_rollout.py [MODEL] [--problems 64] [--repeats 3] [--top 15]

MODEL is a run or a model folder; the embedded explicit model where it is left out, and a latent checkpoint shows
latent rollouts. 64 problems x 8 rollouts with `tiny`'s settings.

Repeats alternate between a plain run, whose wall time counts, and one under torch.profiler. In the profiled one each
op's self time goes to one of four classes:

- matmul: self time of mm, addmm, bmm, baddbmm and of what dispatches to them (linear, matmul, einsum);
- attention: all ops inside scaled_dot_product_attention, and inside SlotCache.attend, a decode step's attention with
  its products, softmax and the way of rows to their prompts and back;
- other ops: the rest of torch's ops, copies into and out of the cache among them;
- Python: the time in which no op runs. The profiler's own cost, some microseconds an op, lies here and in "other ops".

`outside` is 1 - (matmul + attention) over the time of the *plain* run. The profiler does not lengthen that, and
lengthens few and long products little: so `outside` is, if anything, too small. The same over the profiled run is too
large; the truth lies between the two. Plain and profiled run are compared by their CPU time, so that other work on the
machine does not count, which holds for one thread; the plain run's wall time is shown as well.

"Where" gives the time outside to the innermost function of lgrpo or module of the model that it was spent in.
"""

import functools
import inspect
import json
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import click
import side_by_side
import torch
from torch.nn.modules import module as hooks
from torch.profiler import ProfilerActivity, profile, record_function

from lgrpo import noise, superposition
from lgrpo.engine import decode, engine, prefill, slots
from lgrpo.policy import cache, lean, policy

MATMUL = {
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "linear", "matmul", "einsum", "_addmm_activation",
    "mkldnn_linear", "_linear_pointwise", "_mkldnn_linear_pointwise", "mkl_linear",
}  # fmt: skip
LGRPO = (engine, slots, prefill, decode, lean, cache, superposition, noise, policy)
RANGE = "in "  # what the names of our ranges begin with
ATTENTION = {"aten::scaled_dot_product_attention", RANGE + "cache.SlotCache.attend"}  # of a prefill, of a decode step
CLASSES = ("matmul", "attention", "other ops", "Python")


@contextmanager
def named_ranges() -> Iterator[None]:
    """A profiler range around each function of the modules in LGRPO and each module of the model."""
    undo: list[tuple[Any, str, Any]] = []
    for source in LGRPO:
        owners = [source, *(c for c in vars(source).values() if inspect.isclass(c) and c.__module__ == source.__name__)]
        for owner in owners:
            for name, member in list(vars(owner).items()):
                ours = isinstance(member, types.FunctionType) and member.__module__ == source.__name__
                if ours and not name.startswith("__"):
                    undo.append((owner, name, member))
                    setattr(owner, name, _ranged(member, f"{source.__name__.split('.')[-1]}.{member.__qualname__}"))
    open_ranges: list[record_function] = []

    def enter(module: torch.nn.Module, _: Any) -> None:
        open_ranges.append(record_function(RANGE + type(module).__name__))
        open_ranges[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for owner, name, member in undo:
            setattr(owner, name, member)


def _ranged(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with record_function(RANGE + name):
            return function(*args, **kwargs)

    return inner


def kind_of(event: Any) -> str:
    if event.name.startswith(RANGE):
        return "Python"
    above = event
    while above is not None:
        if above.name in ATTENTION:
            return "attention"
        above = above.cpu_parent
    return "matmul" if event.name.split("::")[-1] in MATMUL else "other ops"


def place_of(event: Any) -> str:
    while event is not None and not event.name.startswith(RANGE):
        event = event.cpu_parent
    return "-" if event is None else event.name.removeprefix(RANGE)


class Tally:
    """Seconds of one or more profiled runs."""

    def __init__(self) -> None:
        self.classes: dict[str, float] = defaultdict(float)
        self.ops: dict[str, float] = defaultdict(float)  # outside matmul and attention
        self.inside: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.places: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, events: Any) -> dict[str, float]:
        """Seconds of this run by class."""
        one: dict[str, float] = defaultdict(float)
        for event in events:
            kind, seconds = kind_of(event), event.self_cpu_time_total / 1e6
            one[kind] += seconds
            if kind == "other ops":
                self.ops[event.name] += seconds
                self.calls[event.name] += 1
            elif kind != "Python":
                self.inside[f"{event.name} ({kind})"] += seconds
            if kind in ("other ops", "Python"):
                self.places[place_of(event)][kind] += seconds
        for kind, seconds in one.items():
            self.classes[kind] += seconds
        return one


@click.command()
@click.argument("model", required=False)
@click.option("--problems", default=64, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--top", default=15, show_default=True, help="Ops and places to print.")
def main(model: str | None, problems: int, repeats: int, top: int) -> None:
    """Profile the rollouts of MODEL on the CPU."""
    policy_, settings = side_by_side.load(model)
    rollouts = side_by_side.engine_of(policy_, settings)
    asked = side_by_side.requests(policy_, settings, side_by_side.problems(problems), seed=0)
    tally = Tally()
    positions = 0

    def plain(_: int) -> side_by_side.Seconds:
        nonlocal positions
        made, seconds = side_by_side.timed("cpu", lambda: rollouts.generate(asked))
        positions = sum(rollout.length for rollout in made)
        return seconds

    def profiled(repeat: int) -> tuple[side_by_side.Seconds, dict[str, float]]:
        profiler = profile(activities=[ProfilerActivity.CPU])
        with named_ranges(), profiler, record_function(RANGE + "the benchmark"):
            _, seconds = side_by_side.timed("cpu", lambda: rollouts.generate(asked))
        return seconds, tally.add(profiler.events()) if repeat >= 0 else {}

    runs = side_by_side.alternately({"plain": plain, "profiled": profiled}, repeats)
    walls = [seconds.wall for seconds in runs["plain"]]
    inside = [(one["matmul"] + one["attention"]) / sum(one.values()) for _, one in runs["profiled"]]
    slower = [seconds.cpu / quick.cpu for (seconds, _), quick in zip(runs["profiled"], runs["plain"], strict=True)]
    outside = side_by_side.Spread.of([1 - share * factor for share, factor in zip(inside, slower, strict=True)])
    upper = side_by_side.Spread.of([1 - share for share in inside])
    whole = sum(tally.classes.values())
    chain = "latent" if policy_.latent else "explicit"
    print(
        f"{len(asked)} {chain} rollouts, {positions} positions; plain run {median(walls):.2f} s, "
        f"{positions / median(walls):,.0f} positions/s; profiled {median(s.wall for s, _ in runs['profiled']):.2f} s\n"
    )
    print(side_by_side.table(
        ["class", "ms a run", "share of the profiled run"],
        [[n, f"{tally.classes[n] * 1e3 / repeats:.0f}", f"{tally.classes[n] / whole:.1%}"] for n in CLASSES],
    ))  # fmt: skip
    print(f"\noutside: {outside.median:.1%} ({outside.low:.1%} to {outside.high:.1%}) of the plain run,")
    print(f"{upper.median:.1%} of the profiled one\n")
    best = sorted(tally.ops, key=tally.ops.__getitem__, reverse=True)[:top]
    print(side_by_side.table(
        ["op outside", "ms a run", "share", "calls a run"],
        [[n, f"{tally.ops[n] * 1e3 / repeats:.0f}", f"{tally.ops[n] / whole:.1%}", str(tally.calls[n] // repeats)]
         for n in best],
    ))  # fmt: skip
    largest = sorted(tally.inside, key=tally.inside.__getitem__, reverse=True)[:4]
    print("\ninside: " + ", ".join(f"{name} {tally.inside[name] / whole:.1%}" for name in largest))
    order = sorted(tally.places, key=lambda name: sum(tally.places[name].values()), reverse=True)[:top]
    cells = {name: [tally.places[name][kind] * 1e3 / repeats for kind in ("other ops", "Python")] for name in order}
    print()
    print(side_by_side.table(
        ["where (outside)", "ms a run", "ops", "Python", "share"],
        [[n, f"{sum(c):.0f}", f"{c[0]:.0f}", f"{c[1]:.0f}", f"{sum(c) * repeats / 1e3 / whole:.1%}"]
         for n, c in cells.items()],
    ))  # fmt: skip
    print(json.dumps({
        "benchmark": "profile_rollout", "chain": chain, "rollouts": len(asked), "positions": positions,
        "wall_s": side_by_side.Spread.of(walls).as_json(), "outside": outside.as_json(),
        "outside_profiled": upper.as_json(), "classes": {kind: tally.classes[kind] / whole for kind in CLASSES},
        "ops": {name: tally.ops[name] / whole for name in best},
        "where": {name: sum(c) * repeats / 1e3 / whole for name, c in cells.items()}, **side_by_side.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
