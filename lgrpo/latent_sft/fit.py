"""One part of Latent-SFT: a loss, the parameters it moves, and a number of steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lgrpo.budget import Budget, Parts, Report, unheard
from lgrpo.latent_sft.examples import Example, cut
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.optimizer import Optimizer
from lgrpo.policy import Policy


@dataclass(frozen=True)
class Part:
    """`learn(numbers, step)` runs forward and backward over the examples of these numbers; returns what to show.

    `width(example)`: positions of its row in a micro-batch.
    """

    name: str
    steps: int
    lr: float
    parameters: list[nn.Parameter]
    learn: Callable[[Sequence[int], int], dict[str, float]]
    width: Callable[[Example], int]


def learning_rate(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Of a step (from 0): a linear rise over the share `warm_up` of the steps, then half a cosine down to 0."""
    rising = warm_up * steps
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def optimizer_of(part: Part, schedule: Schedule, report: Report = unheard) -> Optimizer:
    """Its states start anew with each part."""
    return Optimizer(part.parameters, part.lr, schedule.weight_decay, report=report)


def only_trained(parameters: Sequence[nn.Parameter], *modules: nn.Module) -> None:
    """Ask for the gradients of these parameters, and of no other in `modules`."""
    for module in modules:
        module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def backward(
    losses: Callable[[list[int]], tuple[Tensor, ...]],
    widths: Sequence[int],
    budget: Budget,
    parameters: Sequence[nn.Parameter],
) -> list[float]:
    """Back-propagate the sum of `losses(numbers)` of all micro-batches; returns each loss's total.

    widths: positions of each row of the batch. Where memory runs out, all of it is done again in smaller micro-batches
    without what had gathered in the gradients of `parameters`.
    """

    def work(parts: Parts) -> list[float]:
        totals: Tensor | None = None
        for numbers in parts:
            each = torch.stack(losses(numbers))
            each.sum().backward()
            totals = each.detach().double() + (0.0 if totals is None else totals)
        assert totals is not None
        return [float(total) for total in totals.tolist()]

    def undo() -> None:
        for parameter in parameters:
            parameter.grad = None

    return budget.spend(lambda positions: cut(widths, positions), work, undo)


def trained(policy: Policy, schedule: Schedule) -> list[nn.Parameter]:
    """The parameters of a model that Latent-SFT moves."""
    return list(policy.model.parameters()) if schedule.train_embedding else policy.trainable()
