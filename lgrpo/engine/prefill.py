"""Prompts through the model once, whatever the number of their rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lgrpo.engine.seats import Prompt
from lgrpo.policy import Policy


@dataclass(frozen=True)
class Prefilled:
    """P prompts that have been read."""

    cache: DynamicCache  # keys and values, padded on the right
    hidden: Tensor  # [P, D], the last position's
    lengths: Tensor  # int64 [P]


def prefill(policy: Policy, prompts: Sequence[Prompt]) -> Prefilled:
    """Read prompts together; what they begin with in common, template and instruction, is read once."""
    device = policy.device
    width, common = max(map(len, prompts)), _common(prompts)
    rows = [(*prompt, *[policy.pad_id] * (width - len(prompt))) for prompt in prompts]
    ids = torch.tensor(rows, device=device)
    lengths = torch.tensor(list(map(len, prompts)), device=device)
    positions = torch.arange(width, device=device)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    cache = DynamicCache()
    if common:
        start = slice(0, common)
        policy.hidden(policy.embedding(ids[:1, start]), causal[None, start, start], positions[None, start], cache)
        cache.batch_repeat_interleave(len(prompts))
    embeds, every = policy.embedding(ids[:, common:]), (len(prompts), -1)
    hidden = policy.hidden(
        embeds, causal[common:].expand(*every, -1), positions[common:].expand(every), cache, positions.expand(every)
    )
    return Prefilled(cache, hidden[torch.arange(len(prompts), device=device), lengths - 1 - common], lengths)


def _common(prompts: Sequence[Prompt]) -> int:
    """Positions that all prompts begin with; each keeps one of its own, whose state predicts its response."""
    if len(prompts) == 1:
        return 0
    same = takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1)
