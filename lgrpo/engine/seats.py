"""Who sits where: the sizes of the engine's buffers, and which prompt and rollout has which slot. Knows no tensors."""

from dataclasses import dataclass
from typing import NamedTuple

from lgrpo.rollout import Request

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """What a call of the engine needs room for."""

    slots: int  # rows in flight, S
    prompts: int  # different prompts among them, P
    members: int  # rows of one prompt, M
    longest_prompt: int  # positions

    @classmethod
    def of(cls, slots: int, rows: int, prompts: int, most: int, longest_prompt: int) -> "Size":
        """For `slots` of `rows` rollouts in all, of so many prompts, `most` of one.

        Prompts are held for half as many rows again: some rows of a group end late.
        """
        slots = min(slots, rows)
        held = min(prompts, -(-3 * slots * prompts // (2 * rows)) + 1)
        return cls(slots, held, min(slots, most, max(1, 4 * slots // held)), longest_prompt)

    def columns(self, max_response: int) -> int:
        """Columns of keys and values."""
        return (self.prompts + 1) * self.longest_prompt + self.slots * (max_response + 1)

    def fits(self, other: "Size") -> bool:
        """Whether buffers of this size serve where `other` is needed."""
        return (
            self.slots >= other.slots
            and self.prompts >= other.prompts
            and self.members >= other.members
            and self.longest_prompt >= other.longest_prompt
        )

    def copes(self, other: "Size") -> bool:
        """Whether they at least do, with a quarter of the rows at a time or more.

        Rows come prompt by prompt, and one whose prompt has no place left keeps back all that come after it.
        """
        at_once = self.members if self.members < other.members else min(self.slots, self.prompts * other.members)
        return 4 * at_once >= other.slots and self.longest_prompt >= other.longest_prompt


class Arrival(NamedTuple):
    """A request that waits for a slot."""

    number: int
    request: Request
    prompt: int  # its number, see Shelf


class Owner(NamedTuple):
    """Whose rollout a slot makes."""

    number: int  # of the request
    request: Request
    prompt_slot: int
    place: int


class Shelf:
    """Which prompt slot holds which prompt, and which of its M places a row has.

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
