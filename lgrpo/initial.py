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
        self.kept = [weight.detach().to("cpu", copy=True) for weight in weights]
        if any(parameter.is_cuda for parameter in trained):
            self.kept = [weight.pin_memory() for weight in self.kept]  # else a copy takes several times as long

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
        for parameter, kept in zip(self.trained, self.kept, strict=True):
            here = parameter.to("cpu", copy=True)  # not beside it: half an exchange could not be undone without memory
            parameter.copy_(kept)
            kept.copy_(here)
