"""Stage 2 of Latent-SFT, walking alone: the encoder is gone, its chains are what the model learns to take itself.

The model reads `prompt <think> z1 .. zn </think> answer` under ordinary causal attention. At the position before each
latent it should put out that latent, at the others the next token (docs/method.md, 6).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lgrpo import noise, superposition
from lgrpo.budget import Budget
from lgrpo.chunks import log_probs_at
from lgrpo.latent_sft.examples import LATENT, PAD, Example, pad
from lgrpo.latent_sft.fit import Part, backward, trained
from lgrpo.latent_sft.labels import Labels, perturb
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.policy import Policy


class WalkLoss(NamedTuple):
    """Sums over a micro-batch; divide by the counts of the whole batch."""

    text: Tensor  # cross-entropy of `</think>`, answer and what ends the sequence
    chain: Tensor  # KL(soft label || model) of the latent steps


def walk_loss(policy: Policy, examples: Sequence[Example], indices: Tensor, labels: Tensor, ratio: int) -> WalkLoss:
    """Losses of a micro-batch: labels [R, K] over the tokens indices [R, K], the steps of one example after the other.

    The label is both the input mixture and the target of the KL, which runs over its K tokens; the model's
    log-probabilities are over the whole vocabulary.
    """
    device = policy.device
    indices, labels = indices.to(device), labels.to(device)
    rows = [[*e.prompt, *[LATENT] * e.latents(ratio), *e.response[:-1]] for e in examples]
    ids = pad(rows, PAD, device)
    latent = ids == LATENT
    embeds = policy.embedding(ids.clamp(min=0))
    embeds = embeds.masked_scatter(latent[..., None], superposition.embed(indices, labels, policy.embedding))
    size = ids.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril().expand(len(rows), -1, -1)
    hidden = policy.hidden(embeds, causal, torch.arange(size, device=device).expand_as(ids))

    before_latent = torch.zeros_like(latent)
    before_latent[:, :-1] = latent[:, 1:]
    chain = log_probs_at(policy, hidden[before_latent], indices)
    starts = [len(e.prompt) + e.latents(ratio) - 1 for e in examples]  # the last latent predicts `</think>`
    row = torch.tensor([n for n, e in enumerate(examples) for _ in e.response], device=device)
    at = torch.tensor([start + i for start, e in zip(starts, examples, strict=True) for i in range(len(e.response))])
    targets = torch.tensor([token for e in examples for token in e.response], device=device)
    text = log_probs_at(policy, hidden[row, at.to(device)], targets[:, None])
    return WalkLoss(-text.sum(), torch.xlogy(labels, labels).sum() - (labels * chain).sum())


def walk_part(policy: Policy, examples: Sequence[Example], labels: Labels, schedule: Schedule, budget: Budget) -> Part:
    """Learn to walk the labelled chains."""
    ratio, parameters = schedule.ratio, trained(policy, schedule)

    def width(example: Example) -> int:
        return len(example.prompt) + example.latents(ratio) + len(example.response)

    def walk(numbers: Sequence[int], step: int) -> dict[str, float]:
        batch = [examples[number] for number in numbers]
        indices, probabilities = labels.of(numbers)
        generator = torch.Generator().manual_seed(noise.row_key(schedule.seed, step, 0))
        noisy = perturb(indices, probabilities, policy.end_id, schedule.noise_scale, generator)
        steps = [e.latents(ratio) for e in batch]
        of_row = list(zip(indices.split(steps), noisy.split(steps), strict=True))
        steps_sum, text_sum = sum(steps), sum(len(e.response) for e in batch)

        def losses(part: list[int]) -> tuple[Tensor, Tensor]:
            rows = [of_row[number] for number in part]
            mixed, targets = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
            loss = walk_loss(policy, [batch[number] for number in part], mixed, targets, ratio)
            return loss.text / text_sum, loss.chain / steps_sum

        text, chain = backward(losses, [width(e) for e in batch], budget, parameters)
        return {"text": text, "chain": chain}

    return Part("walk", schedule.walk_steps, schedule.walk_lr, parameters, walk, width)
