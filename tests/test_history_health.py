"""A run's history is read back as it was, and each range of its numbers is told from what lies outside it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lgrpo.health import troubles
from lgrpo.history import History
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.metrics import METRICS, shown
from lgrpo.overrides import read_overrides

EARLIER_RATES = {"warm_up_lr", "encoder_lr", "decoder_lr", "joint_lr"}
WELL = {
    "reward": 0.6, "signal": 0.4, "groups": 64, "latent": 9.0, "explicit": 5.0, "invalid": 0.01, "boxed": 0.99,
    "broken": 0, "unchecked": 0.0, "kl": 0.01, "clip_fraction": 0.05, "grad_norm": 0.8, "moved": 0.99, "skipped": 0,
    "rollout_gap": 0.01, "memory_used": 4e9, "memory_free": 2e9,
}  # fmt: skip


def score(step: int, rate: float, error: float = 0.01, invalid: float = 0.0) -> dict[str, float]:
    return {"step": step, "pass@1": rate, "pass@1_se": error, "invalid": invalid}


def history(count: int = 8, scores: tuple = (), **last: object) -> History:
    """A run whose last three steps differ from a healthy one by `last`."""
    steps = [{"step": n + 1, **WELL, **(last if n >= count - 3 else {})} for n in range(count)]
    return History(steps, list(scores))


def test_a_healthy_run_has_no_trouble() -> None:
    assert troubles(history(scores=(score(0, 0.5), score(4, 0.55), score(8, 0.54)))) == []
    assert troubles(History()) == []
    assert troubles(history(2)) == []


def test_a_lower_rate_is_asked_for_by_the_option_that_lowers_it() -> None:
    """Of `init`, --lr is the walk's alone."""
    helps = {}
    for part, number in (("train", "reward"), ("walk", "text"), ("encoder", "loss")):
        steps = [{"step": n + 1, number: 0.5, "moved": 1.0, "grad_norm": 1.0, "skipped": 1} for n in range(11)]
        steps.append({**steps[-1], "grad_norm": 30.0})
        helps[part] = [one.help for one in troubles(History(steps, [])) if one.name in ("skipped", "grad_norm")]
        assert len(helps[part]) == 2
    assert all("a lower --lr" in one for one in helps["train"] + helps["walk"])
    for one in helps["encoder"]:
        names = re.findall(r"(\w+_lr)=N", one)
        assert "--lr" not in one
        assert set(read_overrides([f"{name}=1e-5" for name in names], Schedule)) == {*names} == EARLIER_RATES


@pytest.mark.parametrize(
    ("last", "name", "what"),
    [
        ({"reward": 0.0, "boxed": 0.02}, "reward", "and 2% end in \\boxed{}"),
        ({"reward": 0.0, "invalid": 0.8}, "reward", "and 80% were cut off"),
        ({"reward": 0.0}, "reward", "though 99% end in \\boxed{}"),
        ({"reward": 0.99}, "reward", "99.0% of the rollouts are right"),
        ({"groups": 0, "signal": 0.0}, "signal", "no group of the last 3 steps had signal"),
        ({"signal": 0.03}, "signal", "only 3.0% of the groups"),
        ({"latent": 4.0, "explicit": 20.0}, "latent", "collapsing: 9.0 -> 4.0 steps, explicit 5.0 -> 20.0"),
        ({"invalid": 0.25}, "invalid", "25% of the rollouts are cut off"),
        ({"kl": 0.6}, "kl", "0.60 a position"),
        ({"clip_fraction": 0.35}, "clip_fraction", "35% of the positions"),
        ({"skipped": 1}, "skipped", "not finite"),
        ({"moved": 0.2}, "moved", "only 20.0% of the weights move"),
        ({"rollout_gap": 0.2}, "rollout_gap", "disagree by 0.20"),
        ({"broken": 2}, "broken", "no numbers"),
        ({"unchecked": 0.02}, "unchecked", "2.0% of the answers"),
        ({"memory_free": 1e8}, "memory", "0.1 GB of memory are left"),
    ],
)
def test_each_range_is_noticed_alone(last: dict[str, object], name: str, what: str) -> None:
    found = {trouble.name: trouble.what for trouble in troubles(history(**last))}
    assert what in found.pop(name)
    assert set(found) <= {"invalid"} & {"invalid" if last.get("invalid") == 0.8 else ""}


def test_one_odd_step_is_no_trouble() -> None:
    odd = history()
    odd.steps[-1] = {**odd.steps[-1], "reward": 0.0, "kl": 1.0, "groups": 0, "invalid": 0.5, "moved": 0.0}
    assert "reward" not in {trouble.name for trouble in troubles(odd)}
    assert "signal" not in {trouble.name for trouble in troubles(odd)}


def test_a_gradient_far_from_the_usual_one_is_noticed() -> None:
    steps = [{"step": n, **WELL} for n in range(20)]
    steps[-1] = {**steps[-1], "grad_norm": 16.1}
    assert [trouble.what for trouble in troubles(History(steps))] == ["the gradient is 16.1, usually 0.8"]
    steps[-1] = {**steps[-1], "grad_norm": 15.9}
    assert troubles(History(steps)) == []


def test_a_falling_score_is_noticed_beyond_its_error() -> None:
    rising = [score(0, 0.5), score(10, 0.6), score(20, 0.569), score(30, 0.568)]
    (trouble,) = troubles(history(scores=tuple(rising)))
    assert trouble.what == "held-out Pass@1 fell from 0.600 (step 10) to 0.568"
    assert troubles(history(scores=tuple(rising[:3]))) == []  # one low score may be chance
    assert troubles(history(scores=(*rising[:3], score(30, 0.571)))) == []


def test_held_out_answers_that_could_not_be_checked_are_noticed_in_the_newest_score() -> None:
    torn, whole = {**score(4, 0.5), "problems": 64, "unchecked": 1}, {**score(8, 0.5), "problems": 64, "unchecked": 0}
    (trouble,) = troubles(history(scores=(whole, torn)))
    assert trouble.name == "held_out_unchecked"
    assert trouble.what == "1 of the 64 held-out answers could not be checked and count as wrong"
    assert troubles(history(scores=(torn, whole))) == []


def test_a_first_chain_that_never_answers_or_never_ends_is_noticed() -> None:
    steps = [{"step": n, "text": 0.5, "grad_norm": 1.0} for n in range(9)]
    never = History(steps, [score(4, 0.0, invalid=1.0), score(8, 0.0, invalid=0.9)])
    assert [trouble.what for trouble in troubles(never)] == [
        "no held-out answer was right in the last two scores; 90% were cut off"
    ]
    endless = History(steps, [score(4, 0.2), score(8, 0.3, invalid=0.3)])
    assert [trouble.what for trouble in troubles(endless)] == ["30% of the held-out chains do not end"]


def test_a_learning_rate_that_is_meant_to_fall_to_nothing_is_no_trouble() -> None:
    steps = [{"step": n, "text": 0.01, "grad_norm": 1.0, "moved": 1 - n / 10} for n in range(10)]
    assert troubles(History(steps)) == []


def test_history_is_read_back(tmp_path: Path) -> None:
    lines = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": None}]
    torn = '{"step": 3, "rew'
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    events = [held_out(2, 0.1), {"event": "trial"}, held_out(0, 0.3), held_out(2, 0.2)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    read = History.read(tmp_path)
    assert read.steps == [{"step": 1, "reward": 0.5}, {"step": 2}]
    assert [(one["step"], one["pass@1"]) for one in read.scores] == [(0, 0.3), (2, 0.2)]  # scored again: counts once
    assert (len(read.until(1).steps), len(read.until(1).scores)) == (1, 1)
    assert History.read(tmp_path / "nowhere") == History()


def test_means_need_enough_steps() -> None:
    few = History([{"step": 1, "kl": 1.0}, {"step": 2}, {"step": 3, "kl": 3.0}])
    assert few.last("kl") == []
    assert few.last("kl", 1) == [3.0]
    assert few.mean("kl") is None
    assert history(latent=3.0).early("latent") == 9.0
    assert history(5).early("latent") is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("reward", 0.75, "0.750"), ("invalid", 0.0123, "1.2%"), ("invalid", 0.123, "12%"), ("latent", 8.84, "8.8"),
        ("tokens_per_s", 30312.4, "30,312"), ("rollout_s", 1.234, "1.2 s"), ("memory_used", 1.23e9, "1.2 GB"),
        ("kl", 0.00012, "1.2e-4"), ("kl", None, "None"), ("reward", float("nan"), "nan"), ("anything", 0.5, "0.500"),
    ],
)  # fmt: skip
def test_numbers_are_written_by_their_kind(name: str, value: object, text: str) -> None:
    assert shown(name, value) == text


def test_every_metric_is_explained() -> None:
    assert all(metric.meaning and metric.label for metric in METRICS.values())
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)


def held_out(step: Any, rate: Any, **more: Any) -> dict[str, Any]:
    facts = {"event": "held_out", "step": step, "pass@1": rate, "pass@1_se": 0.1}
    return {**facts, "latent_length": 9.0, "explicit_length": 5.0, **more}


def test_what_is_not_in_its_form_is_left_out(tmp_path: Path) -> None:
    lines = [{"step": 1, "reward": "high", "loss": True}, {"step": "2"}, {"step": -1}, {"step": 3, "reward": 1e308}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    odd = [held_out("1", 0.5), held_out(1, "0.5"), held_out(1, 1.5), held_out(1, 0.5, latent_length=None)]
    good = held_out(2, 0.5, shares=[0, "1"], samples=[{"problem": 3}], invalid=0.25, **{"pass@1_interval": [0.1]})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in [*odd, good]))
    read = History.read(tmp_path)
    assert read.steps == [{"step": 1}, {"step": 3}]
    assert read.scores == [held_out(2, 0.5, invalid=0.25)]
