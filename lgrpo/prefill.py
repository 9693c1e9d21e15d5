"""Prompts through the model once, whatever the number of their rollouts; and where each is kept."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lgrpo.policy import Policy

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Prefilled:
    """P prompts that have been read."""

    cache: DynamicCache  # keys and values, padded on the right
    hidden: Tensor  # [P, D], the last position's
    lengths: Tensor  # int64 [P]


def prefill(policy: Policy, prompts: Sequence[Prompt]) -> Prefilled:
    """Read prompts together."""
    device = policy.device
    width = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[policy.pad_id] * (width - len(prompt))] for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    positions = torch.arange(width, device=device).expand(len(prompts), -1)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(prompts), -1, -1)
    cache = DynamicCache()
    hidden = policy.hidden(policy.embedding(ids), causal, positions, cache)
    return Prefilled(cache, hidden[torch.arange(len(prompts), device=device), lengths - 1], lengths)


class Shelf:
    """Which prompt slot holds which prompt, and which of its M places a row has. Knows no tensors."""

    def __init__(self, slots: int, members: int, requested: Iterable[Prompt]):
        """`requested`: the prompt of each request that will come."""
        self.members = members
        self.waiting = Counter(requested)
        self.prompts: list[Prompt | None] = [None] * slots
        self.places = [set(range(members)) for _ in range(slots)]  # free ones
        self._slot: dict[Prompt, int] = {}

    def holds(self, prompt: Prompt) -> bool:
        return prompt in self._slot

    def free(self) -> list[int]:
        """Slots whose prompt has neither rows in flight nor requests that wait."""
        return [
            slot
            for slot, prompt in enumerate(self.prompts)
            if prompt is None or (len(self.places[slot]) == self.members and not self.waiting[prompt])
        ]

    def put(self, slot: int, prompt: Prompt) -> None:
        """A free slot holds this prompt from now on."""
        if (before := self.prompts[slot]) is not None:
            del self._slot[before]
        self.prompts[slot], self._slot[prompt] = prompt, slot

    def seat(self, prompt: Prompt) -> tuple[int, int] | None:
        """Slot and place for a row of a prompt that is held; None while all its places are taken."""
        slot = self._slot[prompt]
        if not self.places[slot]:
            return None
        self.waiting[prompt] -= 1
        place = min(self.places[slot])
        self.places[slot].remove(place)
        return slot, place

    def leave(self, slot: int, place: int) -> None:
        self.places[slot].add(place)

    @property
    def used(self) -> int:
        """One more than the last slot that holds a prompt."""
        return max((slot + 1 for slot, prompt in enumerate(self.prompts) if prompt is not None), default=0)

    @property
    def width(self) -> int:
        """Positions of the longest prompt held."""
        return max((len(prompt) for prompt in self.prompts if prompt is not None), default=0)
