"""The worst case, tried before the first step: as large as it gets, halved where it does not fit, without a trace."""

from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from models import LATENTS, TEXTS
from torch import Tensor

from lgrpo.engine import Engine
from lgrpo.engine.slots import Slots
from lgrpo.errors import UserError
from lgrpo.learner import Learner
from lgrpo.memory.trial import fit_slots, trial
from lgrpo.plan import Setting, TrainSettings, train_settings
from lgrpo.policy import Policy
from lgrpo.rollout import Request


def settings(**changes: Any) -> TrainSettings:
    made, _ = train_settings(Setting("recipe", "tiny", ""), k=LATENTS.k)
    return replace(made, **{"max_prompt": 40, "max_response": 20, "micro_tokens": 512, "batch": 2, **changes})


def made_of(policy: Policy, chosen: TrainSettings) -> tuple[Engine, Learner]:
    return Engine(policy, LATENTS, TEXTS, chosen.max_response, chosen.slots), Learner(policy, chosen)


@pytest.mark.parametrize("changes", [{}, {"kl": 0.1}, {"explicit": True}, {"micro_tokens": 50}])
def test_the_micro_batch_is_full_of_the_longest_rows_and_leaves_no_trace(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 positions are two rows of a prompt of 40 and eight responses of 20, whose last position predicts nothing."""
    policy, chosen = models.policy(dtype=torch.bfloat16), settings(**changes)
    engine, learner = made_of(policy, chosen)
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    state, random, hidden, shapes = learner.optimizer.state(), torch.get_rng_state(), policy.hidden, []

    def spy(embeds: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(embeds.shape[:2]))
        return hidden(embeds, *rest)

    monkeypatch.setattr(policy, "hidden", spy)
    tried = trial(policy, engine, learner, chosen)
    assert tried == (chosen.slots, chosen.micro_tokens, None)
    assert shapes == [(1, 40 + 19) if chosen.micro_tokens == 50 else (2, 40 + 8 * 19)]
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    after = learner.optimizer.state()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_micro_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, chosen = models.policy(dtype=torch.float32), settings()
    engine, learner = made_of(policy, chosen)
    hidden = policy.hidden

    def limited(embeds: Tensor, *rest: Any) -> Tensor:
        if embeds.shape[0] * embeds.shape[1] > 200:
            raise torch.OutOfMemoryError("injected")
        return hidden(embeds, *rest)

    monkeypatch.setattr(policy, "hidden", limited)
    assert trial(policy, engine, learner, chosen).micro_tokens == 256
    assert learner.budget.positions == 256


def test_rollouts_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt fills all slots, in groups and one by one, over a cache to the end of the longest response."""
    policy, chosen = models.policy(dtype=torch.float32), settings(slots=12, held_out=20)
    engine, _ = made_of(policy, chosen)
    attempts: list[tuple[int, int, int]] = []
    step = Slots.step

    def limited(self: Slots, rows: int, width: int, *rest: Any, **more: Any) -> None:
        attempts.append((rows, self.occupied, width))
        assert self.size.longest_prompt == chosen.max_prompt
        if rows > 5:
            raise torch.OutOfMemoryError("injected")
        step(self, rows, width, *rest, **more)

    monkeypatch.setattr(Slots, "step", limited)
    fit_slots(policy, engine, chosen)
    assert engine.slots == 3
    assert attempts == [(12, 12, 20), (6, 6, 20), *[(3, 3, 20)] * 4]
    assert engine.generate([Request((1, 2, 3), 0)])[0].length > 0


def test_a_rollout_that_does_not_fit_alone_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    policy, chosen = models.policy(dtype=torch.float32), settings()
    engine, _ = made_of(policy, chosen)
    monkeypatch.setattr(Slots, "step", never)
    with pytest.raises(UserError, match="max_response"):
        fit_slots(policy, engine, chosen)
