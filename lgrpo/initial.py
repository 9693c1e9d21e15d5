"""The policy a run began with, which the KL refers to (docs/method.md, 5).

Only what training moves differs from the policy of today. These weights wait in the host's memory and trade places with
the trained ones once a batch, while the whole batch is scored: a device never holds two models.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Initial:
    """`weights` of the beginning for the parameters `trained`, in the same order."""

    def __init__(self, trained: Sequence[nn.Parameter], weights: Iterable[Tensor]):
        self.trained = trained
        pinned = any(parameter.is_cuda for parameter in trained)  # else a copy takes several times as long
        self.kept = [_on_host(weight, pinned) for weight in weights]
        self.spare = {_kind(weight): torch.empty_like(weight, pin_memory=pinned) for weight in self.kept}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model is the initial policy."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Through a spare tensor of each kind on the host, not on the device: half an exchange could not be undone.

        What a tensor waited in is the next one's spare, so nothing is copied within the host. The copies of a device
        follow one another there, and the host waits for the last alone.
        """
        for number, parameter in enumerate(self.trained):
            initial = self.kept[number]
            today = self.spare[_kind(initial)]
            today.copy_(parameter, non_blocking=True)
            parameter.copy_(initial, non_blocking=True)
            self.kept[number], self.spare[_kind(initial)] = today, initial
        if any(parameter.is_cuda for parameter in self.trained):
            torch.cuda.synchronize()


def _kind(weight: Tensor) -> tuple[torch.Size, torch.dtype]:
    return weight.shape, weight.dtype


def _on_host(weight: Tensor, pinned: bool) -> Tensor:
    kept = torch.empty_like(weight, device="cpu", pin_memory=pinned, requires_grad=False)
    return kept.copy_(weight.detach())
