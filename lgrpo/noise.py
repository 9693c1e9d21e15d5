"""Counter-based random numbers: a draw is a pure function of where it is used.

Every number is a hash of (row key, step, token), and a row key is a hash of (seed, problem, sample). So a
rollout is the same whatever other rows share its batch, in whatever order, at whatever batch size; and a
short list of tokens sees the same noise as the whole vocabulary would.
"""

import hashlib

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15  # golden ratio: consecutive steps land far apart
_TOKEN = 0xD1B54A32D192ED03
BITS = 23  # of a float32 with its half: (2**23 - 0.5) is exact, (2**24 - 0.5) is not


def row_key(seed: int, problem: int, sample: int) -> int:
    """Key of one rollout: a signed 64-bit hash of (seed, problem, sample number)."""
    digest = hashlib.blake2b(f"{seed}/{problem}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniform(keys: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), never 0 or 1.

    keys: int64 [N], steps: int64 [N], tokens: int64 [N, M]. Returns float32 [N, M], 23 random bits each:
    with 24 the largest would round to 1, whose Gumbel noise is infinite.
    """
    assert keys.shape == steps.shape == tokens.shape[:1], (keys.shape, steps.shape, tokens.shape)
    row = _mix(keys + steps * _signed(_STEP))
    bits = _shift(_mix(row[:, None] + tokens * _signed(_TOKEN)), 64 - BITS)
    return (bits.to(torch.float32) + 0.5) / 2**BITS


def gumbel(keys: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 [N, M]; arguments as in `uniform`."""
    return -torch.log(-torch.log(uniform(keys, steps, tokens)))


def _mix(z: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014) on int64, which wraps around like uint64."""
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64's own is arithmetic and would drag the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
