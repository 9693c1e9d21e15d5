"""The memory of Latent-SFT by hand, and what is given up, in which order, where there is less of it."""

from typing import Any

import pytest

from lgrpo import session
from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import Schedule, schedule
from lgrpo.memory.latent_sft import fit, needs, plan_rows
from lgrpo.memory.reinforcement import Shape, shape_of

SMALL = Shape(
    parameters=1000, trained=800, largest=100, layers=2, hidden=10, inner=40, vocabulary=50, itemsize=2, column=6,
    kept=200.0, square=0.0,
)  # fmt: skip
ONE_B = Shape(  # Llama-3.2-1B's, as test_memory_reinforcement.py finds it
    parameters=1_235_814_400, trained=973_146_112, largest=16_777_216, layers=16, hidden=2048, inner=8192,
    vocabulary=128_256, itemsize=2, column=32_768, kept=127_256.0, square=0.0,
)  # fmt: skip


def made(recipe: str = "low", **changes: Any) -> Schedule:
    sizes = {"max_prompt": 192, "max_response": 128, **changes}
    return schedule(recipe, device="cuda", **sizes)[0]


def few(**changes: Any) -> Schedule:
    """Rows of 4 + 6 + 3 + 7 = 20 positions at most, five of them in a micro-batch."""
    return made(**{"max_prompt": 4, "max_chain": 6, "max_response": 7, "micro_tokens": 100, **changes})


def test_every_part_by_hand() -> None:
    """800 trained weights have 2 bytes missing, 2 of gradient and 2 + 8/256 of states; masks have 5 * 20^2 entries."""
    moved = 800 * (2 + 2 + 2 + 8 / 256)
    kept = 100 * (2 * 200 + 240) + 2 * 100 + 3 * 5 * 400
    logits = 16 * 100 * 50
    assert needs(SMALL, few()) == {
        "warm start": 4000 + moved + kept + logits,
        "encoder": 4000 + moved + 2 * kept + logits,
        "decoder": 4000 + moved + kept + logits,
        "encoder and decoder": 4000 + 2 * moved + 2 * kept + logits,
        "walk": 2000 + moved + kept + logits,
    }
    whole = needs(SMALL, few(train_embedding=True))["walk"]
    assert whole == pytest.approx(2000 + moved * 1000 / 800 + kept + logits)
    assert "encoder and decoder" not in needs(SMALL, few(joint_steps=0))
    # A row that is longer than a micro-batch is not cut: 20 positions, checkpointed.
    longest = needs(SMALL, few(micro_tokens=8, checkpointing=True))["walk"]
    assert longest == 2000 + moved + 20 * (200 + 2 * 10 * 2 + 240) + 200 + 3 * 400 + 16 * 20 * 50


def test_less_room_is_met_step_by_step() -> None:
    """Smaller micro-batches, checkpointing, and at last no part that trains both models together."""
    found = {room: fit(ONE_B, made(), room * 1e9) for room in (126, 43, 21.6, 14)}
    assert [(one.micro_tokens, one.checkpointing, one.joint_steps > 0) for one in found.values()] == [
        (8192, False, True), (4096, False, True), (8192, True, True), (4096, True, False),
    ]  # fmt: skip
    for room, one in found.items():
        assert max(needs(ONE_B, one).values()) <= room * 1e9
    assert fit(ONE_B, made(), None) == made()


def test_what_the_user_set_stays() -> None:
    asked = made(micro_tokens=6000, joint_steps=7)
    chosen = fit(ONE_B, asked, 22e9, {"micro_tokens", "joint_steps"})
    assert (chosen.micro_tokens, chosen.joint_steps, chosen.checkpointing) == (6000, 7, True)
    with pytest.raises(UserError, match="for the part 'encoder and decoder'"):
        fit(ONE_B, asked, 14e9, {"micro_tokens", "joint_steps"})


def test_when_nothing_fits_one_line_says_so() -> None:
    with pytest.raises(UserError, match=r"1\d\.\d GB of memory .* part 'encoder' and 6\.0 GB are free; take") as error:
        fit(ONE_B, made(), 6e9)
    assert "\n" not in str(error.value)


def test_the_plan_says_what_was_derived() -> None:
    rows = schedule("low", device="cuda", max_prompt=192, max_response=128)[1]
    shown = {name: (value, reason) for name, value, reason in plan_rows(ONE_B, fit(ONE_B, made(), 14e9), 14e9, rows)}
    assert shown["joint_steps"] == (0, "derived from the memory: both models cannot be trained together on this device")
    assert shown["checkpointing"][0] is True
    assert shown["micro_tokens"][0] == 4096
    assert shown["memory: decoder"] == ("12.1 GB", "2 models, 1 trained; of 14.0 GB that are free")
    assert shown["memory: walk"][1].startswith("1 model, 1 trained")
    assert "memory: encoder and decoder" not in shown


def test_the_embedded_model_keeps_its_schedule_on_an_ordinary_machine() -> None:
    asked = schedule("tiny", device="cpu", max_prompt=512, max_response=64)[0]
    shape = shape_of(session.load(None, "cpu"))
    assert fit(shape, asked, 2e9) == asked
    assert fit(shape, asked, 1e8).checkpointing
