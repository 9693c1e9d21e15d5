"""Advantages, first-token selection, PPO and KL against hand-worked numbers and the plain reference."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from lgrpo.objective import first_token_winners, group_advantages, kl_penalty, ppo_loss

f64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


ONE_GROUP = torch.zeros(4, dtype=torch.int64)


# --- advantages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_advantages_by_hand(keep: bool) -> None:
    """Rewards 1 0 0 1: mean 1/2, deviation sqrt(4 * 1/4 / 3) with n - 1."""
    out = group_advantages(tensor(1, 0, 0, 1), flags(1, 1, 1, 1), ONE_GROUP, keep)
    a = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert out.tolist() == pytest.approx([a, -a, -a, a], abs=1e-12)


def test_an_invalid_rollout_is_left_out_of_the_statistics_as_the_paper_says() -> None:
    """Valid rewards 1 0 0: mean 1/3, deviation sqrt((4 + 1 + 1) / 9 / 2) = sqrt(1/3)."""
    out = group_advantages(tensor(1, 0, 0, 0), flags(1, 1, 1, 0), ONE_GROUP, False)
    std = math.sqrt(1 / 3) + 1e-6
    assert out.tolist() == pytest.approx([(2 / 3) / std, -(1 / 3) / std, -(1 / 3) / std, 0.0], abs=1e-12)


def test_an_invalid_rollout_is_kept_in_the_statistics_as_the_low_release_does() -> None:
    """All four rewards 1 0 0 0: mean 1/4, deviation sqrt((9 + 1 + 1 + 1) / 16 / 3) = 1/2; then zeroed."""
    out = group_advantages(tensor(1, 0, 0, 0), flags(1, 1, 1, 0), ONE_GROUP, True)
    std = 0.5 + 1e-6
    assert out.tolist() == pytest.approx([0.75 / std, -0.25 / std, -0.25 / std, 0.0], abs=1e-12)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_one_valid_rollout_has_mean_0_and_deviation_1(reward: float) -> None:
    out = group_advantages(tensor(reward, 1, 0, 1), flags(1, 0, 0, 0), ONE_GROUP, False)
    assert out.tolist() == pytest.approx([reward / (1 + 1e-6), 0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("keep", [True, False])
def test_no_valid_rollout_means_no_advantage(keep: bool) -> None:
    assert group_advantages(tensor(1, 0, 1, 0), flags(0, 0, 0, 0), ONE_GROUP, keep).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_teach_nothing(reward: float, keep: bool) -> None:
    out = group_advantages(torch.full((4,), reward), flags(1, 1, 1, 1), ONE_GROUP, keep)
    assert out.tolist() == [0, 0, 0, 0]


def test_a_group_of_one_is_finite() -> None:
    out = group_advantages(tensor(1), flags(1), torch.zeros(1, dtype=torch.int64), True)
    assert out.tolist() == pytest.approx([1 / (1 + 1e-6)], abs=1e-12)


@pytest.mark.parametrize("keep", [True, False])
def test_groups_in_any_order_with_any_labels_equal_the_reference(keep: bool) -> None:
    group = torch.randint(0, 7, (60,)) * 1000 - 3
    rewards, valid = (torch.rand(60) < 0.5).double(), torch.rand(60) < 0.6
    out = group_advantages(rewards, valid, group, keep)
    expected = reference.group_advantages(rewards.tolist(), valid.tolist(), group.tolist(), keep)
    assert out.tolist() == pytest.approx(expected, abs=1e-12)


# --- first-token selection -----------------------------------------------------------------------------------------


def test_of_the_positive_rollouts_only_the_most_probable_keeps_its_first_position() -> None:
    keeps = first_token_winners(tensor(1, 1, -1, 1), tensor(-2.0, -1.5, -0.1, -1.8), ONE_GROUP)
    assert keeps.tolist() == [False, True, True, False]  # the release would zero the negative one too


def test_negative_and_zero_advantages_keep_theirs() -> None:
    keeps = first_token_winners(tensor(-1, -2, 0, -1), tensor(-1, -2, -3, -4), ONE_GROUP)
    assert keeps.tolist() == [True, True, True, True]


def test_a_tie_has_one_winner() -> None:
    keeps = first_token_winners(tensor(1, 1, 1, 0), tensor(-3, -2, -2, -2), ONE_GROUP)
    assert keeps.tolist() == [False, True, False, True]


def test_each_group_has_its_own_winner() -> None:
    keeps = first_token_winners(tensor(1, 1, 1, 1), tensor(-1, -9, -2, -8), torch.tensor([4, 2, 4, 2]))
    assert keeps.tolist() == [True, False, False, True]


def test_first_token_selection_equals_the_reference() -> None:
    group, advantages, mean = torch.randint(0, 6, (50,)), torch.randn(50), torch.randn(50)
    advantages[::7] = 0
    expected = reference.first_token_winners(advantages.tolist(), mean.tolist(), group.tolist())
    assert first_token_winners(advantages, mean, group).tolist() == expected
    assert 0 < sum(expected) < 50


# --- PPO -----------------------------------------------------------------------------------------------------------


def one(ratio: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Loss of a single position at this ratio, and its gradient with respect to the log-probability."""
    logprob = torch.tensor([[math.log(ratio)]], dtype=f64, requires_grad=True)
    loss = ppo_loss(logprob, torch.zeros_like(logprob), tensor(advantage)[None], flags(1)[None], **options)
    loss.backward()
    assert logprob.grad is not None
    return float(loss.detach()), float(logprob.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped above: 1.2 * 2
        (0.5, 2.0, -1.0, -1.0),  # a good one that lost probability is not clipped
        (1.0, -2.0, 2.0, 2.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped below: 0.8 * 2
        (1.5, -2.0, 3.0, 3.0),  # a bad one that gained probability is not clipped
        (2.9, -2.0, 5.8, 5.8),
        (4.0, -2.0, 6.0, 0.0),  # dual clip: 3 * 2
        (4.0, 2.0, -2.4, 0.0),  # no dual clip for a positive advantage
    ],
)
def test_ppo_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert one(ratio, advantage) == pytest.approx((loss, slope), abs=1e-12)


def test_clips_are_arguments() -> None:
    assert one(1.5, 1.0, clip=0.4)[0] == pytest.approx(-1.4)
    assert one(4.0, -1.0, dual_clip=2.0)[0] == pytest.approx(2.0)


def random_batch(rows: int = 8, columns: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logprob = (torch.randn(rows, columns, dtype=f64) * 0.5).requires_grad_()
    old, advantage = torch.randn(rows, columns, dtype=f64) * 0.5, torch.randn(rows, columns, dtype=f64)
    mask = torch.arange(columns) < torch.randint(1, columns + 1, (rows, 1))
    return logprob, old, advantage, mask


def test_ppo_is_a_mean_over_positions_not_over_rows() -> None:
    """Rows of three and one positions, ratio 1: (3 * 1 + 1 * 5) / 4, where a mean over rows gives 3."""
    zeros, mask = torch.zeros(2, 3, dtype=f64), flags(1, 1, 1, 1, 0, 0).view(2, 3)
    advantage = tensor(-1, -1, -1, -5, -9, -9).view(2, 3)
    assert float(ppo_loss(zeros, zeros, advantage, mask)) == pytest.approx(2.0)


def test_ppo_equals_the_reference() -> None:
    logprob, old, advantage, mask = random_batch(30)
    expected = reference.ppo_loss(logprob.tolist(), old.tolist(), advantage.tolist(), mask.tolist())
    assert float(ppo_loss(logprob, old, advantage, mask).detach()) == pytest.approx(expected, abs=1e-12)


def test_positions_outside_the_mask_have_no_gradient() -> None:
    logprob, old, advantage, mask = random_batch()
    ppo_loss(logprob, old, advantage, mask).backward()
    assert logprob.grad is not None
    assert bool((logprob.grad[~mask] == 0).all())
    assert bool((logprob.grad[mask] != 0).any())


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_micro_batches_change_neither_loss_nor_gradient(pieces: int) -> None:
    """Micro-batches hold different numbers of positions; each is told the batch's count."""
    logprob, old, advantage, mask = random_batch()
    whole = ppo_loss(logprob, old, advantage, mask)
    (expected,) = torch.autograd.grad(whole, logprob)
    total, count = 0.0, int(mask.sum())
    for rows in torch.arange(8).chunk(pieces):
        part = ppo_loss(logprob[rows], old[rows], advantage[rows], mask[rows], count=count)
        part.backward()
        total += float(part.detach())
    assert total == pytest.approx(float(whole.detach()), abs=1e-14)
    assert torch.allclose(logprob.grad, expected, atol=1e-15)  # type: ignore[arg-type]


def test_an_empty_mask_is_a_loss_of_zero() -> None:
    logprob, old, advantage, mask = random_batch()
    loss = ppo_loss(logprob, old, advantage, torch.zeros_like(mask))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((logprob.grad == 0).all())  # type: ignore[union-attr]


def test_huge_ratios_stay_finite_in_float32() -> None:
    logprob = torch.tensor([[500.0, 500.0, -500.0, -500.0]], requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss = ppo_loss(logprob, torch.zeros(1, 4), advantage, torch.ones(1, 4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((-1.2 + 3.0 - 0.0 + 0.8) / 4, abs=1e-6)
    assert bool(logprob.grad.isfinite().all())  # type: ignore[union-attr]


# --- KL ------------------------------------------------------------------------------------------------------------


def test_kl_by_hand() -> None:
    out = kl_penalty(tensor(0.0, -1.0, 1.0), tensor(0.0, 0.0, 0.0))
    assert out.tolist() == pytest.approx([0.0, math.e - 1 - 1, math.exp(-1) + 1 - 1], abs=1e-12)


def test_kl_equals_the_reference_and_is_clamped() -> None:
    logprob, ref = torch.randn(100, dtype=f64) * 3, torch.randn(100, dtype=f64) * 3
    expected = [reference.kl(a, b) for a, b in zip(logprob.tolist(), ref.tolist(), strict=True)]
    assert kl_penalty(logprob, ref).tolist() == pytest.approx(expected, abs=1e-12)
    assert max(expected) == 10


@pytest.mark.parametrize("difference", [30.0, 1000.0, -1000.0, 3e38, -3e38])
def test_kl_does_not_overflow(difference: float) -> None:
    logprob = torch.zeros(1, requires_grad=True)
    out = kl_penalty(logprob, torch.tensor([difference]))
    out.sum().backward()
    assert out.tolist() == [10.0]
    assert bool(logprob.grad.isfinite().all())  # type: ignore[union-attr]


def test_kl_gradient_pulls_towards_the_reference() -> None:
    """d/dlogprob of k3 = 1 - exp(ref - logprob)."""
    logprob = tensor(-0.5, 0.5).requires_grad_()
    kl_penalty(logprob, torch.zeros(2, dtype=f64)).sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([1 - math.exp(0.5), 1 - math.exp(-0.5)], abs=1e-12)


# --- finite differences --------------------------------------------------------------------------------------------


def slopes(value: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> list[float]:
    """Of a scalar function, by moving each number a little both ways."""
    out = []
    for place in range(at.numel()):
        moved = torch.zeros_like(at)
        moved.view(-1)[place] = step
        out.append(float(value(at + moved) - value(at - moved)) / (2 * step))
    return out


@pytest.mark.parametrize("count", [None, 50])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(count: int | None) -> None:
    """Of a batch with every case in it: inside and beyond both clips, either sign, beyond the dual clip."""
    logprob, old, advantage, mask = random_batch(30, 6)
    old = old * 3  # ratios from e^-5 to e^5
    ratio = (logprob - old).exp().detach()[mask]
    bad = advantage[mask] < 0
    for case in (ratio > 1.2, ratio < 0.8, (ratio > 0.8) & (ratio < 1.2)):
        assert bool((case & bad).any())
        assert bool((case & ~bad).any())
    assert bool(((ratio > 3) & bad).any())
    (gradient,) = torch.autograd.grad(ppo_loss(logprob, old, advantage, mask, count=count), logprob)
    expected = slopes(lambda x: ppo_loss(x, old, advantage, mask, count=count), logprob.detach())
    assert gradient.flatten().tolist() == pytest.approx(expected, abs=1e-8)


def test_the_gradient_of_the_kl_is_that_of_finite_differences() -> None:
    logprob, there = (torch.randn(60, dtype=f64) * 2).requires_grad_(), torch.randn(60, dtype=f64) * 2
    value = kl_penalty(logprob, there)
    assert float(value.detach().max()) == 10  # its clamp too
    (gradient,) = torch.autograd.grad(value.sum(), logprob)
    expected = slopes(lambda x: kl_penalty(x, there).sum(), logprob.detach())
    assert gradient.tolist() == pytest.approx(expected, abs=1e-6)
