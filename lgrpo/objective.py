"""Group advantages and the clipped objective (docs/method.md, 4 and 5; Latent-GRPO, arXiv 2604.27998).

Functions of tensors alone. How it departs from plain GRPO:
1. rollouts that hit the length limit get no advantage (invalid-sample masking);
2. at the first response position only one of a group's positive rollouts, the most probable, keeps its
   advantage, for several chains averaged into one first superposition are none of them;
3. the loss is a mean over all response positions of the optimiser batch, not over rows: give the batch's
   count to each micro-batch and their sum is the same loss and gradient, however it was cut.
"""

import torch
from torch import Tensor

EPSILON = 1e-6
LOG_RATIO_LIMIT = 20.0  # exp() of a difference stays finite in float32


def group_advantages(rewards: Tensor, valid: Tensor, group: Tensor, keep_invalid_in_statistics: bool) -> Tensor:
    """Normalised rewards within each group, 0 for invalid rollouts (docs/method.md, 4).

    rewards float [N]; valid bool [N]; group int64 [N], any labels. With `keep_invalid_in_statistics` invalid
    rollouts count in mean and standard deviation (n - 1), else they are left out. Of a single counted rollout
    the mean is taken as 0 and the deviation as 1. Returns float [N].
    """
    assert rewards.dim() == 1
    assert rewards.shape == valid.shape == group.shape
    _, place = group.unique(return_inverse=True)
    groups = int(place.max()) + 1 if len(place) else 0
    counted = torch.ones_like(valid) if keep_invalid_in_statistics else valid
    weight = counted.to(rewards.dtype)

    def per_group(values: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=rewards.dtype, device=rewards.device).index_add(0, place, values)

    count = per_group(weight)
    mean = per_group(rewards * weight) / count.clamp(min=1)
    variance = per_group((rewards - mean[place]) ** 2 * weight) / (count - 1).clamp(min=1)
    single = count == 1
    mean = torch.where(single, 0.0, mean)
    deviation = torch.where(single, 1.0, variance.sqrt())
    advantages = (rewards - mean[place]) / (deviation[place] + EPSILON)
    return torch.where(valid, advantages, torch.zeros_like(advantages))


def first_token_winners(advantages: Tensor, mean_logprob: Tensor, group: Tensor) -> Tensor:
    """Where the first response position keeps its advantage (docs/method.md, 4): bool [N].

    advantages, mean_logprob float [N] (mean over the response, old policy); group int64 [N]. Of a group's rollouts with
    positive advantage only the most probable keeps it (the first of equals); all others keep theirs.
    """
    assert advantages.shape == mean_logprob.shape == group.shape
    keeps = advantages <= 0
    for label in group.unique():
        positive = ((group == label) & ~keeps).nonzero()[:, 0]
        if len(positive):
            keeps[positive[mean_logprob[positive].argmax()]] = True
    return keeps


def ppo_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    dual_clip: float = 3.0,
    count: int | None = None,
) -> Tensor:
    """Clipped policy loss, mean over the response positions: a scalar to minimise (docs/method.md, 5).

    logprob, old_logprob, advantage [N, T]; mask bool [N, T], True at response positions. `count` is the number
    of positions of the whole optimiser batch where this is one micro-batch of it; by default mask.sum().
    """
    ratio = torch.exp((logprob - old_logprob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    loss = -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    loss = torch.where(advantage < 0, torch.min(loss, -dual_clip * advantage), loss)
    return masked_mean(loss, mask, count)


def kl_penalty(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """KL to the reference policy, k3 estimator (docs/method.md, 5): same shape, clamped to [-10, 10]."""
    difference = (ref_logprob - logprob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.exp(difference) - difference - 1).clamp(-10, 10)


def masked_mean(values: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
    """Sum of `values` where `mask`, over `count` (by default the mask's own): a scalar."""
    total = torch.where(mask, values, torch.zeros_like(values)).sum()
    return total / max(int(mask.sum()) if count is None else count, 1)
