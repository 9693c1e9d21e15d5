"""What Latent-SFT needs of its device's memory, part by part, and the schedule that fits (reinforcement.py: of train).

Stage 1 holds two models, the encoder and the decoder; a part trains one of them or both, and where the gradient passes
through both, both keep their activations. Stage 2 has one model.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.memory.reinforcement import STATE, Shape, activations, found, logits, smaller
from lgrpo.plan import Setting
from lgrpo.policy import Policy
from lgrpo.text import gigabytes


class Part(NamedTuple):
    """Models that a part of the schedule holds, trains, and keeps activations of."""

    steps: str  # name of its setting
    held: int
    trained: int
    kept: int


PARTS = {
    "warm start": Part("warm_up_steps", 2, 1, 1),
    "encoder": Part("encoder_steps", 2, 1, 2),
    "decoder": Part("decoder_steps", 2, 1, 1),
    "encoder and decoder": Part("joint_steps", 2, 2, 2),
    "walk": Part("walk_steps", 1, 1, 1),
}


def needs(shape: Shape, schedule: Schedule) -> dict[str, float]:
    """Bytes at the worst moment of each part that has steps."""
    item = shape.itemsize
    trained = shape.parameters if schedule.train_embedding else shape.trained
    moved = trained * ((2 if item == 2 else 0) + STATE + item)  # missing 16 bits, states, gradient
    latents = -(-schedule.max_chain // schedule.ratio)
    longest = schedule.max_prompt + schedule.max_chain + latents + schedule.max_response
    positions = max(schedule.micro_tokens, longest)  # a row is never cut
    mask = 3 * max(1, positions // longest) * longest**2  # a boolean, and the additive one of the layers
    kept = activations(shape, positions, longest, schedule.checkpointing) + mask
    head = logits(shape, positions)
    return {
        name: part.held * item * shape.parameters + part.trained * moved + part.kept * kept + head
        for name, part in PARTS.items()
        if getattr(schedule, part.steps)
    }


def fit(shape: Shape, schedule: Schedule, room: float | None, chosen: Collection[str] = ()) -> Schedule:
    """`schedule` with micro_tokens and checkpointing that fit `room` bytes; None: there is no bound.

    Where training both models together does not fit in any way, that part is left out. Names in `chosen` stay as they
    are. Raises UserError when nothing fits.
    """
    if room is None:
        return schedule
    tries = smaller(schedule, chosen)
    if schedule.joint_steps and "joint_steps" not in chosen:
        tries += [replace(one, joint_steps=0) for one in tries]
    for one in tries:
        if max(needs(shape, one).values()) <= room:
            return one
    least = needs(shape, tries[-1])
    part = max(least, key=lambda name: least[name])
    raise UserError(
        f"{gigabytes(least[part])} of memory are needed at least for the part {part!r} and {gigabytes(room)} are free; "
        "take a smaller model or a larger device, or shorten --set max_chain=N, max_prompt=N or max_response=N"
    )


def plan_rows(shape: Shape, schedule: Schedule, room: float | None, rows: Sequence[Setting]) -> list[Setting]:
    """The plan with what `fit` chose, and the memory each part takes, with reasons."""
    why = {
        "micro_tokens": "the most that fits",
        "checkpointing": "as many positions at a time do not fit without",
        "joint_steps": "both models cannot be trained together on this device",
    }
    out: list[Setting] = []
    for name, value, reason in rows:
        now = getattr(schedule, name)
        if now != value:
            value, reason = now, f"derived from the memory: {why[name]}"
        out.append(Setting(name, value, reason))
    limit = "no bound known" if room is None else f"of {gigabytes(room)} that are free"
    for name, size in needs(shape, schedule).items():
        part = PARTS[name]
        models = f"{part.held} model{'s' * (part.held > 1)}, {part.trained} trained"
        out.append(Setting(f"memory: {name}", gigabytes(size), f"{models}; {limit}"))
    return out


def settle(
    policy: Policy, schedule: Schedule, rows: Sequence[Setting], chosen: Collection[str]
) -> tuple[Schedule, list[Setting]]:
    """A schedule that fits the policy's device, and the plan that explains it. `chosen`: names the user set."""
    shape, room = found(policy)
    schedule = fit(shape, schedule, room, chosen)
    return schedule, plan_rows(shape, schedule, room, rows)
