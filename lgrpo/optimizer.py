"""8-bit AdamW over weights whose exact float32 value is kept (docs/method.md, 5).

A step of 1e-6 on a bfloat16 weight of 0.02 rounds to nothing, so the 16 bits that a bfloat16 weight lacks are kept
beside it (exact.py); float32 weights are moved themselves. A piece of a tensor at a time is joined, moved and split
again: what a step needs besides is 8 bytes for each of at most PIECE weights, not of the model.

Where memory runs out in the middle of a step, some weights have moved and others have not. All that a piece needs is
therefore there before its first weight moves, and a gradient stays until its whole tensor has moved: the piece that
failed is done again as smaller ones, and the step is the same to the bit.

The update is bitsandbytes' own (arXiv 2110.02861): its functions are called rather than its class, which wants all
float32 weights and gradients at once and waits for the device after every tensor.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lgrpo.budget import Report, needed, no_room, unheard
from lgrpo.exact import join, split_

SAMPLE = 256  # weights looked at per tensor for `moved`
EPSILON = 1e-8
PIECE = 1 << 24  # weights that are moved at a time: 128 MiB
BLOCK = 256  # weights that share a scale in an 8-bit state: what bitsandbytes' kernels are compiled for
SMALL = 4096  # tensors below this many weights keep float32 states, as in bitsandbytes
T = TypeVar("T")
_MOVING = "a piece of an optimiser step"


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
        report: Report = unheard,
    ):
        """`report("optimizer_piece", weights)` hears of a step that memory allowed in smaller pieces only.

        Raises UserError where the states do not fit.
        """
        self.parameters, self.report = list(parameters), report
        self.lr, self.weight_decay, self.betas, self.max_grad_norm = lr, weight_decay, betas, max_grad_norm
        self.skipped = 0  # steps that were left out one after the other, up to now
        assert all(parameter.is_contiguous() for parameter in self.parameters)
        half = torch.bfloat16
        with needed(f"the optimizer's states of {sum(p.numel() for p in self.parameters) / 1e6:,.1f} M weights"):
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
        """Clip the gradients that have gathered in `parameters`, apply them and clear them.

        Raises UserError, with some weights moved and others not, where memory has no room for the smallest piece.
        """
        if all(p.grad is None for p in self.parameters):
            return StepReport(0.0, 0.0, True)
        norm = _once_more(lambda: float(_norm([p.grad for p in self.parameters if p.grad is not None])))
        if not norm < float("inf"):
            return self.leave_out(norm)
        self.skipped = 0
        scale = min(1.0, self.max_grad_norm / (norm + 1e-6))
        before = _once_more(self._sample)
        smallest = PIECE
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                smallest = min(smallest, self._move(number, scale))
                parameter.grad = None
                self.moments[number].step += 1
        moved = _once_more(lambda: float((self._sample() != before).sum()))
        if smallest < PIECE:
            self.report("optimizer_piece", smallest)
        return StepReport(norm, moved / len(before), False)

    def leave_out(self, norm: float = float("nan")) -> StepReport:
        """Forget the gradients of a step whose loss, or gradient of this norm, is no finite number."""
        self.clear()
        self.skipped += 1
        return StepReport(norm, 0.0, True)

    def _sample(self) -> Tensor:
        """The exact values of some weights of each tensor, float32 [S]: a copy."""
        out = []
        for parameter, low in zip(self.parameters, self.low, strict=True):
            weights = _thinned(parameter.detach())
            out.append(weights if low is None else join(weights, _thinned(low)))
        return torch.cat(out)

    def _move(self, number: int, scale: float) -> int:
        """Move a parameter by its gradient times `scale`; returns the size of the smallest piece that took."""
        start, piece, size = 0, PIECE, self.parameters[number].numel()
        while start < size:
            try:
                self._move_piece(number, slice(start, min(start + piece, size)), scale)
                start += piece
                continue
            except torch.OutOfMemoryError:  # what the failed piece holds is freed at the end of this block
                if piece == BLOCK:
                    raise no_room(_MOVING) from None
            torch.cuda.empty_cache()
            piece = max(BLOCK, min(piece, 1 << (size - start - 1).bit_length()) // 2)
        return piece

    def _move_piece(self, number: int, place: slice, scale: float) -> None:
        """Move the weights at `place` of a flat tensor, from one bound of BLOCK weights to another or to the end.

        Nothing has changed where it raises OutOfMemoryError: on a GPU the update and `split_` need no memory.
        """
        parameter, low, moments = self.parameters[number], self.low[number], self.moments[number]
        assert parameter.grad is not None
        maps, weights = _maps(parameter.device), parameter.detach().view(-1)[place]
        exact = weights if low is None else join(weights, low.view(-1)[place])
        grad = parameter.grad.reshape(-1)[place].to(torch.float32, copy=True).mul_(scale)
        assert exact.dtype == torch.float32
        (beta1, beta2), step = self.betas, moments.step + 1
        first, second = moments.state1.view(-1)[place], moments.state2.view(-1)[place]
        if moments.absmax1 is None or moments.absmax2 is None:
            self.bitsandbytes.optimizer_update_32bit(
                "adam", grad, exact, first, beta1, EPSILON, step, self.lr, second, beta2,
                weight_decay=self.weight_decay,
            )  # fmt: skip
        else:
            blocks = slice(place.start // BLOCK, -(-place.stop // BLOCK))
            self.bitsandbytes.optimizer_update_8bit_blockwise(
                "adam", grad, exact, first, second, beta1, beta2, 0.0, 0.0, EPSILON, step, self.lr,
                *maps, moments.absmax1[blocks], moments.absmax2[blocks], self.weight_decay,
            )  # fmt: skip
        if low is not None:
            split_(exact, weights, low.view(-1)[place])

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
    """Its functions. What it would have compiled is not called here, and the compiler takes seconds to import."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of 4-bit kernels nobody asked for
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        from bitsandbytes import functional
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before
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


def _thinned(tensor: Tensor) -> Tensor:
    """Every so many-th element, about SAMPLE of them: a view."""
    flat = tensor.view(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]


def _once_more(work: Callable[[], T]) -> T:
    """`work()`, which changes nothing, again where it runs out of memory: it needs so little."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # what the failed attempt holds is freed at the end of this block
    torch.cuda.empty_cache()
    with needed(_MOVING):
        return work()
