"""The plan's estimate of the time: the multiplication by hand, and a measurement that leaves no trace."""

from dataclasses import replace
from typing import Any

import models
import pytest
import torch

from lgrpo import estimate
from lgrpo.estimate import Speed, init_time, train_time
from lgrpo.latent_sft.schedule import schedule
from lgrpo.memory import reinforcement
from lgrpo.plan import Setting, TrainSettings, train_settings
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem

PROBLEMS = [Problem(f"w{n % 20} w{n % 7}", "w1", "w1 w2 w3 w4") for n in range(40)]


def policy() -> Policy:
    made = models.policy("llama", dtype=torch.float32)
    made.card = Card("latent", k=3)
    return made


def settings(**changes: Any) -> TrainSettings:
    base, _ = train_settings(Setting("recipe", "tiny", ""), k=3)
    return replace(base, **{"steps": 10, "batch": 4, "update_batch": 2, "group": 4, "max_response": 8, **changes})


def test_a_step_by_hand() -> None:
    speed = Speed(position=0.001, step=0.01, rows=2.0, head=0.5)
    # rollouts: 4 prompts of 30 positions forward (a third of a pass), then 10 positions of 16 rows at 0.01 s x 2
    rollout = 4 * 30 * 0.001 / 3 + 10 * 0.01 * 2
    assert estimate._rollout(speed, 16, 4, 30, 10, in_flight=16) == pytest.approx(rollout)
    assert estimate._rollout(speed, 16, 4, 30, 10, in_flight=8) == pytest.approx(rollout + 10 * 0.01 * 2)
    # updates: two optimiser steps, so half of the batch is scored once more under the old policy, at a third of a pass
    positions = 4 * 30 + 16 * 10 * 1.5
    whole = rollout + (1 + 1 / 6) * positions * 0.001
    assert estimate._step(speed, settings(), 30, 10, 16) == pytest.approx(whole)
    with_kl = whole + positions * 0.001 / 3
    assert estimate._step(speed, settings(kl=0.001), 30, 10, 16) == pytest.approx(with_kl)


def test_init_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_position", lambda policy, checkpointing, micro_tokens: 0.001)
    made = policy()
    steps = {"warm_up_steps": 2, "encoder_steps": 0, "decoder_steps": 3, "joint_steps": 0, "walk_steps": 5}
    chosen, _ = schedule("tiny", max_prompt=96, max_response=24, device="cpu", batch=4, k=3, **steps)
    prompt = len(made.prompt_ids("w1 w2", latent=True))
    response = len(made.end_ids) + len(made.tokenizer.encode("\\boxed{w1}", add_special_tokens=False)) + 1
    compress, read, walk = prompt + 4 + 2, prompt + 4 + 2 + response, prompt + 2 + response
    positions = 4 * (2 * compress + 3 * (compress / 3 + read) + 5 * walk) + 20 * compress / 3
    (name, value, why) = init_time(made, chosen, PROBLEMS)
    assert (name, why) == ("time", "10 steps and 20 labels, measured")
    assert value == f"about {estimate.duration(positions * 0.001)}"


def test_measuring_leaves_no_trace() -> None:
    made = policy()
    parameters = list(made.model.parameters())
    parameters[-1].requires_grad_(False)
    parameters[0].grad = torch.ones_like(parameters[0])
    before = [(p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    state = torch.get_rng_state()
    setting = train_time(made, settings(), PROBLEMS)
    assert setting.name == "time"
    assert "10 batches of" in setting.reason
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, (value, requires, gradient) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == requires
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_responses_that_do_not_end_count_as_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy()
    speed, response = estimate._measure(made, settings(max_response=8), PROBLEMS, 16)
    assert response == 8  # an untrained model ends nothing within eight positions
    assert min(speed.position, speed.step) > 0
    assert speed.rows >= 1
    assert "every response at its longest" in train_time(made, settings(), PROBLEMS).reason


def test_without_memory_to_measure_with_the_time_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "ENOUGH", 1e9)  # as much work as a micro-batch has
    made, hidden, most = policy(), Policy.hidden, [0]

    def limited(self: Policy, embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        most[0] = max(most[0], embeds.shape[0] * embeds.shape[1])
        if embeds.shape[0] > 2:
            raise torch.OutOfMemoryError("injected")
        return hidden(self, embeds, *rest)

    monkeypatch.setattr(Policy, "hidden", limited)
    assert train_time(made, settings(), PROBLEMS).value == "unknown"
    most[0] = 0
    estimate._position(made, False, micro_tokens=256)  # no more than a micro-batch is asked for
    assert most[0] <= 256
    monkeypatch.setattr(estimate, "_pass", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("injected")))
    chosen, _ = schedule("tiny", max_prompt=96, max_response=24, device="cpu", batch=4, k=3)
    assert init_time(made, chosen, PROBLEMS).value == "unknown"


def test_a_model_of_few_positions_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's positions are rows of a table: one past its end is an error, and on a GPU the end of the process."""
    monkeypatch.setitem(models.ARCHITECTURES, "gpt2", ("GPT2Config", {"n_positions": 50}))
    made = models.policy("gpt2", torch.float32, max_position_embeddings=None)
    assert reinforcement.shape_of(made).kept > 0
    assert estimate._position(made, False, micro_tokens=256) > 0
