"""What the speed benchmarks share: sides measured in turn within one run, spreads, tables, the machine."""

import copy
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from lgrpo import arithmetic, noise, plan, session
from lgrpo.engine import Engine
from lgrpo.policy import Policy
from lgrpo.policy.products import Linear
from lgrpo.problems import Problem
from lgrpo.rollout import Request

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """Median and range of a few repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of the sides of the same repeat: what slows the machine down for a while slows both."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def other(policy: Policy, lend: bool) -> Any:
    """A copy of the model as the other sides have it: layers as transformers builds them, or ours, lent."""
    model = copy.deepcopy(policy.model)
    for module in model.modules():
        if type(module) is Linear and not lend:
            module.__class__ = nn.Linear
    return model


def alternately(sides: dict[str, Callable[[int], Any]], repeats: int, warm: bool = True) -> dict[str, list[Any]]:
    """Results of each side, called with the number of the repeat; who comes first changes from repeat to repeat.

    `warm` calls each side once before, with repeat -1, and forgets the result.
    """
    if warm:
        for side in sides.values():
            side(-1)
    results: dict[str, list[Any]] = {name: [] for name in sides}
    names = list(sides)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            results[name].append(sides[name](repeat))
    return results


class Seconds(NamedTuple):
    """How long something took."""

    wall: float
    cpu: float  # of this process, all threads: says the same as `wall` for one thread with a core of its own


def now(device: torch.device | str) -> Seconds:
    """The clocks, once the device has done all that it was asked to."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def since(began: Seconds, device: torch.device | str) -> Seconds:
    ended = now(device)
    return Seconds(ended.wall - began.wall, ended.cpu - began.cpu)


def timed(device: torch.device | str, action: Callable[[], Result]) -> tuple[Result, Seconds]:
    began = now(device)
    result = action()
    return result, since(began, device)


def tiny_settings(k: int, explicit: bool, **chosen: Any) -> plan.TrainSettings:
    recipe = plan.Setting("recipe", "tiny", "the arithmetic problems are its own")
    return plan.train_settings(recipe, k=k, explicit=explicit, **chosen)[0]


def load(source: str | None, device: str = "cpu") -> tuple[Policy, plan.TrainSettings]:
    """A checkpoint (None: the embedded model) and `tiny`'s settings for its kind of chain."""
    policy = session.load(source, device)
    return policy, tiny_settings(policy.card.k, not policy.latent)


def engine_of(policy: Policy, settings: plan.TrainSettings) -> Engine:
    return Engine(policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots)


def problems(count: int) -> list[Problem]:
    return list(islice(arithmetic.draw("test", 1), count))


def requests(policy: Policy, settings: plan.TrainSettings, asked: Sequence[Problem], seed: int) -> list[Request]:
    """One group of requests a problem, as training makes them."""
    latent = not settings.explicit
    return [
        Request(prompt, noise.row_key(seed, one.key, n), latent, settings.noise_scale, settings.temperature)
        for one in asked
        for prompt in [tuple(policy.prompt_ids(one.problem, latent))]
        for n in range(settings.group)
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry, the first to the left."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            entry.ljust(width) if column == 0 else entry.rjust(width)
            for column, (entry, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a number is worth nothing without."""
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # of the whole machine: above the threads used, others are at work
        "python": platform.python_version(),
    }
    for name in ("torch", "transformers", "bitsandbytes", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
