"""One batch of groups against the plain reference: advantages, selection, loss and gradient together."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import models
import pytest
import reference
import torch
from models import LATENTS, LIMIT, TEXTS, engine, prompt
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lgrpo import noise, objective, scoring
from lgrpo.errors import UserError
from lgrpo.groups import Group
from lgrpo.initial import Initial
from lgrpo.learner import Learner
from lgrpo.optimizer import StepReport
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout

SIZE = 4  # rollouts a group
SETTINGS = TrainSettings(
    recipe="tiny", explicit=False, seed=0, steps=1, batch=4, update_batch=4, group=SIZE, draws=1, max_prompt=99,
    max_response=LIMIT, k=LATENTS.k, tau=1.0, noise_scale=1.0, one_sided=True, noise_top_p=0.95,
    temperature=TEXTS.temperature, top_p=TEXTS.top_p, top_k=TEXTS.top_k, surrogate="published", mask_invalid=True,
    keep_invalid_in_statistics=False, first_token=True, clip=0.2, dual_clip=3.0, kl=0.0, lr=1e-3, weight_decay=0.01,
    max_grad_norm=1.0, limit=0, held_out=1, eval_every=1, slots=64, micro_tokens=10_000,
    keep_cache=True,
    checkpointing=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    models.compute_in_float64(monkeypatch)


def drawn(policy: Policy, count: int = 4, **changes: Any) -> list[Group]:
    """Groups with invalid rollouts, prompts of different lengths, and rewards that differ; `changes` of the noise."""
    groups = []
    for number in range(count):
        requests = [Request(prompt(7 + number), noise.row_key(2, number, n)) for n in range(SIZE)]
        rollouts = engine(policy, **changes).generate(requests)
        rewards = [1.0, 0.0, 1.0, 1.0] if number % 2 else [0.0, 1.0, 1.0, 0.0]
        groups.append(Group(Problem(f"problem {number}", "1"), rollouts, rewards))
    return groups


def learn(
    policy: Policy, groups: Sequence[Group], initial: Policy | None = None, **changes: Any
) -> tuple[dict[str, float], list[Tensor]]:
    """Numbers of one batch and the gradient each optimiser step was given; weights stay as they are."""
    learner = Learner(policy, replace(SETTINGS, **changes), initial)
    given: list[Tensor] = []

    def step() -> StepReport:
        given.append(torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]))
        learner.optimizer.clear()
        return StepReport(1.0, 1.0, False)

    learner.optimizer.step = step  # type: ignore[method-assign]
    return learner.learn(groups), given


def expected_gradient(
    policy: Policy, groups: Sequence[Group], keep_invalid: bool, mask_invalid: bool, first_token: bool
) -> Tensor:
    """At ratio 1 the gradient is that of -sum(advantage * logprob) / positions, over plain forward passes."""
    rollouts: list[Rollout] = [rollout for group in groups for rollout in group.rollouts]
    labels = [number for number, group in enumerate(groups) for _ in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    valid = [rollout.valid or not mask_invalid for rollout in rollouts]
    advantages = reference.group_advantages(rewards, valid, labels, keep_invalid)
    scored = [reference.rescore(policy, rollout, 1.0, TEXTS.temperature) for rollout in rollouts]
    means = [sum(float(x.detach()) for x in row) / len(row) for row in scored]
    keeps = reference.first_token_winners(advantages, means, labels)
    total = torch.zeros((), dtype=torch.float64)
    for advantage, kept, row in zip(advantages, keeps, scored, strict=True):
        for at, logprob in enumerate(row):
            if at > 0 or kept or not first_token:
                total = total - advantage * logprob
    loss = total / sum(map(len, scored))
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, policy.trainable())])


@pytest.mark.parametrize(
    "changes", [{}, {"keep_invalid_in_statistics": True}, {"mask_invalid": False}, {"first_token": False}]
)
def test_a_batch_has_the_gradient_of_the_method(changes: dict[str, Any]) -> None:
    """Each technique on and off, by plain loops: no packing, no micro-batches, no cache."""
    policy = models.policy("qwen2")
    groups = drawn(policy)
    validity = [rollout.valid for group in groups for rollout in group.rollouts]
    assert {True, False} == set(validity)
    assert_gradient_of_the_method(policy, groups, changes)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_every_architecture_has_the_gradient_of_the_method(architecture: str) -> None:
    """Unmasked, for some of them end no response here."""
    policy = models.policy(architecture)
    assert_gradient_of_the_method(policy, drawn(policy), {"mask_invalid": False})


def assert_gradient_of_the_method(policy: Policy, groups: Sequence[Group], changes: dict[str, Any]) -> None:
    _, (gradient,) = learn(policy, groups, **changes)
    settings = replace(SETTINGS, **changes)
    expected = expected_gradient(
        policy, groups, settings.keep_invalid_in_statistics, settings.mask_invalid, settings.first_token
    )
    assert float(expected.norm()) > 1e-3
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)  # advantages are float32


@pytest.mark.parametrize(("surrogate", "noise_scale"), [("published", 1.0), ("weighted", 0.5)])
def test_the_gradient_of_a_batch_is_that_of_finite_differences(surrogate: str, noise_scale: float) -> None:
    """The loss of an optimiser step, KL included, as a function of the weights: moved a little both ways.

    Noise is one-sided: with it no margin is negative, where the straight-through gradient is no derivative.
    """
    policy, initial = models.policy("qwen2"), another_policy()
    groups = drawn(policy, noise_scale=noise_scale)
    settings = replace(
        SETTINGS, surrogate=surrogate, noise_scale=noise_scale, kl=0.1, mask_invalid=False, first_token=False
    )
    learner = Learner(policy, settings, initial)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    numbers = list(range(len(rollouts)))
    old = learner._score(rollouts, [numbers])
    assert learner.initial is not None
    with learner.initial.in_place():
        reference_logprob = learner._score(rollouts, [numbers])
    advantages = learner._advantages(groups, torch.zeros(len(rollouts)), old).double()
    given: list[Tensor] = []

    def step() -> StepReport:
        given.append(torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]))
        learner.optimizer.clear()
        return StepReport(1.0, 1.0, False)

    learner.optimizer.step = step  # type: ignore[method-assign]

    def loss() -> float:
        return learner._step(rollouts, numbers, advantages, old, reference_logprob)["loss"]

    loss()
    gradient, width = given[0], 1e-5
    start = parameters_to_vector(policy.trainable()).detach()
    for _ in range(3):
        direction = torch.randn_like(start)
        sides = []
        for sign in (1, -1):
            vector_to_parameters(start + sign * width * direction, policy.trainable())
            sides.append(loss())
        slope = (sides[0] - sides[1]) / (2 * width)
        assert abs(slope) > 1e-3
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5)


def another_policy(dtype: torch.dtype = torch.float64) -> Policy:
    """Other weights behind the same frozen embedding, which the learner shares with the initial policy."""
    policy = models.policy("qwen2", dtype)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("micro_tokens", [1, 150, 300])
def test_the_micro_batch_size_changes_neither_loss_nor_gradient(micro_tokens: int) -> None:
    """With a KL that is far from 0: its mean is over the positions of the whole batch too."""
    policy, initial = models.policy("qwen2"), another_policy()
    groups = drawn(policy)
    whole, (expected,) = learn(policy, groups, initial, kl=0.1)
    parts, (gradient,) = learn(policy, groups, initial, kl=0.1, micro_tokens=micro_tokens)
    assert {**parts, "padding": 0} == pytest.approx({**whole, "padding": 0}, abs=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_the_kl_is_a_mean_over_all_positions() -> None:
    policy, initial = models.policy("qwen2"), another_policy()
    groups = drawn(policy, 2)
    terms = []
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        pairs = zip(*(reference.rescore(p, rollout, 1.0, TEXTS.temperature) for p in (policy, initial)), strict=True)
        terms += [reference.kl(float(ours.detach()), float(theirs.detach())) for ours, theirs in pairs]
    numbers, _ = learn(policy, groups, initial, kl=0.1)
    assert numbers["kl"] == pytest.approx(sum(terms) / len(terms), abs=1e-9)
    plain, _ = learn(policy, groups)
    assert numbers["loss"] == pytest.approx(plain["loss"] + 0.1 * numbers["kl"], abs=1e-9)


def test_the_kl_keeps_its_true_gradient_where_that_of_the_objective_is_mirrored() -> None:
    """Two-sided noise gives negative margins at once; with the mirrored gradient the KL would push the wrong way."""
    policy, initial = models.policy("qwen2"), another_policy()
    groups = drawn(policy, one_sided=False)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    terms = []
    for rollout in rollouts:
        ours, theirs = (reference.rescore(p, rollout, 1.0, TEXTS.temperature) for p in (policy, initial))
        gaps = [there.detach() - here for here, there in zip(ours, theirs, strict=True)]
        terms += [(gap.exp() - gap - 1).clamp(-10, 10) for gap in gaps]
    kl = torch.autograd.grad(torch.stack(terms).mean(), policy.trainable())
    expected = torch.cat([gradient.flatten() for gradient in kl])
    _, (with_kl,) = learn(policy, groups, initial, kl=0.1)
    _, (without,) = learn(policy, groups)
    assert float(expected.norm()) > 1e-3
    assert torch.allclose((with_kl - without) / 0.1, expected, rtol=1e-5, atol=1e-7)


def test_the_first_optimiser_step_has_ratio_one_and_later_ones_keep_their_old_log_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # as it is used: float32 throughout
    policy = models.policy("qwen2", torch.float32)
    groups = drawn(policy)
    seen: list[tuple[Tensor, Tensor]] = []
    loss = objective.ppo_loss

    def spy(logprob: Tensor, old: Tensor, *rest: Any) -> Tensor:
        seen.append((logprob.detach().clone(), old.clone()))
        return loss(logprob, old, *rest)

    monkeypatch.setattr(objective, "ppo_loss", spy)
    numbers = Learner(policy, replace(SETTINGS, update_batch=2, lr=1e-2)).learn(groups)
    assert len(seen) == 2
    assert torch.equal(*seen[0])
    assert float((seen[1][0] - seen[1][1]).abs().max()) > 1e-3
    assert numbers["rollout_gap"] < 1e-5  # the old ones are of the policy that made the rollouts
    assert numbers["moved"] > 0.99


def test_the_kl_is_taken_to_the_initial_policy_when_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed learner is given a policy that has moved; its KL must not start again at 0."""
    monkeypatch.undo()
    straight, resumed, initial = (models.policy("qwen2", torch.float32) for _ in range(3))
    groups, settings = drawn(initial), replace(SETTINGS, kl=0.1, lr=3e-3)
    whole = Learner(straight, settings)
    assert whole.learn(groups)["kl"] == 0
    expected = whole.learn(groups)["kl"]
    assert expected > 1e-4
    Learner(resumed, settings).learn(groups)
    assert Learner(resumed, settings, initial).learn(groups)["kl"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "smollm"])
def test_only_the_trained_weights_move(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    policy = models.policy(architecture, torch.float32)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    groups = [replace(group, rewards=[1.0, 0.0, 0.0, 1.0]) for group in drawn(policy)]
    Learner(policy, replace(SETTINGS, mask_invalid=False)).learn(groups)
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, before[name]) == ("embed" in name or "head" in name), name


# -- memory


def test_checkpointing_changes_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer runs once more in the backward pass."""
    policy = models.policy("qwen2")
    groups, kind, calls = drawn(policy), type(policy.model.model.layers[0]), [0]
    forward = kind.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(kind, "forward", spy)
    results = []
    for on, expected in ((False, 2), (True, 4)):  # two layers, and again
        calls[0] = 0
        results.append(learn(policy, groups, checkpointing=on))
        assert calls[0] == expected
    (plain, (gradient,)), (again, (recomputed,)) = results
    assert plain == again
    assert torch.equal(gradient, recomputed)


def test_the_padding_of_the_micro_batches_is_counted() -> None:
    """By hand: a row of 5 + 2 + 1 columns and one of 4 + 5 + 3, so 4 of 24; alone, neither has any."""

    def rollout(prompt_length: int, length: int) -> Rollout:
        tokens, k = torch.full((length,), 3), LATENTS.k
        zeros = torch.zeros(length, k)
        return Rollout(prompt(prompt_length), tokens, zeros.long(), zeros, torch.zeros(length), True)

    groups = [
        Group(Problem("a", "1"), [rollout(5, 3), rollout(5, 2)], [1.0, 0.0]),
        Group(Problem("b", "1"), [rollout(4, 6), rollout(4, 4)], [1.0, 0.0]),
    ]
    for micro_tokens, expected in ((1000, 4 / 24), (20, 0.0)):
        numbers, _ = learn(models.policy(), groups, group=2, micro_tokens=micro_tokens)
        assert numbers["padding"] == pytest.approx(expected)


def test_the_embeddings_of_one_micro_batch_are_alive_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a whole batch would be most of what the learner keeps."""
    policy = models.policy("qwen2")
    groups, made, rebuild = drawn(policy), [], scoring.inputs_of

    def spy(*args: Any) -> Tensor:
        assert not any(embeds() is not None for embeds in made)
        embeds = rebuild(*args)
        made.append(weakref.ref(embeds))
        return embeds

    monkeypatch.setattr(scoring, "inputs_of", spy)
    learn(policy, groups, micro_tokens=100)
    assert len(made) >= 3


def test_the_initial_weights_trade_places_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, first = models.policy("qwen2", torch.bfloat16), models.policy("qwen2", torch.bfloat16, seed=4)
    ours, theirs = ([p.detach().clone() for p in made.trainable()] for made in (policy, first))
    initial = Initial(policy.trainable(), first.trainable())

    def fail_inside() -> None:
        with initial.in_place():
            assert all(torch.equal(p, weight) for p, weight in zip(policy.trainable(), theirs, strict=True))
            raise torch.OutOfMemoryError

    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            fail_inside()
        assert all(torch.equal(p, weight) for p, weight in zip(policy.trainable(), ours, strict=True))
    assert all(torch.equal(p, weight) for p, weight in zip(first.trainable(), theirs, strict=True))


def test_initial_weights_of_two_dtypes_and_one_shape_come_back_exactly() -> None:
    half, whole = (torch.nn.Parameter(torch.full((3,), 0.7654321, dtype=d)) for d in (torch.bfloat16, torch.float32))
    initial = Initial([half, whole], [torch.zeros(3, dtype=torch.bfloat16), torch.full((3,), 0.1234567)])
    with initial.in_place():
        assert whole.tolist() == torch.full((3,), 0.1234567).tolist()
    assert whole.tolist() == torch.full((3,), 0.7654321).tolist()


def out_of_memory(monkeypatch: pytest.MonkeyPatch, policy: Policy, fails: Callable[[int, bool, int], bool]) -> None:
    """Make `policy.hidden` run out of memory where `fails(positions, with gradient, calls before)`."""
    hidden, calls = policy.hidden, [0]

    def limited(embeds: Tensor, *rest: Any) -> Tensor:
        positions, before = embeds.shape[0] * embeds.shape[1], calls[0]
        calls[0] += 1
        if fails(positions, torch.is_grad_enabled(), before):
            raise torch.OutOfMemoryError("injected")
        return hidden(embeds, *rest)

    monkeypatch.setattr(policy, "hidden", limited)


@pytest.mark.parametrize(
    "fails",
    [
        lambda positions, gradient, before: positions > 75,  # while the old log-probabilities are computed
        lambda positions, gradient, before: gradient and positions > 75,
        lambda positions, gradient, before: before == 9,  # once, after part of a gradient has gathered
    ],
)
def test_after_running_out_of_memory_the_same_step_is_taken_in_smaller_parts(
    fails: Callable[[int, bool, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two optimiser steps with a KL: the weights after them are those of a run that was never disturbed."""
    monkeypatch.undo()  # as it is used: float32 throughout
    made = [models.policy("qwen2", torch.float32) for _ in range(2)]
    initial, groups = another_policy(torch.float32), drawn(made[0], 8)
    settings = replace(SETTINGS, kl=0.1, batch=8, update_batch=4, micro_tokens=150)
    smooth: list[tuple[str, int]] = []
    expected = Learner(made[0], settings, initial, lambda *told: smooth.append(told)).learn(groups)
    halved: list[tuple[str, int]] = []
    with monkeypatch.context() as context:
        out_of_memory(context, made[1], fails)
        learner = Learner(made[1], settings, initial, lambda *told: halved.append(told))
        numbers = learner.learn(groups)
    assert smooth == []
    assert halved
    assert halved[-1] == ("micro_tokens", learner.budget.positions)
    assert learner.budget.positions < 150
    assert {**numbers, "padding": 0} == pytest.approx({**expected, "padding": 0}, rel=1e-4, abs=1e-6)
    start = models.policy("qwen2", torch.float32)
    for ours, theirs, before in zip(made[1].trainable(), made[0].trainable(), start.trainable(), strict=True):
        assert float((theirs - before).detach().norm()) > 1e-3
        assert float((ours - theirs).detach().norm() / (theirs - before).detach().norm()) < 1e-2


def test_a_single_row_that_does_not_fit_ends_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step half taken: weights and gradients are as they were."""
    monkeypatch.undo()
    policy = models.policy("qwen2", torch.float32)
    groups, before = drawn(policy), [p.detach().clone() for p in policy.trainable()]
    out_of_memory(monkeypatch, policy, lambda positions, gradient, before: gradient and positions > 15)
    halved: list[int] = []
    with pytest.raises(UserError, match="max_response"):
        Learner(policy, SETTINGS, None, lambda name, value: halved.append(value)).learn(groups)
    assert len(halved) > 3
    assert all(torch.equal(p, start) and p.grad is None for p, start in zip(policy.trainable(), before, strict=True))
