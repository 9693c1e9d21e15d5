"""The settings against the published table (docs/method.md, 5): a default that moves must be moved here too."""

from typing import Any

import pytest

from lgrpo.errors import UserError
from lgrpo.plan import RECIPES, Setting, choose_recipe, train_settings

BOTH: dict[str, Any] = {
    "group": 8, "tau": 1.0, "noise_scale": 1.0, "one_sided": True, "noise_top_p": 0.95, "temperature": 0.6,
    "top_p": 0.95, "top_k": 30, "clip": 0.2, "dual_clip": 3.0, "lr": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0,
    "draws": 50, "surrogate": "published", "mask_invalid": True, "first_token": True,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "low": {
        **BOTH, "batch": 64, "update_batch": 16, "max_prompt": 192, "max_response": 128, "kl": 0.0,
        "keep_invalid_in_statistics": True,
    },
    "high": {
        **BOTH, "batch": 32, "update_batch": 32, "max_prompt": 1024, "max_response": 4096, "kl": 0.001,
        "keep_invalid_in_statistics": False,
    },
}  # fmt: skip


def settled(recipe: str, **chosen: Any) -> tuple[Any, dict[str, Setting]]:
    settings, rows = train_settings(Setting("recipe", recipe, ""), k=10, **chosen)
    return settings, {row.name: row for row in rows}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_low_and_high_are_the_published_settings(recipe: str) -> None:
    settings, _ = settled(recipe)
    assert {name: getattr(settings, name) for name in PUBLISHED[recipe]} == PUBLISHED[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_has_a_reason_and_what_was_set_says_so(recipe: str) -> None:
    settings, rows = settled(recipe, lr=0.5, kl=None, without=["masking"])
    assert all(row.reason and row.value == getattr(settings, name) for name, row in rows.items() if name != "recipe")
    assert rows["lr"] == Setting("lr", 0.5, "you set it")
    assert rows["mask_invalid"] == Setting("mask_invalid", False, "you set --without masking")


@pytest.mark.parametrize(
    ("technique", "name"), [("masking", "mask_invalid"), ("one-sided", "one_sided"), ("first-token", "first_token")]
)
def test_without_switches_one_technique_off_and_no_other(technique: str, name: str) -> None:
    (whole, _), (ablated, _) = settled("low"), settled("low", without=[technique])
    changed = {field for field in vars(whole) if getattr(whole, field) != getattr(ablated, field)}
    assert changed == {name}


def test_the_recipe_is_the_one_asked_for_else_the_checkpoints_else_by_size() -> None:
    assert choose_recipe("low", "high", 1)[1] == "high"
    assert choose_recipe("low", None, 1)[1] == "low"
    assert [choose_recipe(None, None, size)[1] for size in (800_000, 135_000_000, 7_600_000_000)] == list(RECIPES)
    with pytest.raises(UserError, match="the checkpoint names the recipe 'huge'; give --recipe"):
        choose_recipe("huge", None, 1)


def test_an_optimiser_step_takes_no_more_prompts_than_a_batch_has() -> None:
    assert settled("low", batch=4)[0].update_batch == 4
