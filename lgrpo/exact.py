"""The exact float32 value behind a bfloat16 weight: the weight's own 16 bits, and the 16 that it lacks beside them.

Two bytes a weight where a float32 copy takes four. A bfloat16 number is the upper half of a float32's bits. Rounding
half up in magnitude (not half to even) adds 0x8000 to these bits before it drops the lower half, so that the upper half
alone says how the lower half has to be read: as a signed number, in [-32768, 32767].

    float32 bits = (bfloat16 bits << 16) + low
"""

import torch
from torch import Tensor


def join(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 value of weight bfloat16 [...] and low int16 [...]: a new tensor, same shape."""
    assert weight.dtype == torch.bfloat16
    assert low.dtype == torch.int16
    bits = weight.detach().view(torch.int16).to(torch.int32)
    bits <<= 16
    bits += low
    return bits.view(torch.float32)


def split_(exact: Tensor, weight: Tensor, low: Tensor) -> None:
    """Write exact float32 [...] into weight bfloat16 [...] and low int16 [...]. The memory of `exact` is used up."""
    assert exact.dtype == torch.float32
    bits = exact.detach().view(torch.int32)
    low.copy_(bits)  # a cast to int16 keeps the lower half, signed
    bits += 0x8000
    bits >>= 16
    weight.detach().view(torch.int16).copy_(bits)
