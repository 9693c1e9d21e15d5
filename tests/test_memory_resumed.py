# ruff: noqa: F401, F811 - fixtures of test_cli
"""A run goes on as it was cut, whatever memory is free when it does."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import _small, ctrl_c, done, latent, lgrpo, mixed_rewards, policy, record_of, steps_of

from lgrpo import plan
from lgrpo.latent_sft import schedule
from lgrpo.memory import reinforcement
from lgrpo.memory.resumed import as_begun
from lgrpo.plan import Setting, train_settings

TRAIN = ("train", "model", "--device", "cpu", "--data", "arithmetic", "--set", "limit=40")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Bytes that are free: the last of the list."""
    free = [1e12]
    monkeypatch.setattr(reinforcement, "room_on", lambda device, weights: free[-1])
    return free


def of(run: str, name: str) -> Any:
    return record_of(run)["settings"][name]["value"]


@pytest.mark.usefixtures("_small", "mixed_rewards")
def test_with_more_memory_than_at_its_start_training_ends_to_the_bit_as_if_nothing_had_changed(
    latent: str, room: list[float], ctrl_c: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of four bytes taken in another order are others."""
    monkeypatch.setitem(plan._RECIPES["tiny"], "micro_tokens", (4096, "more than there is room for"))
    train = (*TRAIN[:1], latent, *TRAIN[2:])
    room.append(1e8)
    done(*train, "--out", "whole")
    ctrl_c.append(1)
    assert lgrpo(*train, "--out", "cut").exit_code == 130
    begun = {name: of("cut", name) for name in ("micro_tokens", "checkpointing")}
    room.append(1e12)
    ended = done(*train, "--out", "cut")
    assert steps_of("cut") == [1, 2, 3]
    assert {name: of("cut", name) for name in begun} == begun
    assert record_of("cut")["settings"]["checkpointing"]["reason"] == "as this run began"
    assert "as this run began" in ended.stderr
    weights = "checkpoints/step-000003/model.safetensors"
    assert Path("cut", weights).read_bytes() == Path("whole", weights).read_bytes()
    done(*train, "--out", "whole", "--overwrite")  # it has ended: another run, which keeps nothing of its plan
    assert of("whole", "checkpointing") is False


@pytest.mark.usefixtures("_small", "mixed_rewards")
def test_what_the_memory_left_out_at_the_start_is_not_another_run_later(
    room: list[float], ctrl_c: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training encoder and decoder together is left out where they do not fit; a run goes on with or without it."""
    monkeypatch.setitem(schedule._RECIPES["tiny"], "joint_steps", (1, "small"))
    init = ("init", "--device", "cpu", "--data", "arithmetic", "--set", "limit=40", "--out")
    for run, free, joint in (("without", 4e7, 0), ("with", 1e12, 1)):
        room.append(free)
        ctrl_c.append(1)
        assert lgrpo(*init, run).exit_code == 130
        assert of(run, "joint_steps") == joint
    room.append(4e7)
    refused = lgrpo(*init, "with")
    assert refused.exit_code == 2
    assert "are needed at least for the part 'encoder and decoder' and 40.0 MB are free" in refused.stderr
    for run, free, joint in (("without", 1e12, 0), ("with", 6e7, 1)):
        room.append(free)
        done(*init, run)
        assert of(run, "joint_steps") == joint


@pytest.mark.parametrize(
    "known", [None, 7, {"micro_tokens": 5}, {"micro_tokens": {"value": "5"}, "slots": {"value": True}}]
)
def test_what_a_record_does_not_say_is_derived_anew(tmp_path: Path, known: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "settings": known}))
    settings, rows = train_settings(Setting("recipe", "tiny", ""), k=4)
    assert as_begun(tmp_path, "train", settings, rows, set()) == (settings, list(rows), set())


def test_what_the_user_sets_now_comes_before_what_the_run_began_with(tmp_path: Path) -> None:
    said = {"micro_tokens": {"value": 77}, "slots": {"value": 3}, "lr": {"value": 1.0}}
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "settings": said}))
    settings, rows = train_settings(Setting("recipe", "tiny", ""), k=4, micro_tokens=88)
    kept, shown, begun = as_begun(tmp_path, "train", settings, rows, {"micro_tokens"})
    assert (kept.micro_tokens, kept.slots, kept.lr, begun) == (88, 3, settings.lr, {"slots"})
    assert Setting("slots", 3, "as this run began") in shown
    assert (
        as_begun(tmp_path, "init", settings, rows, set())[2]
        == as_begun(None, "train", settings, rows, set())[2]
        == set()
    )
