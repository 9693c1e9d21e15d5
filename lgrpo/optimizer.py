"""8-bit AdamW over weights whose exact float32 value is kept (docs/method.md, 5).

A step of 1e-6 on a bfloat16 weight of 0.02 rounds to nothing, so the 16 bits that a bfloat16 weight lacks are kept
beside it (exact.py); float32 weights are moved themselves. A tensor at a time is joined, moved and split again: what a
step needs besides is 8 bytes for each weight of the largest tensor, not of the model.

The update is bitsandbytes' own (arXiv 2110.02861): its functions are called rather than its class, which wants all
float32 weights and gradients at once and waits for the device after every tensor.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lgrpo.exact import join, split_

SAMPLE = 256  # weights looked at per tensor for `moved`
EPSILON = 1e-8
BLOCK = 256  # weights that share a scale in an 8-bit state: what bitsandbytes' kernels are compiled for
SMALL = 4096  # tensors below this many weights keep float32 states, as in bitsandbytes


class StepReport(NamedTuple):
    grad_norm: float  # before clipping
    moved: float  # share of the exact weights that this step changed, from a sample of each tensor
    skipped: bool  # a non-finite gradient: nothing was changed


@dataclass
class _Moments:
    """Adam's two averages of one tensor: uint8 with a float32 scale a block, or float32 without."""

    step: int
    state1: Tensor  # same shape as the weights
    state2: Tensor
    absmax1: Tensor | None = None  # [blocks]
    absmax2: Tensor | None = None


class Optimizer:
    """AdamW with 8-bit states over bfloat16 and float32 parameters."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        max_grad_norm: float = 1.0,
    ):
        self.parameters = list(parameters)
        self.lr, self.weight_decay, self.betas, self.max_grad_norm = lr, weight_decay, betas, max_grad_norm
        half = torch.bfloat16
        self.low = [torch.zeros_like(p, dtype=torch.int16) if p.dtype == half else None for p in self.parameters]
        self.moments = [_fresh(parameter) for parameter in self.parameters]
        self.bitsandbytes = _bitsandbytes()

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def exact(self, number: int) -> Tensor:
        """The exact value of a parameter, float32: itself, or a new tensor."""
        parameter, low = self.parameters[number].detach(), self.low[number]
        return parameter if low is None else join(parameter, low)

    @torch.no_grad()
    def step(self) -> StepReport:
        """Clip the gradients that have gathered in `parameters`, apply them and clear them."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(_norm(grads)) if grads else 0.0
        if not grads or not norm < float("inf"):
            self.clear()
            return StepReport(norm, 0.0, True)
        del grads  # each goes as soon as it was applied
        scale = min(1.0, self.max_grad_norm / (norm + 1e-6))
        changed, seen = [], 0
        for number, parameter in enumerate(self.parameters):
            grad, parameter.grad = parameter.grad, None
            exact = self.exact(number)
            before = _sample(exact)
            seen += len(before)
            if grad is None:
                continue
            self._apply(number, exact, grad.float().mul_(scale).contiguous())
            changed.append((_sample(exact) != before).sum())
            if (low := self.low[number]) is not None:
                split_(exact, parameter, low)
        return StepReport(norm, float(torch.stack(changed).sum()) / seen, False)

    def _apply(self, number: int, exact: Tensor, grad: Tensor) -> None:
        """Move `exact` by `grad`, both float32 and of one shape."""
        assert exact.dtype == grad.dtype == torch.float32
        functional, maps = self.bitsandbytes, _maps(exact.device)
        moments = self.moments[number]
        moments.step += 1
        (beta1, beta2), first, second = self.betas, moments.state1, moments.state2
        if moments.absmax1 is None:
            functional.optimizer_update_32bit(
                "adam", grad, exact, first, beta1, EPSILON, moments.step, self.lr, second, beta2,
                weight_decay=self.weight_decay,
            )  # fmt: skip
        else:
            functional.optimizer_update_8bit_blockwise(
                "adam", grad, exact, first, second, beta1, beta2, 0.0, 0.0, EPSILON, moments.step, self.lr,
                *maps, moments.absmax1, moments.absmax2, self.weight_decay,
            )  # fmt: skip

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs beside the weights, on the CPU: Adam's averages, and the bits bfloat16 lacks."""
        out: dict[str, Tensor] = {}
        for number, (moments, low) in enumerate(zip(self.moments, self.low, strict=True)):
            for name, value in vars(moments).items():
                if moments.step and value is not None:
                    out[f"{number}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
            if low is not None:
                out[f"{number}.low"] = low
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in out.items()}

    @torch.no_grad()
    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Go on from `state()`, over the weights of that moment.

        RuntimeError, with nothing changed, where it belongs to other parameters.
        """
        entries: list[dict[str, Tensor]] = [{} for _ in self.parameters]
        for key, tensor in saved.items():
            number, name = key.split(".")
            fits = int(number) < len(entries) and (
                tensor.shape == self.parameters[int(number)].shape
                if name in ("low", "state1", "state2")
                else name in ("step", "absmax1", "absmax2")
            )
            if not fits:
                raise RuntimeError(f"the saved optimizer state {key} belongs to other parameters")
            entries[int(number)][name] = tensor
        for place, (parameter, found) in enumerate(zip(self.parameters, entries, strict=True)):
            low, kept = self.low[place], found.pop("low", None)
            if kept is not None and low is not None:
                low.copy_(kept)
            elif kept is not None:  # a run in bfloat16 goes on in float32: its weights were read without these bits
                parameter.copy_(join(parameter.to(torch.bfloat16), kept.to(parameter.device)))
            if found:
                step = int(found.pop("step"))
                self.moments[place] = _Moments(step, **{n: t.to(parameter.device, copy=True) for n, t in found.items()})


def _fresh(weights: Tensor) -> _Moments:
    def zeros(dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(weights, dtype=dtype, requires_grad=False)

    if weights.numel() < SMALL:
        return _Moments(0, zeros(torch.float32), zeros(torch.float32))
    scales = [torch.zeros(-(-weights.numel() // BLOCK), device=weights.device) for _ in range(2)]
    return _Moments(0, zeros(torch.uint8), zeros(torch.uint8), *scales)


def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of 4-bit kernels nobody asked for
    from bitsandbytes import functional

    return functional


@lru_cache
def _maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the 256 values of an 8-bit state stand for: float32 [256], of the first average and of the second."""
    signed, unsigned = (_bitsandbytes().create_dynamic_map(signed=flag).to(device) for flag in (True, False))
    return signed, unsigned


def _norm(grads: list[Tensor]) -> Tensor:
    """Norm of all gradients together, in float32: in bfloat16 it would carry three digits."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in grads]
    return torch.linalg.vector_norm(torch.stack(norms))


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)].clone()
