"""Prompts through the model once, whatever the number of their rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lgrpo.policy import Policy


@dataclass(frozen=True)
class Prefilled:
    """P prompts that have been read."""

    place: dict[tuple[int, ...], int]  # row of each prompt
    cache: DynamicCache  # keys and values, padded on the right
    hidden: Tensor  # [P, D], the last position's
    lengths: Tensor  # int64 [P]


def prefill(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> Prefilled:
    """Read different prompts together."""
    device = policy.device
    width = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[policy.pad_id] * (width - len(prompt))] for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    positions = torch.arange(width, device=device).expand(len(prompts), -1)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(prompts), -1, -1)
    cache = DynamicCache()
    hidden = policy.hidden(policy.embedding(ids), causal, positions, cache)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    return Prefilled({prompt: place for place, prompt in enumerate(prompts)}, cache, last, lengths)
