"""What only a GPU can show: bf16 rollouts, their re-scoring and updates on CUDA. Run with `pytest -m gpu`."""

from dataclasses import replace

import models
import pytest
import torch
from models import LATENTS, LIMIT, TEXTS

from lgrpo.engine import EAGER, GRAPHED, Engine
from lgrpo.groups import Group
from lgrpo.learner import Learner
from lgrpo.memory import reinforcement as memory
from lgrpo.memory.trial import trial
from lgrpo.plan import Setting, train_settings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_gpu(dtype: torch.dtype, architecture: str = "llama") -> Policy:
    made = models.policy(architecture, dtype)
    made.model.to("cuda")
    return made


WIDE = replace(LATENTS, shortlist=24)  # hardly a row has to wait for the whole vocabulary


def requests() -> list[Request]:
    """Five ragged prompts, some of them shared, in more rows than there are slots below."""
    return models.mixed_requests(16)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_graphs_give_the_rollouts_of_single_steps(architecture: str) -> None:
    policy = on_gpu(torch.float32, architecture)
    said: list[str] = []
    for latents in (LATENTS, WIDE):
        graphed = Engine(policy, latents, TEXTS, LIMIT, 7, said.append)
        assert graphed.pace is GRAPHED
        first, again = graphed.generate(requests()), graphed.generate(requests())
        assert said == []  # every architecture can be captured
        eager = Engine(policy, latents, TEXTS, LIMIT, 7)
        eager.pace = EAGER
        for one, other, single in zip(first, again, eager.generate(requests()), strict=True):
            assert torch.equal(one.tokens, single.tokens)
            assert torch.equal(other.tokens, single.tokens)
            assert torch.allclose(one.logprob, single.logprob, atol=5e-3)  # surrogates grow what rounding leaves


def test_rollouts_do_not_depend_on_the_batch() -> None:
    policy = on_gpu(torch.float32)
    together = Engine(policy, LATENTS, TEXTS, LIMIT, 16).generate(requests())
    alone = [Engine(policy, LATENTS, TEXTS, LIMIT, 1).generate([one])[0] for one in requests()]
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)


def test_a_bf16_update_moves_the_weights_and_starts_at_ratio_one() -> None:
    policy = on_gpu(torch.bfloat16)
    rollouts = Engine(policy, LATENTS, TEXTS, LIMIT, 16).generate(requests())
    groups = [Group(Problem("p", "1"), rollouts[at : at + 8], [1.0, 0.0] * 4) for at in (0, 8)]
    settings, _ = train_settings(Setting("recipe", "low", ""), k=LATENTS.k, mask_invalid=False)
    before = [parameter.detach().clone() for parameter in policy.trainable()]
    numbers = Learner(policy, replace(settings, lr=1e-2)).learn(groups)
    assert numbers["clip_fraction"] == 0.0
    assert numbers["moved"] > 0.9
    assert numbers["rollout_gap"] < 0.1  # nats a position, in bfloat16
    assert any(not torch.equal(old, new) for old, new in zip(before, policy.trainable(), strict=True))


def test_the_worst_case_is_measured_and_leaves_no_trace() -> None:
    policy = on_gpu(torch.bfloat16)
    settings, _ = train_settings(Setting("recipe", "low", ""), k=LATENTS.k, kl=0.1, slots=16)
    settings, rows = memory.settle(policy, settings, [], {"slots"})
    engine, learner = Engine(policy, LATENTS, TEXTS, settings.max_response, settings.slots), Learner(policy, settings)
    tried = trial(policy, engine, learner, settings)
    assert tried.peak is not None
    assert tried.peak > 0
    assert (tried.slots, tried.micro_tokens) == (settings.slots, settings.micro_tokens)
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert {row.name for row in rows} >= {"memory: update", "memory: rollouts"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_kl_to_weights_on_the_host_starts_at_zero(checkpointing: bool) -> None:
    policy = on_gpu(torch.bfloat16)
    rollouts = Engine(policy, LATENTS, TEXTS, LIMIT, 16).generate(requests())
    groups = [Group(Problem("p", "1"), rollouts[at : at + 8], [1.0, 0.0] * 4) for at in (0, 8)]
    settings, _ = train_settings(Setting("recipe", "low", ""), k=LATENTS.k, mask_invalid=False, kl=0.1)
    learner = Learner(policy, replace(settings, lr=1e-2, checkpointing=checkpointing))
    assert learner.initial is not None
    assert all(kept.is_pinned() for kept in learner.initial.kept)
    assert abs(learner.learn(groups)["kl"]) < 1e-4  # attention may take another kernel without a gradient
    assert learner.learn(groups)["kl"] > 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_update_twice_is_the_same_to_the_bit(dtype: torch.dtype) -> None:
    """Prompts so long that attention's gradient would be taken in pieces, in whatever order these are done."""

    def fresh() -> Policy:
        made = models.policy("llama", dtype, hidden_size=256, num_key_value_heads=4)
        made.model.to("cuda")
        return made

    asked = [Request(models.prompt(512, row // 8), row, latent=True) for row in range(128)]
    rollouts = Engine(fresh(), LATENTS, TEXTS, 96, 128).generate(asked)
    groups = [Group(Problem(str(at), "1"), rollouts[at : at + 8], [1.0, 0.0] * 4) for at in range(0, 128, 8)]
    settings, _ = train_settings(
        Setting("recipe", "low", ""), k=LATENTS.k, mask_invalid=False, lr=1e-3, batch=16, update_batch=8,
    )  # fmt: skip
    refused: list[str] = []
    weights = []
    for _ in range(4):
        policy = fresh()
        Learner(policy, settings, on_refused=refused.append).learn(groups)
        weights.append([parameter.detach() for parameter in policy.trainable()])
    assert refused == []
    first, *others = weights
    assert all(torch.equal(ours, theirs) for other in others for ours, theirs in zip(first, other, strict=True))
