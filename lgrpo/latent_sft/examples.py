"""Training examples as token ids, and which of them make up the batch of a step (docs/method.md, 6)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import LATENT

COMPRESS, PAD = -2, -3  # ids of what has no row in the embedding table; no real token can be mistaken for them
IGNORED = -100  # label of a position that carries no loss
__all__ = ["COMPRESS", "IGNORED", "LATENT", "PAD", "Encoded", "Example", "batch_numbers", "cut", "encode", "pad"]
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One problem: `prompt` ends with `<think>`, `response` starts with `</think>` and ends the sequence."""

    prompt: tuple[int, ...]
    chain: tuple[int, ...]  # tokens of the chain of thought, at least one
    response: tuple[int, ...]

    def latents(self, ratio: int) -> int:
        """Latent steps the chain becomes: one for every `ratio` tokens, and one for a rest."""
        return -(-len(self.chain) // ratio)


@dataclass(frozen=True)
class Encoded:
    """The examples, and how many problems were left out."""

    examples: list[Example]
    without_chain: int
    too_long: int


def encode(
    policy: Policy, problems: Sequence[Problem], ratio: int, max_prompt: int, max_chain: int, max_response: int
) -> Encoded:
    """Problems as ids, without those that have no chain, or a prompt, chain or latent response that is too long."""
    examples: list[Example] = []
    without_chain = too_long = 0
    encode_text = policy.tokenizer.encode
    for problem in problems:
        chain = encode_text((problem.cot or "").strip(), add_special_tokens=False)
        if not chain:
            without_chain += 1
            continue
        answer = encode_text(f"\\boxed{{{problem.answer}}}", add_special_tokens=False)
        response = (*policy.end_ids, *answer, policy.eos_ids[0])
        example = Example(tuple(policy.prompt_ids(problem.problem, latent=True)), tuple(chain), response)
        length = example.latents(ratio) + len(response)
        if len(example.prompt) > max_prompt or len(chain) > max_chain or length > max_response:
            too_long += 1
        else:
            examples.append(example)
    return Encoded(examples, without_chain, too_long)


def batch_numbers(count: int, size: int, key: str, step: int) -> list[int]:
    """Which of `count` examples make up the batch of a step (from 0): a function of these arguments alone.

    Each pass visits all examples once, in an order of its own; a batch may end one pass and begin the next.
    """
    places = range(step * size, (step + 1) * size)
    return [order(count, key, place // count)[place % count] for place in places]


@lru_cache(maxsize=4)
def order(count: int, key: str, epoch: int) -> list[int]:
    """The numbers below `count`, shuffled by (key, epoch)."""
    numbers = list(range(count))
    random.Random(f"{key} {epoch}").shuffle(numbers)
    return numbers


def cut(lengths: Sequence[int], positions: int) -> list[list[int]]:
    """Micro-batches: numbers of rows of similar length, one row or at most `positions` padded positions each."""
    parts: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if not parts or (len(parts[-1]) + 1) * lengths[number] > positions:
            parts.append([])
        parts[-1].append(number)
    return parts


def pad(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> Tensor:
    """Rows of different lengths as int64 [B, T], filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=device)
