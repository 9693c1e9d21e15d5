"""The record that crosses from sampling to learning."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

LATENT = -1  # in `Rollout.tokens`: this position holds a superposition


@dataclass(frozen=True)
class Request:
    """One rollout to make: ids in, no text."""

    prompt: tuple[int, ...]
    key: int  # noise.row_key(seed, problem, sample)
    latent: bool = True  # start inside a latent chain; False: ordinary tokens from the start
    noise_scale: float = 1.0  # 0: noise-free chain (Pass@1)
    temperature: float = 0.6  # of the explicit tokens; 0: the most probable one


class Part(NamedTuple):
    """The n positions that a rollout in flight has gained, on the CPU; fields as in `Rollout`."""

    tokens: Tensor  # int64 [n]
    indices: Tensor  # int64 [n, K]
    scores: Tensor  # float32 [n, K]


@dataclass(frozen=True)
class Rollout:
    """One response of T positions, on the CPU. Latent positions hold LATENT in `tokens`."""

    prompt: tuple[int, ...]
    tokens: Tensor  # int64 [T]
    indices: Tensor  # int64 [T, K], superposition of a latent position; 0 at hard ones
    scores: Tensor  # float32 [T, K], ordered; softmax(scores / tau) are the weights; 0 at hard ones
    logprob: Tensor  # float32 [T], as the engine saw it: surrogate, or log p at the explicit temperature
    valid: bool  # ended by itself, within the length limit
    broken: bool = False  # stopped where the model's logits were no numbers; its last position is padding

    @property
    def length(self) -> int:
        """Latent steps and hard tokens together."""
        return len(self.tokens)

    @property
    def latent_length(self) -> int:
        return int((self.tokens == LATENT).sum())

    @property
    def explicit_length(self) -> int:
        return self.length - self.latent_length

    @property
    def hard_tokens(self) -> list[int]:
        """The ordinary tokens, in order; after a latent chain they begin with the end marker."""
        return [int(token) for token in self.tokens[self.tokens != LATENT]]
