"""Attention masks as an architecture wants them."""

from typing import Any

import torch
from torch import Tensor


def additive_masks(config: Any, allowed: Tensor, positions: Tensor, keys: Tensor, dtype: torch.dtype) -> Any:
    """What is added to attention scores: [B, 1, T, S] for all layers, or one by kind of layer, where kinds differ.

    config: the text model's; allowed bool [B, T, S], True = may attend; positions int64 [B, T] of the queries and keys
    int64 [B, S], which a sliding window counts by.
    The lowest finite number rather than -inf, which turns fully masked rows into NaN, and rather than booleans, which
    eager attention silently adds as 0 and 1.
    """
    full = _additive(allowed, dtype)
    window = getattr(config, "sliding_window", None)
    if window is None:
        return full
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return full
    sliding = _additive(allowed & (positions[:, :, None] - keys[:, None, :] < window), dtype)
    return sliding if kinds is None else {"full_attention": full, "sliding_attention": sliding}


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)[:, None]
