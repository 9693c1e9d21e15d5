"""How many positions a model was made for, and what that leaves for prompts, chains and responses."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem

LEAST = 16  # positions of a chain or a response: fewer cannot hold an answer
AFTER_PROMPT = ("max_response", "max_chain")  # each follows a prompt of at most max_prompt
S = TypeVar("S", TrainSettings, Schedule)


def positions_of(policy: Policy) -> float:
    """How many positions the model was made for; without end where its configuration does not say.

    Of a `longrope` model (Phi-3), those of its original length: past it `transformers` turns all rows of a batch by
    other angles, so that a response would depend on what it is answered beside, and on its own cached keys' age.
    """
    config = policy.model.config.get_text_config()
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [rotary, *(kind for kind in rotary.values() if isinstance(kind, Mapping))]  # one for all layers, or by type
    original = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    positions = getattr(config, "max_position_embeddings", None)
    return min([math.inf if positions is None else positions, *original])


def check_room(policy: Policy, problems: Sequence[Problem], max_response: int | None) -> None:
    """Raises UserError where a prompt, or the longest response asked for, is more than the model has positions."""
    positions = positions_of(policy)
    if max_response is not None and max_response > positions:
        raise UserError(f"--max-response {max_response} is more than the {positions} positions of {policy.name}")
    longest = max(len(policy.prompt_ids(one.problem, policy.latent)) for one in problems)
    if longest >= positions:
        raise UserError(
            f"the longest prompt has {longest} positions and {policy.name} has {positions}; shorten it or leave it out"
        )


def settle(policy: Policy, settings: S, rows: Sequence[Setting], chosen: Collection[str]) -> tuple[S, list[Setting]]:
    """Lengths for which the model has positions, and the plan that says so.

    What the user did not choose (`chosen`: names set) is shortened; what was chosen is refused with a UserError, for a
    model that walks past the end of its positions says nothing of worth, and some fail.
    """
    room = positions_of(policy)
    plan = list(rows)

    def shorten(name: str, length: int, why: str) -> None:
        nonlocal settings, plan
        settings = replace(settings, **{name: length})  # type: ignore[arg-type]
        plan = [Setting(name, length, why) if row.name == name else row for row in plan]

    if settings.max_prompt > room / 2 and "max_prompt" not in chosen:
        shorten("max_prompt", int(room) // 2, f"half of the {room:g} positions of {policy.name}")
    for name in AFTER_PROMPT:
        length, left = getattr(settings, name, 0), room - settings.max_prompt
        if isinstance(settings, Schedule) and name == "max_chain":  # in stage 1 a compress token follows each segment
            left = left * settings.ratio // (settings.ratio + 1)
        if length <= left:
            continue
        if name in chosen or left < LEAST:
            raise UserError(
                f"max_prompt={settings.max_prompt} and {name}={length} are more than the {room:g} positions of "
                f"{policy.name}; " + (f"--set {name}={left:g}" if left >= LEAST else "--set a shorter max_prompt=N")
            )
        shorten(name, int(left), f"{policy.name} has {room:g} positions, {settings.max_prompt} of them for the prompt")
    return settings, plan
