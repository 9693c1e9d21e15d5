"""How many positions a model was made for, and what that leaves for prompts, chains and responses."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem

LEAST = 16  # positions of a chain or a response: fewer cannot hold an answer
MOST = 16  # positions that a byte of text may take: normal forms have up to 11 bytes for one, each a token at worst
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


def sure_of_room(policy: Policy, size: int, max_response: int) -> bool:
    """Whether a problem of `size` bytes leaves room for the longest response, whatever its text."""
    return len(policy.asked("")) + MOST * (size + 1) + max_response <= positions_of(policy)


def check_room(policy: Policy, rows: Iterable[tuple[str, Problem]], max_response: int) -> None:
    """Raises UserError, naming the row, where a prompt and the longest response are more than the model has positions.

    rows: (what a person calls it, the problem).
    """
    positions = positions_of(policy)
    for place, one in rows:
        length = len(policy.asked(one.problem))
        if length + max_response > positions:
            left = positions - length
            remedy = f", or give --max-response {left:g}" if left > 0 else ""
            raise UserError(
                f"{place}: a prompt of {length} positions and a response of {max_response} are more than the "
                f"{positions:g} of {policy.name}; shorten it or leave it out{remedy}"
            )


def settle_asked(
    policy: Policy, settings: TrainSettings, rows: Sequence[Setting], chosen: bool, report: Callable[[str], None]
) -> TrainSettings:
    """Lengths for a policy that is only asked. `report` hears, in a line, of a response that is shortened.

    A max_response that the user chose stays, and is refused with a UserError where it leaves no prompt any room. One
    that a checkpoint was trained with stays where it leaves prompts some. A recipe's is shortened as for training.
    """
    room, length = positions_of(policy), settings.max_response
    left = room - length
    if chosen and left <= len(policy.asked("")):
        raise UserError(
            f"--max-response {length} leaves a prompt no room in the {room:g} positions of {policy.name}; give fewer"
        )
    if chosen or ("max_response" in policy.card.rollout and left >= LEAST):
        return replace(settings, max_prompt=int(min(settings.max_prompt, left)))
    if room < 2 * LEAST:
        raise UserError(f"{policy.name} has {room:g} positions; give a --max-response that leaves a prompt room")
    settings, rows = settle(policy, settings, rows, [])
    why = next(row.reason for row in rows if row.name == "max_response")
    if settings.max_response < length:
        report(f"responses of at most {settings.max_response} positions, not {length}: {why}")
    return settings


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
