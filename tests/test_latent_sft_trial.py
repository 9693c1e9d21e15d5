"""The worst case of `init`, tried before its first step: as long as the schedule allows, halved, without a trace."""

import random
import weakref
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from models import TEXTS
from torch import Tensor

from lgrpo.budget import Budget
from lgrpo.engine import Engine
from lgrpo.engine.seats import Size
from lgrpo.engine.slots import Slots
from lgrpo.errors import UserError
from lgrpo.latent_sft.encoder import Encoder
from lgrpo.latent_sft.schedule import Schedule, schedule
from lgrpo.memory import latent_sft_trial as memory
from lgrpo.memory.latent_sft_trial import longest_example, trial
from lgrpo.memory.trial import Trial
from lgrpo.optimizer import Optimizer
from lgrpo.policy import Policy
from lgrpo.superposition import LatentSettings

# Rows of 40 + 12 + 6 positions for the encoder, 4 of response more where the decoder reads too, and 40 + 6 + 4 to walk.
SIZES = {"max_prompt": 40, "max_chain": 12, "ratio": 2, "max_response": 10, "micro_tokens": 120}
STEPS = {"warm_up_steps": 2, "encoder_steps": 1, "decoder_steps": 3, "joint_steps": 1, "walk_steps": 4}
WALK, WARM_UP, BUILD = [(2, 49)], [(2, 58)], [(1, 58), (1, 59)]  # [B, T]: what is predicted last is not read
ALL = [*WALK, *WARM_UP, *BUILD, *BUILD, *BUILD]


def settings(**changes: Any) -> Schedule:
    return schedule("tiny", device="cpu", **{**STEPS, **SIZES, "slots": 12, "held_out": 20, **changes})[0]


def engine(policy: Policy, chosen: Schedule) -> Engine:
    return Engine(policy, LatentSettings(chosen.k), TEXTS, chosen.max_response, chosen.slots)


def run(
    chosen: Schedule,
    policy: Policy | None = None,
    done: int = 0,
    full: bool = True,
    heard: list[tuple[str, int]] | None = None,
) -> Trial:
    policy = policy or models.policy(dtype=torch.float32)
    told = [] if heard is None else heard
    budget = Budget(chosen.micro_tokens, lambda *said: told.append(said))
    return trial(policy, engine(policy, chosen), chosen, budget, done, full)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """[B, T] of every forward pass for a gradient."""
    seen: list[tuple[int, int]] = []
    hidden = Policy.hidden

    def spy(self: Policy, embeds: Tensor, *rest: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append((embeds.shape[0], embeds.shape[1]))
        return hidden(self, embeds, *rest)

    monkeypatch.setattr(Policy, "hidden", spy)
    return seen


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"train_embedding": False}])
def test_each_part_has_a_full_micro_batch_of_the_longest_rows_and_leaves_no_trace(
    changes: dict[str, Any], shapes: list[tuple[int, int]]
) -> None:
    policy = models.policy(dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    drawn = torch.get_rng_state(), random.getstate()
    assert run(settings(**changes), policy) == (12, 120, None)
    assert shapes == ALL
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]


@pytest.mark.parametrize(
    ("done", "changes", "expected"),
    [
        (1, {}, ALL),
        (2, {}, [*WALK, *BUILD, *BUILD, *BUILD]),
        (5, {}, [*WALK, *BUILD, *BUILD]),
        (6, {}, [*WALK, *BUILD]),
        (7, {}, WALK),
        (0, {"warm_up_steps": 0, "encoder_steps": 0}, [*WALK, *BUILD, *BUILD]),
        (0, {"micro_tokens": 10}, [(1, 49), (1, 58), *BUILD, *BUILD, *BUILD]),  # a row is never cut
    ],
)
def test_parts_that_are_done_or_have_no_steps_are_not_tried(
    done: int, changes: dict[str, Any], expected: list[tuple[int, int]], shapes: list[tuple[int, int]]
) -> None:
    run(settings(**changes), done=done)
    assert shapes == expected


def test_on_a_cpu_a_single_row_goes_through_each_part(
    shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "rehearse", None)
    assert run(settings(), full=False) == (12, 120, None)
    assert shapes == [(1, 49), (1, 58), *BUILD, *BUILD, *BUILD]


@pytest.mark.parametrize(("max_response", "chain", "response"), [(10, 12, 4), (7, 8, 3), (60, 12, 54), (4, 2, 3)])
def test_the_longest_example_is_as_long_as_the_schedule_allows(max_response: int, chain: int, response: int) -> None:
    """A response has `</think>`, an answer and an end: in seven positions, four latent steps and eight chain tokens."""
    policy, chosen = models.policy(), settings(max_response=max_response)
    longest = longest_example(policy, chosen)
    assert (len(longest.prompt), len(longest.chain), len(longest.response)) == (40, chain, response)
    assert longest.latents(chosen.ratio) + len(longest.response) == max_response
    odd = longest_example(policy, replace(chosen, max_chain=11, max_response=60))
    assert (len(odd.chain), odd.latents(2), len(odd.response)) == (11, 6, 54)


def test_a_micro_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of the warm start have 116 positions and do not fit; the parts after it have half as many."""
    hidden, seen = Policy.hidden, []

    def limited(self: Policy, embeds: Tensor, *rest: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(embeds.shape[:2])
            if embeds.shape[0] * embeds.shape[1] > 100:
                raise torch.OutOfMemoryError("injected")
        return hidden(self, embeds, *rest)

    monkeypatch.setattr(Policy, "hidden", limited)
    heard: list[tuple[str, int]] = []
    assert run(settings(), heard=heard) == (12, 60, None)
    assert heard == [("micro_tokens", 60)]
    assert seen == [*WALK, *WARM_UP, (1, 58), (1, 58), *BUILD, *BUILD, *BUILD]


def test_held_out_rollouts_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots, to the end of the longest response, beside the states of the walking model and no encoder."""
    attempts: list[tuple[int, int, Size]] = []
    step, made = Slots.step, memory.optimizer_of
    optimizers: list[weakref.ref[Optimizer]] = []

    def spy(*args: Any) -> Optimizer:
        optimizer = made(*args)
        optimizers.append(weakref.ref(optimizer))
        return optimizer

    def limited(self: Slots, rows: int, width: int, *rest: Any, **more: Any) -> None:
        attempts.append((self.occupied, width, self.size))
        assert [optimizer() is None for optimizer in optimizers] == [False]
        if rows > 5:
            raise torch.OutOfMemoryError("injected")
        step(self, rows, width, *rest, **more)

    policy, chosen = models.policy(dtype=torch.float32), settings()
    asked = engine(policy, chosen)
    with monkeypatch.context() as context:
        context.setattr(memory, "optimizer_of", spy)
        context.setattr(Slots, "step", limited)
        assert trial(policy, asked, chosen, Budget(120), 0, True) == (3, 120, None)
    assert len(optimizers) == 5
    assert [(rows, width) for rows, width, _ in attempts] == [(12, 10), (6, 10), (3, 10), (3, 10)]
    assert asked.slots == 3
    assert asked._state is None  # the cache is given back
    for (_, _, size), slots in zip(attempts, (12, 6, 3), strict=False):  # the buffers that 20 problems will need
        needed = Size.of(slots, min(4 * slots, 20), min(4 * slots, 20), 1, 40)
        assert size == needed


@pytest.mark.parametrize("steps", [{}, {"walk_steps": 4, "joint_steps": 0}])
def test_a_row_that_does_not_fit_alone_is_said_in_one_line(
    steps: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Tensor:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(Policy, "hidden", never)
    for full in (True, False):
        with pytest.raises(UserError, match="max_response"):
            run(settings(**steps), full=full)


def test_a_second_model_that_does_not_fit_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(Encoder, "__init__", never)
    with pytest.raises(UserError, match="no room for the encoder"):
        run(settings())
