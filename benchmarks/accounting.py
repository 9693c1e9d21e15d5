"""Bytes that tensors hold at a time, by watching every operator: a peak as CUDA would count it, without a GPU.

Operators' own scratch memory is not seen, nor what an allocator rounds up.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Accounting(TorchDispatchMode):
    """Inside, `live` bytes are held by storages made since, `peak` at most so far. `known` tensors count as 0."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._watch(tensor, 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, Tensor):
                self._watch(made, made.untyped_storage().nbytes())
        return out

    def _watch(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def tensors_of(model: torch.nn.Module) -> list[Tensor]:
    """Weights, buffers and gradients."""
    weights = list(model.parameters())
    return [*weights, *model.buffers(), *(weight.grad for weight in weights if weight.grad is not None)]
