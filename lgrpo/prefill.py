"""Prompts through the model once, whatever the number of their rollouts; and where each is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

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


class Shelf:
    """Which prompt slot holds which prompt, and which of its M places a row has. Knows no tensors.

    Prompts are known by their numbers 0, 1, ... and are read in this order, each once.
    """

    def __init__(self, slots: int, members: int, groups: dict[Prompt, int]):
        """`groups`: how many rows of each prompt will come, those of a prompt one after the other."""
        self.members = members
        self.prompts = list(groups)
        self.waiting = list(groups.values())  # rows to come, by prompt
        self.slot_of: dict[int, int] = {}
        self.held: list[int | None] = [None] * slots  # prompts
        self.places = [set(range(members)) for _ in range(slots)]  # free ones
        self.next = 0  # prompt to be read

    def free(self) -> list[int]:
        """Slots whose prompt has neither rows in flight nor rows to come."""
        return [
            slot
            for slot, prompt in enumerate(self.held)
            if prompt is None or (len(self.places[slot]) == self.members and not self.waiting[prompt])
        ]

    def take_next(self, count: int) -> dict[int, Prompt]:
        """Free slots for the next `count` prompts at most, by slot: they must be read now."""
        numbers = range(self.next, min(self.next + count, len(self.prompts)))
        taken = dict(zip(self.free(), numbers, strict=False))
        for slot, number in taken.items():
            self.held[slot], self.slot_of[number] = number, slot
        self.next += len(taken)
        return {slot: self.prompts[number] for slot, number in taken.items()}

    def seat(self, number: int) -> tuple[int, int] | None:
        """Slot and place for a row of a prompt; None where it is not held, or all its places are taken."""
        slot = self.slot_of.get(number)
        if slot is None or not self.places[slot]:
            return None
        self.waiting[number] -= 1
        place = min(self.places[slot])
        self.places[slot].remove(place)
        return slot, place

    def leave(self, slot: int, place: int) -> None:
        self.places[slot].add(place)

    @property
    def used(self) -> int:
        """One more than the last slot that holds a prompt."""
        return max((slot + 1 for slot, number in enumerate(self.held) if number is not None), default=0)

    @property
    def width(self) -> int:
        """Positions of the longest prompt held."""
        return max((len(self.prompts[number]) for number in self.held if number is not None), default=0)
