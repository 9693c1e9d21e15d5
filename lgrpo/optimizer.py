"""8-bit AdamW over weights whose exact float32 value is kept (docs/method.md, 5).

A step of 1e-6 on a bfloat16 weight of 0.02 rounds to nothing. Weights of lower precision therefore have a
float32 copy that the optimizer moves, and are rounded from it after each step; float32 weights are moved themselves.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

SAMPLE = 256  # weights looked at per tensor for `moved`


class StepReport(NamedTuple):
    grad_norm: float  # before clipping
    moved: float  # share of the exact weights that this step changed, from a sample of each tensor
    skipped: bool  # a non-finite gradient: nothing was changed


class Optimizer:
    """AdamW with bitsandbytes' 8-bit states; tensors below 4,096 elements keep float32 states."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        max_grad_norm: float = 1.0,
    ):
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of 4-bit kernels nobody asked for
        import bitsandbytes

        self.parameters = list(parameters)
        self.max_grad_norm = max_grad_norm
        self.exact = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float().clone()) for p in self.parameters
        ]
        self.inner = bitsandbytes.optim.AdamW8bit(self.exact, lr=lr, betas=betas, weight_decay=weight_decay)

    def set_lr(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self) -> StepReport:
        """Clip the gradients that have gathered in `parameters`, apply them and clear them."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(_norm(grads)) if grads else 0.0
        if not grads or not norm < float("inf"):
            self.clear()
            return StepReport(norm, 0.0, True)
        del grads  # each goes as soon as its float32 copy is made: all of them twice would be 6 bytes a weight
        scale = min(1.0, self.max_grad_norm / (norm + 1e-6))
        for parameter, exact in zip(self.parameters, self.exact, strict=True):
            if parameter.grad is not None:
                grad, parameter.grad = parameter.grad, None
                exact.grad = grad.float() * scale
        before = [_sample(exact) for exact in self.exact]
        self.inner.step()
        after = [_sample(exact) for exact in self.exact]
        for parameter, exact in zip(self.parameters, self.exact, strict=True):
            if parameter is not exact:
                parameter.copy_(exact)
        self.clear()
        changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
        return StepReport(norm, changed / sum(map(len, before)), False)

    def clear(self) -> None:
        for tensor in (*self.parameters, *self.exact):
            tensor.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs: optimizer states, and the exact weights where they are copies."""
        out: dict[str, Tensor] = {}
        for number, (parameter, exact) in enumerate(zip(self.parameters, self.exact, strict=True)):
            # Not state_dict(): bitsandbytes hides its quantized states in a nested dictionary there.
            for name, value in self.inner.state.get(exact, {}).items():
                out[f"{number}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
            if parameter is not exact:
                out[f"{number}.exact"] = exact.detach()
        return {name: tensor.clone().contiguous() for name, tensor in out.items()}

    @torch.no_grad()
    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Go on from `state()`. RuntimeError, with nothing changed, where it belongs to other parameters."""
        states: list[dict[str, Tensor]] = [{} for _ in self.exact]
        for key, tensor in saved.items():
            number, name = key.split(".")
            fits = int(number) < len(states) and (
                name not in ("exact", "state1", "state2") or tensor.shape == self.exact[int(number)].shape
            )
            if not fits:
                raise RuntimeError(f"the saved optimizer state {key} belongs to other parameters")
            states[int(number)][name] = tensor
        for parameter, exact, entries in zip(self.parameters, self.exact, states, strict=True):
            if "exact" in entries:
                exact.copy_(entries.pop("exact"))
                parameter.copy_(exact)
            if entries:
                self.inner.state[exact] = {
                    name: int(value) if name == "step" else value.to(exact.device, copy=True)
                    for name, value in entries.items()
                }


def _norm(grads: list[Tensor]) -> Tensor:
    """Norm of all gradients together, in float32: in bfloat16 it would carry three digits."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in grads]
    return torch.linalg.vector_norm(torch.stack(norms))


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)].clone()
