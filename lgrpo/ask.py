"""How a policy that is only asked, by `sample` or `eval`, is taken: as it was trained, latent or not."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lgrpo import plan, session
from lgrpo.plan import TrainSettings
from lgrpo.policy import CARD, Card, Policy
from lgrpo.problems import Problem


def recognised(policy: Policy, name: str, problems: Sequence[Problem], settings: TrainSettings) -> Card:
    """The policy's card; a latent one where the checkpoint has none and turns out to have a latent chain."""
    source = None if session.is_tiny(name) else session.find(name)
    if policy.latent or not session.has_latent_chain(policy, source, problems, settings):
        return policy.card
    print(f"{name} has no {CARD}, but answers after a latent chain: it is asked for one", file=sys.stderr)
    return replace(policy.card, mode="latent")


def engine_settings(policy: Policy, max_response: int | None) -> TrainSettings:
    """Rollout settings of a policy that is only asked: those it was trained under, else the recipe's."""
    chosen = plan.choose_recipe(policy.card.recipe, None, policy.parameters)
    kept: dict[str, Any] = {name: value for name, value in policy.card.rollout.items() if name in plan.ROLLOUT}
    if max_response is not None:
        kept["max_response"] = max_response
    settings, _ = plan.train_settings(chosen, k=policy.card.k, explicit=not policy.latent, **kept)
    return settings
