# ruff: noqa: F401, F811 - fixtures of test_cli
"""A run goes on as it was cut, whatever memory is free when it does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_cli import _small, ctrl_c, done, latent, lgrpo, mixed_rewards, policy, record_of, steps_of

from lgrpo import plan
from lgrpo.latent_sft import schedule
from lgrpo.memory import reinforcement
from lgrpo.memory.resumed import DERIVED, as_begun
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
    room.append(1.5e8)
    done(*train, "--out", "whole")
    ctrl_c.append(1)
    assert lgrpo(*train, "--out", "cut").exit_code == 130
    begun = {name: of("cut", name) for name in DERIVED if name != "joint_steps"}
    room.append(1e12)
    shutil.copytree("cut", "poor")
    ended = done(*train, "--out", "cut")
    assert steps_of("cut") == [1, 2, 3]
    assert {name: of("cut", name) for name in begun} == begun
    assert record_of("cut")["settings"]["checkpointing"]["reason"] == "as this run began"
    assert "as this run began" in ended.stderr
    weights = "checkpoints/step-000003/model.safetensors"
    assert Path("cut", weights).read_bytes() == Path("whole", weights).read_bytes()
    room.append(1e8)
    ctrl_c.append(2)
    assert lgrpo(*train, "--out", "poor").exit_code == 130
    assert of("poor", "micro_tokens") < begun["micro_tokens"]
    assert "the most that fits" in record_of("poor")["settings"]["micro_tokens"]["reason"]
    room.append(1e12)
    done(*train, "--out", "poor")  # as it began, not as it was in between
    assert {name: of("poor", name) for name in begun} == begun
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
    room.append(4e7)
    assert "with is finished" in done(*init, "with").stderr
    done(*init, "with", "--overwrite", "--seed", "1")  # another run, which has room without that part
    assert of("with", "joint_steps") == 0


@pytest.mark.parametrize("known", [None, 7, {"micro_tokens": 0, "slots": 0}, {"micro_tokens": "5", "slots": True}])
def test_what_a_record_does_not_say_is_derived_anew(tmp_path: Path, known: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "cut": known}))
    settings, rows = train_settings(Setting("recipe", "tiny", ""), k=4)
    assert as_begun(tmp_path, "train", settings, rows, set()) == (settings, list(rows), {})


def test_what_the_user_sets_now_comes_before_what_the_run_began_with(tmp_path: Path) -> None:
    said = {"micro_tokens": 77, "slots": 3, "lr": 1.0}
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "cut": said}))
    settings, rows = train_settings(Setting("recipe", "tiny", ""), k=4, micro_tokens=88)
    kept, shown, begun = as_begun(tmp_path, "train", settings, rows, {"micro_tokens"})
    assert (kept.micro_tokens, kept.slots, kept.lr, begun) == (88, 3, settings.lr, {"slots": 3})
    assert Setting("slots", 3, "as this run began") in shown
    for folder, command in ((tmp_path, "init"), (None, "train")):
        assert as_begun(folder, command, settings, rows, set())[2] == {}
