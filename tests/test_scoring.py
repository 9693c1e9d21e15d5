"""Re-scored rollouts against the plain forward and the engine, and the whole loss against finite differences."""

from collections.abc import Sequence
from dataclasses import replace

import models
import pytest
import reference
import torch
from models import LATENTS, LIMIT, engine, mixed_requests, prompt
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lgrpo import chunks, noise, scoring
from lgrpo.objective import ppo_loss
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Request, Rollout
from lgrpo.superposition import LatentSettings

TEMPERATURE = 0.6  # of the engine's explicit tokens


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    models.compute_in_float64(monkeypatch)


def grouped(policy: Policy, groups: int = 3, size: int = 4) -> list[Rollout]:
    """Rollouts of `groups` prompts of different lengths, those of a prompt in a row as `pack` wants them."""
    requests = [
        Request(prompt(7 + 2 * g), noise.row_key(0, g, n), latent=n != size - 1)
        for g in range(groups)
        for n in range(size)
    ]
    return engine(policy).generate(requests)


def score(
    policy: Policy,
    rollouts: Sequence[Rollout],
    advantage: Tensor | None = None,
    tau: float = 1.0,
    columns: int = scoring.COLUMNS,
    weighted: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and mask, both [N, T]."""
    batch = scoring.collate(policy, rollouts, tau, columns)
    components, hard = scoring.component_logprobs(policy, batch, TEMPERATURE)
    return scoring.logprob(components, hard, batch, LatentSettings(tau=tau, weighted=weighted), advantage), batch.mask


def rows_of(values: Tensor, mask: Tensor) -> list[list[float]]:
    return [row[counted].tolist() for row, counted in zip(values.detach(), mask, strict=True)]


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_rollout_log_probabilities_equal_rescored_ones(architecture: str) -> None:
    """The engine's cached steps against packed rows: with a sliding window of 5 too."""
    policy = models.policy(architecture)
    rollouts = grouped(policy)
    ours, mask = score(policy, rollouts)
    assert mask.sum(1).tolist() == [rollout.length for rollout in rollouts]
    for rescored, rollout in zip(rows_of(ours, mask), rollouts, strict=True):
        assert rescored == pytest.approx(rollout.logprob.tolist(), abs=1e-9)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_rescored_log_probabilities_equal_a_plain_forward_of_each_rollout(architecture: str) -> None:
    policy = models.policy(architecture)
    rollouts = grouped(policy, 2, 3)
    ours, mask = score(policy, rollouts, columns=35)
    for rescored, rollout in zip(rows_of(ours, mask), rollouts, strict=True):
        expected = [float(x.detach()) for x in reference.rescore(policy, rollout, 1.0, TEMPERATURE)]
        assert rescored == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("columns", "most"), [(1, 1), (36, 2), (50, 3), (1000, 4)])
def test_packing_changes_neither_value_nor_gradient(columns: int, most: int) -> None:
    """Responses behind one copy of their prompt see it and themselves alone."""
    policy = models.policy("smollm")
    rollouts = grouped(policy)
    assert max(map(len, scoring.pack(rollouts, columns))) == most
    probe = torch.randn(len(rollouts), max(r.length for r in rollouts), dtype=torch.float64)
    ours, mask = score(policy, rollouts, columns=columns)
    parameters = policy.trainable()
    gradients = torch.autograd.grad((ours * probe)[mask].sum(), parameters)

    total = ours.new_zeros(())
    for row, rollout in zip(probe, rollouts, strict=True):
        terms = reference.rescore(policy, rollout, 1.0, TEMPERATURE)
        total = total + sum((p * x for p, x in zip(row, terms, strict=False)), start=ours.new_zeros(()))
    for gradient, expected in zip(gradients, torch.autograd.grad(total, parameters), strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-8, atol=1e-9)


def test_prompts_of_another_length_share_the_batch_by_padding() -> None:
    policy = models.policy()
    rollouts = grouped(policy)
    together, mask = score(policy, rollouts)
    for number, rollout in enumerate(rollouts):
        alone, _ = score(policy, [rollout])
        assert alone[0].tolist() == pytest.approx(together[number][mask[number]].tolist(), abs=1e-9)


def test_a_response_of_one_position_is_scored_by_the_prompt_alone() -> None:
    policy = models.policy()
    rollouts = engine(policy, limit=1).generate([Request(prompt(7), n, latent=n != 2) for n in range(3)])
    ours, _ = score(policy, rollouts)
    assert ours[:, 0].tolist() == pytest.approx([float(r.logprob[0]) for r in rollouts], abs=1e-9)


def test_tau_reaches_the_rebuilt_embeddings() -> None:
    policy = models.policy()
    requests = [Request(prompt(8), n) for n in range(4)]
    rollouts = engine(policy, tau=0.5).generate(requests)
    right, mask = score(policy, rollouts, tau=0.5)
    wrong, _ = score(policy, rollouts, tau=1.0)
    for number, rollout in enumerate(rollouts):
        assert right[number][mask[number]].tolist() == pytest.approx(rollout.logprob.tolist(), abs=1e-9)
    assert float((right - wrong).detach().abs().max()) > 1e-3


def test_the_weighted_form_weighs_by_the_recorded_mixture() -> None:
    policy = models.policy()
    rollouts = grouped(policy)
    batch = scoring.collate(policy, rollouts, 0.7)
    components, hard = scoring.component_logprobs(policy, batch, TEMPERATURE)
    ours = scoring.logprob(components, hard, batch, LatentSettings(tau=0.7, weighted=True))
    for number, rollout in enumerate(rollouts):
        for at, token in enumerate(rollout.tokens.tolist()):
            expected = float(hard[number, at].detach())
            if token == LATENT:
                weights = reference.softmax([score / 0.7 for score in rollout.scores[at].tolist()])
                log_p = components[number, at].tolist()
                expected = reference.surrogate(log_p, rollout.scores[at].tolist(), weights)
            assert float(ours[number, at].detach()) == pytest.approx(expected, abs=1e-9)


def test_a_head_in_chunks_gives_the_same_value_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are never there at once; the chunks are recomputed in the backward pass."""
    policy = models.policy("gemma2")
    rollouts = grouped(policy)
    seen: list[int] = []
    head = policy.head

    def spy(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return head(hidden)

    monkeypatch.setattr(policy, "head", spy)
    results = []
    for limit in (1 << 26, 24 * 7):
        monkeypatch.setattr(chunks, "LOGITS_PER_CHUNK", limit)
        seen.clear()
        ours, mask = score(policy, rollouts)
        results.append((ours[mask], torch.autograd.grad(ours[mask].square().sum(), policy.trainable())))
    assert max(seen) == 7
    (value, gradients), (chunked, chunked_gradients) = results
    assert torch.allclose(value, chunked, rtol=0, atol=1e-10)
    for gradient, again in zip(gradients, chunked_gradients, strict=True):
        assert torch.allclose(gradient, again, rtol=1e-9, atol=1e-9)


def test_the_first_mini_batch_has_a_ratio_of_exactly_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # as it is used: float32 throughout
    policy = models.policy(dtype=torch.float32)
    rollouts = grouped(policy)
    with torch.no_grad():
        old, _ = score(policy, rollouts)
    new, mask = score(policy, rollouts, torch.ones(old.shape))
    assert torch.equal(old, new.detach())
    assert bool((old[~mask] == new[~mask]).all())


def test_the_action_is_detached() -> None:
    """Gradients flow through log p alone, not through the rebuilt input embeddings."""
    policy = models.policy()
    ours, mask = score(policy, grouped(policy))
    ours[mask].sum().backward()
    assert policy.embedding.weight.grad is None
    assert all(parameter.grad is not None for parameter in policy.trainable())


def test_a_negative_advantage_turns_the_gradient_of_negative_margins_in_the_whole_loss() -> None:
    """Scores below log p stand for a policy that has moved since; each rollout has its own advantage."""
    policy = models.policy()
    rollouts = [replace(r, scores=torch.where(r.tokens[:, None] == LATENT, r.scores - 2, 0.0)) for r in grouped(policy)]
    batch = scoring.collate(policy, rollouts, 1.0)
    advantage = torch.randn(batch.mask.shape, dtype=torch.float64)
    components, hard = scoring.component_logprobs(policy, batch, TEMPERATURE)
    ours = scoring.logprob(components, hard, batch, LatentSettings(), advantage)
    (slope,) = torch.autograd.grad(ours.sum(), components)
    turned = 0
    for row, at in batch.latent.nonzero().tolist():
        log_p, scores, a = components[row, at].tolist(), batch.scores[row, at].tolist(), float(advantage[row, at])
        expected = reference.surrogate_gradient(log_p, scores, a)
        assert slope[row, at].tolist() == pytest.approx(expected, abs=1e-9)
        turned += sum(a < 0 and s < p for s, p in zip(scores, log_p, strict=True))
    assert turned > 10
    assert not bool(slope[~batch.latent].any())


# --- the whole loss ------------------------------------------------------------------------------------------------


def whole_loss(
    policy: Policy,
    rollouts: Sequence[Rollout],
    old: Tensor,
    advantage: Tensor,
    count: int | None,
    weighted: bool = False,
) -> Tensor:
    ours, mask = score(policy, rollouts, advantage, weighted=weighted)
    width = mask.shape[1]
    return ppo_loss(ours, old[:, :width], advantage[:, :width].expand(-1, width), mask, count=count)


def flat_gradient(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_micro_batches_change_neither_the_loss_nor_the_gradient_of_the_model(pieces: int) -> None:
    """Micro-batches differ in width, packing and number of positions."""
    policy = models.policy()
    rollouts = grouped(policy, 4, 3)
    with torch.no_grad():
        old, mask = score(policy, rollouts)
    old = old + 0.3 * torch.randn_like(old)
    advantage = torch.randn(len(rollouts), 1, dtype=torch.float64).expand(old.shape)

    def run(parts: int) -> tuple[float, Tensor]:
        policy.model.zero_grad()
        total = 0.0
        for rows in torch.arange(len(rollouts)).chunk(parts):
            chosen = [rollouts[row] for row in rows.tolist()]
            part = whole_loss(policy, chosen, old[rows], advantage[rows], int(mask.sum()))
            part.backward()
            total += float(part.detach())
        return total, flat_gradient(policy)

    loss, gradient = run(pieces)
    expected_loss, expected = run(1)
    assert loss == pytest.approx(expected_loss, abs=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_whole_loss_has_the_gradient_of_finite_differences(weighted: bool) -> None:
    """On-policy: ratios near 1 and margins above 0, so neither a clip nor the straight-through is in the way."""
    policy = models.policy("qwen3")
    rollouts = grouped(policy)
    with torch.no_grad():
        old, _ = score(policy, rollouts, weighted=weighted)
    advantage = torch.randn(len(rollouts), 1, dtype=torch.float64).expand(old.shape)
    whole_loss(policy, rollouts, old, advantage, None, weighted).backward()
    gradient, step = flat_gradient(policy), 1e-6
    start = parameters_to_vector(policy.trainable()).detach()
    for _ in range(4):
        direction = torch.randn_like(start)
        slope = float(gradient @ direction)
        sides = []
        with torch.no_grad():
            for sign in (1, -1):
                vector_to_parameters(start + sign * step * direction, policy.trainable())
                sides.append(float(whole_loss(policy, rollouts, old, advantage, None, weighted)))
        assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_one_step_along_the_gradient_moves_components_the_right_way() -> None:
    """End to end: a good rollout's components become more probable, a bad one's less, whatever its margins."""
    for sign in (1.0, -1.0):
        policy = models.policy()
        rollouts = [r for r in engine(policy).generate(mixed_requests()) if r.latent_length][:1]
        rollouts = [replace(r, scores=r.scores + (0.0 if sign > 0 else -5.0)) for r in rollouts]
        batch = scoring.collate(policy, rollouts, 1.0)
        with torch.no_grad():
            before, _ = scoring.component_logprobs(policy, batch, TEMPERATURE)
            old, _ = score(policy, rollouts)
        advantage = torch.full_like(old, sign)
        whole_loss(policy, rollouts, old, advantage, None).backward()
        with torch.no_grad():
            start = parameters_to_vector(policy.trainable())
            vector_to_parameters(start - 1e-4 * flat_gradient(policy), policy.trainable())
            after, _ = scoring.component_logprobs(policy, batch, TEMPERATURE)
        latent = batch.latent
        assert sign * float((after - before)[latent].sum()) > 0
        assert latent.sum() <= LIMIT
        assert rollouts[0].scores.shape[1] == LATENTS.k
