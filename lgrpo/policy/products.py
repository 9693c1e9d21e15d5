"""Linear layers on a CPU through oneDNN, where that is faster than what torch takes by itself.

torch hands float32 products to MKL, which uses AVX-512 on Intel's processors only: on AMD's oneDNN, part of the same
wheel, multiplies twice as fast (docs/log.md). Everywhere else, and for a few rows, a layer stays what it was.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 32  # rows: below that, oneDNN's call costs more than its product saves


def _pays() -> bool:
    """Whether this processor is one that MKL slows down; not known, and so no, where it does not say what it is."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


PAYS = _pays()
_oneDNN = torch.ops.mkldnn._linear_pointwise  # in every x86 wheel of torch; only asked where PAYS


class Linear(nn.Linear):
    """`nn.Linear`, its product by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def install(model: nn.Module) -> None:
    """Let all ordinary linear layers of a model use `linear`, where it pays. Weights and their names stay."""
    if PAYS:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., D] times weight [O, D] transposed, plus bias [O]: [..., O], as `torch.nn.functional.linear`.

    By oneDNN for float32 on a CPU where that pays and there are rows enough; differs from MKL by rounding only.
    """
    if not _pays_for(x, weight):
        return functional.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out: Tensor = _Product.apply(flat, weight)
        out = out if bias is None else out + bias
    else:
        out = _product(flat, weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def _pays_for(x: Tensor, weight: Tensor) -> bool:
    rows = x.numel() // max(x.shape[-1], 1)
    return PAYS and rows >= FEW and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


class _Product(torch.autograd.Function):
    """x [N, D] times weight [O, D] transposed, and its gradients: three products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        to_x = _product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = _product(grad.t(), x.t()) if ctx.needs_input_grad[1] else None
        return to_x, to_weight


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, D] @ weight.T [D, O] + bias [O]; x and weight may be transposed views."""
    out: Tensor = _oneDNN(x, weight, bias, "none", [], "")
    return out
