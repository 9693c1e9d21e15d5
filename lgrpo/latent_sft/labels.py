"""Soft labels: the latent chain that the encoder wrote for each example, and the noise it is learnt with.

Docs/method.md, 6: K indices and K probabilities a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgrpo.budget import Budget, Parts
from lgrpo.latent_sft.encoder import Encoder
from lgrpo.latent_sft.examples import Example, cut
from lgrpo.policy import Policy
from lgrpo.runs.contents import compare
from lgrpo.superposition import NOISE_HIGH, NOISE_LOW

REDRAWS = 100  # of one step's noise, before `end_id` is taken out of its label instead


@dataclass(frozen=True)
class Labels:
    """Chains of N examples, one after the other, on the CPU: R steps in all."""

    indices: Tensor  # int32 [R, K]
    probabilities: Tensor  # float32 [R, K], descending, summing to 1
    starts: Tensor  # int64 [N + 1]: example n has the steps from starts[n] up to starts[n + 1]

    def of(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Steps of these examples, one after the other: indices int64 [r, K], probabilities [r, K]."""
        starts = self.starts
        steps = torch.cat([torch.arange(int(starts[number]), int(starts[number + 1])) for number in numbers])
        return self.indices[steps].long(), self.probabilities[steps]

    def entropy(self) -> float:
        """Mean entropy of a step, in nats: 0 for single tokens, log 2 for two even ones."""
        return float(-torch.xlogy(self.probabilities, self.probabilities).sum(1).mean())

    def save(self, path: Path) -> None:
        """Write them, and read them back. Raises OSError where they are not the same."""
        tensors = {"indices": self.indices, "probabilities": self.probabilities, "starts": self.starts}
        save_file(tensors, path)
        compare([path], tensors)

    @classmethod
    def load(cls, path: Path) -> "Labels":
        return cls(**load_file(path))


@torch.inference_mode()
def write_labels(
    encoder: Encoder, decoder: Policy, examples: Sequence[Example], budget: Budget, on_part: Callable[[int], None]
) -> Labels:
    """The encoder's chain for every example, in micro-batches. `on_part(done)` counts examples.

    A micro-batch that does not fit is done again in smaller ones, and so are those after it.
    """
    ratio = encoder.ratio
    steps = torch.tensor([0, *(example.latents(ratio) for example in examples)])
    starts = steps.cumsum(0)
    indices = torch.zeros(int(starts[-1]), encoder.k, dtype=torch.int32)
    probabilities = torch.zeros(int(starts[-1]), encoder.k)
    widths = [len(e.prompt) + len(e.chain) + e.latents(ratio) for e in examples]

    def cut_part(part: list[int], positions: int) -> Parts:
        return [[part[at] for at in smaller] for smaller in cut([widths[number] for number in part], positions)]

    def write(parts: Parts) -> None:
        for numbers in parts:
            latents = encoder.latents([examples[number] for number in numbers], decoder)
            place = torch.cat([torch.arange(int(starts[number]), int(starts[number + 1])) for number in numbers])
            indices[place] = latents.indices.to(indices)
            probabilities[place] = latents.weights.to(probabilities)

    done = 0
    for part in cut(widths, budget.positions):
        budget.spend(partial(cut_part, part), write, undo=lambda: None)
        done += len(part)
        on_part(done)
    return Labels(indices, probabilities, starts)


def perturb(indices: Tensor, probabilities: Tensor, end_id: int, scale: float, generator: torch.Generator) -> Tensor:
    """Labels under two-sided Gumbel noise, clipped to [-1.5, 3] and times `scale`: probabilities [R, K], summing to 1.

    The noise of a step is drawn again while it makes `end_id` the most likely token, which would end the chain; a label
    that insists loses `end_id`, unless it holds nothing else.
    """
    if scale == 0:
        return probabilities
    log_probs = probabilities.log()
    out = (log_probs + scale * _noise(log_probs, generator)).softmax(-1)
    for _ in range(REDRAWS):
        ends = _most_likely(indices, out) == end_id
        if not bool(ends.any()):
            return out
        again = log_probs[ends]
        out[ends] = (again + scale * _noise(again, generator)).softmax(-1)
    ends = _most_likely(indices, out) == end_id
    kept = out * (indices != end_id)
    total = kept.sum(-1, keepdim=True)
    return torch.where(ends[:, None] & (total > 0), kept / total.clamp(min=1e-30), out)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype).clamp(1e-7, 1 - 1e-7)
    return (-torch.log(-torch.log(uniform))).clamp(NOISE_LOW, NOISE_HIGH)


def _most_likely(indices: Tensor, probabilities: Tensor) -> Tensor:
    return indices.gather(1, probabilities.argmax(-1, keepdim=True))[:, 0]
