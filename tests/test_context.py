"""Prompt, chain and response fit the positions a model was made for, or the plan is refused."""

import models
import pytest
import torch

from lgrpo import context, plan
from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import schedule
from lgrpo.policy import Policy
from lgrpo.problems import Problem

HIGH = plan.Setting("recipe", "high", "for the test")


def policy(positions: int) -> Policy:
    return models.policy("llama", max_position_embeddings=positions)


def reasons(rows: list[plan.Setting]) -> dict[str, str]:
    return {row.name: row.reason for row in rows}


def test_what_nobody_chose_is_shortened_and_the_plan_says_why() -> None:
    settings, rows = plan.train_settings(HIGH, k=3)
    assert (settings.max_prompt, settings.max_response) == (1024, 4096)
    small = policy(4096)
    settings, rows = context.settle(small, settings, rows, [])
    assert (settings.max_prompt, settings.max_response) == (1024, 3072)
    assert {row.name: row.value for row in rows}["max_response"] == 3072
    assert reasons(rows)["max_response"] == f"{small.name} has 4096 positions, 1024 of them for the prompt"
    assert reasons(rows)["max_prompt"] == "published"


def test_a_prompt_takes_half_of_few_positions() -> None:
    settings, rows = plan.train_settings(HIGH, k=3)
    settings, rows = context.settle(policy(100), settings, rows, [])
    assert (settings.max_prompt, settings.max_response) == (50, 50)
    assert reasons(rows)["max_prompt"].startswith("half of the 100 positions of ")


def test_what_fits_to_the_last_position_stays_as_it_is() -> None:
    before = plan.train_settings(HIGH, k=3)
    assert context.settle(policy(5120), *before, []) == before
    assert context.settle(policy(5119), *before, [])[0].max_response == 4095


def test_the_written_chain_of_init_fits_too() -> None:
    before, rows = schedule("high", max_prompt=1024, max_response=4096, device="cpu")
    settings, rows = context.settle(policy(6000), before, rows, [])
    assert (settings.max_prompt, settings.max_response, settings.max_chain) == (
        1024,
        4096,
        4683,
    )  # and 293 compress tokens
    assert "6000 positions" in reasons(rows)["max_chain"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"max_response": 4000}, "max_prompt=1024 and max_response=4000 are more than .* --set max_response=1024$"),
        ({"max_prompt": 2040}, "max_prompt=2040 and max_response=4096 are more than .* --set a shorter max_prompt=N$"),
        ({"max_prompt": 4000}, "max_prompt=4000 and max_response=4096 are more than .* --set a shorter max_prompt=N$"),
    ],
)
def test_what_was_chosen_is_refused(chosen: dict[str, int], message: str) -> None:
    settings, rows = plan.train_settings(HIGH, k=3, **chosen)
    with pytest.raises(UserError, match=message):
        context.settle(policy(2048), settings, rows, chosen)


def test_a_prompt_must_leave_a_position_for_a_response() -> None:
    small = policy(64)
    length = len(small.prompt_ids("3", small.latent))
    context.check_room(policy(length + 1), [Problem("3", "3")], None)
    with pytest.raises(UserError, match=f"the longest prompt has {length} positions and .* has {length}; shorten it"):
        context.check_room(policy(length), [Problem("3", "3")], None)
    with pytest.raises(UserError, match="--max-response 65 is more than the 64 positions"):
        context.check_room(small, [], 65)


ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}


def logits(phi: Policy, length: int, beside: int) -> torch.Tensor:
    """Of the last of `length` positions, answered beside a row of `beside`: [V]."""
    whole = max(length, beside)
    ids = torch.arange(2 * whole).reshape(2, whole) % 20
    with torch.no_grad():
        hidden = phi.hidden(
            phi.embedding(ids), torch.ones(2, whole, whole, dtype=torch.bool).tril(), torch.arange(whole).expand(2, -1)
        )
    return phi.head(hidden)[0, length - 1]


def test_a_longrope_model_has_the_positions_in_which_rows_do_not_depend_on_each_other() -> None:
    phi = models.policy(
        "phi3", max_position_embeddings=64, original_max_position_embeddings=32, rope_parameters=ROPE, pad_token_id=None
    )
    assert context.positions_of(phi) == 32
    assert torch.equal(logits(phi, 20, beside=20), logits(phi, 20, beside=32))
    assert not torch.allclose(logits(phi, 20, beside=20), logits(phi, 20, beside=33))  # what the limit is for
