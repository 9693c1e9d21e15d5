"""One part of Latent-SFT: a loss, the parameters it moves, and a number of steps."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lgrpo.latent_sft.schedule import Schedule
from lgrpo.optimizer import Optimizer
from lgrpo.policy import Policy


@dataclass(frozen=True)
class Part:
    """`learn(numbers, step)` runs forward and backward over the examples of these numbers; returns what to show."""

    name: str
    steps: int
    lr: float
    parameters: list[nn.Parameter]
    learn: Callable[[Sequence[int], int], dict[str, float]]


def learning_rate(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Of a step (from 0): a linear rise over the share `warm_up` of the steps, then half a cosine down to 0."""
    rising = warm_up * steps
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def optimizer_of(part: Part, schedule: Schedule) -> Optimizer:
    """Its states start anew with each part."""
    return Optimizer(part.parameters, part.lr, schedule.weight_decay)


def only_trained(parameters: Sequence[nn.Parameter], *modules: nn.Module) -> None:
    """Ask for the gradients of these parameters, and of no other in `modules`."""
    for module in modules:
        module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def backward(parts: Iterable[tuple[Tensor, ...]]) -> list[float]:
    """Back-propagate the sum of each micro-batch's losses; returns each loss's total."""
    totals: list[float] = []
    for losses in parts:
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        total.backward()
        values = [float(loss.detach()) for loss in losses]
        totals = [a + b for a, b in zip(totals, values, strict=True)] if totals else values
    return totals


def trained(policy: Policy, schedule: Schedule) -> list[nn.Parameter]:
    """The parameters of a model that Latent-SFT moves."""
    return list(policy.model.parameters()) if schedule.train_embedding else policy.trainable()
