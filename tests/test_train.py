"""The loop of reinforcement: what a run saves, and that going on is never another run."""

import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lgrpo import arithmetic, evaluate, tiny
from lgrpo.engine.slots import Slots
from lgrpo.errors import UserError
from lgrpo.groups import Group, Sampler
from lgrpo.history import read_lines
from lgrpo.learner import Learner
from lgrpo.metrics import group
from lgrpo.optimizer import Optimizer
from lgrpo.options import TrainOptions
from lgrpo.plan import Setting, TrainSettings, train_settings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Rollout
from lgrpo.runs import Run
from lgrpo.screen import Show
from lgrpo.train import train
from lgrpo.verify.verifier import Verdict

PROBLEMS = list(itertools.islice(arithmetic.draw("train", 3), 12))


class Parity:
    """Rewards that differ within a group, whatever an untrained chain says: by the text's bytes and the problem."""

    def __init__(self, pattern: str = "parity"):
        self.pattern = pattern

    failures = 0

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        if self.pattern == "never":
            return [0.0] * len(responses)
        return [float((number + len(text)) % 2) for number, text in enumerate(responses)]

    def verdicts(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        return [Verdict(reward) for reward in self.grade(responses, references)]


def settings(**changes: object) -> TrainSettings:
    base, _ = train_settings(Setting("recipe", "tiny", ""), k=4, group=4)
    small = replace(base, batch=3, update_batch=2, steps=4, max_response=6, eval_every=2, draws=3, slots=16, lr=1e-3)
    small = replace(small, mask_invalid=False)  # an untrained chain never ends, and should teach all the same
    return replace(small, **changes)  # type: ignore[arg-type]


def run_to(
    folder: Path,
    steps: int,
    grader: Parity | None = None,
    dtype: torch.dtype = torch.float32,
    asked: TrainOptions | None = None,
    **changes: object,
) -> Path:
    """Train, or go on, as the command does; returns the latest checkpoint."""
    with Run.start(folder, "train", [], identity={"seed": 0}) as run, Show() as show:
        policy = Policy.load(run.latest() or tiny.MODEL, dtype=dtype)
        chosen = settings(steps=steps, **changes)
        train(policy, PROBLEMS, PROBLEMS[:2], chosen, grader or Parity(), run, show, asked=asked)
        latest = run.latest()
        assert latest is not None
        return latest


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "train_state.safetensors")}


@pytest.mark.parametrize(
    ("dtype", "steps"), [(torch.float32, 4), pytest.param(torch.bfloat16, 2, marks=pytest.mark.slow)]
)
def test_a_run_that_goes_on_is_bit_for_bit_the_run_that_never_stopped(
    tmp_path: Path, dtype: torch.dtype, steps: int
) -> None:
    whole = run_to(tmp_path / "whole", steps, dtype=dtype)
    run_to(tmp_path / "halves", steps // 2, dtype=dtype)
    halves = run_to(tmp_path / "halves", steps, dtype=dtype)
    ours, theirs = weights(halves), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((halves / "train_state.json").read_text()) == json.loads((whole / "train_state.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert json.loads((halves / "train_state.json").read_text())["cursor"] == sum(line["drawn"] for line in lines)
    assert all(0 <= line["padding"] < 1 for line in lines)


def test_running_out_of_memory_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once in the middle of an update, after the worst case was tried."""
    hidden, gradients = Policy.hidden, itertools.count()

    def limited(self: Policy, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and next(gradients) == 2:  # 0: the trial
            raise torch.OutOfMemoryError("injected")
        return hidden(self, *args)

    monkeypatch.setattr(Policy, "hidden", limited)
    run_to(tmp_path, 2)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.index("trial") < kinds.index("out_of_memory")
    (halved,) = [event["micro_tokens"] for event in events if event["event"] == "out_of_memory"]
    assert halved < settings().micro_tokens
    assert f"micro_tokens {halved}" in capsys.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the machine has a say in: times, and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if group(name) not in ("time", "device")} for line in lines]


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [
        {n: v for n, v in event.items() if n not in ("event", "time")} for event in events if event["event"] == kind
    ]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_running_out_of_memory_among_the_weights_is_told_and_changes_no_bit(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second optimiser step, once tensors have moved and before others do."""
    smooth = run_to(tmp_path / "smooth", 1, dtype=dtype)
    move, calls = Optimizer._move_piece, itertools.count()
    tensors = len(Policy.load(tiny.MODEL).trainable())

    def limited(self: Optimizer, *args: Any) -> None:
        if next(calls) == tensors + tensors // 2:
            raise torch.OutOfMemoryError("injected")
        move(self, *args)

    monkeypatch.setattr(Optimizer, "_move_piece", limited)
    disturbed = run_to(tmp_path / "disturbed", 1, dtype=dtype)
    assert len(events_of(tmp_path / "disturbed", "out_of_memory")) == 1
    assert events_of(tmp_path / "smooth", "out_of_memory") == []
    ours, theirs = weights(disturbed), weights(smooth)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines_of(tmp_path / "disturbed") == lines_of(tmp_path / "smooth")


def test_running_out_of_memory_in_a_held_out_score_is_told_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both held-out problems at a time are too many. A step comes before the second score."""
    answer, answered = evaluate.answer, []

    def listen(*args: Any, **rest: Any) -> Any:
        answered.append(answer(*args, **rest))
        return answered[-1]

    monkeypatch.setattr(evaluate, "answer", listen)
    run_to(tmp_path / "smooth", 2)
    step = Slots.step

    def limited(self: Slots, rows: int, *rest: Any, **more: Any) -> None:
        if rows == 2 and float(self.noise_scale.max()) == 0:
            raise torch.OutOfMemoryError("injected")
        step(self, rows, *rest, **more)

    monkeypatch.setattr(Slots, "step", limited)
    run_to(tmp_path / "disturbed", 2)
    assert len(answered) == 4
    for ours, theirs in zip([*answered[2], *answered[3]], [*answered[0], *answered[1]], strict=True):
        assert (ours.problem, ours.text, ours.right) == (theirs.problem, theirs.text, theirs.right)
        assert torch.equal(ours.rollout.indices, theirs.rollout.indices)
    told = events_of(tmp_path / "disturbed", "rollouts")
    assert [event["note"] for event in told] == ["out of memory: 1 rollouts at a time from now on"]
    expected = events_of(tmp_path / "smooth", "held_out")
    assert len(expected) == 2
    assert events_of(tmp_path / "disturbed", "held_out") == expected
    for ours, theirs in zip(lines_of(tmp_path / "disturbed"), lines_of(tmp_path / "smooth"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_training_changes_the_weights_but_not_embedding_and_head(tmp_path: Path) -> None:
    before, after = load_file(tiny.MODEL / "model.safetensors"), load_file(run_to(tmp_path, 2) / "model.safetensors")
    frozen = [name for name in after if torch.equal(before[name].float(), after[name])]
    assert frozen == ["model.embed_tokens.weight"]


def test_the_starting_point_is_scored_and_kept_when_nothing_beats_it(tmp_path: Path) -> None:
    run_to(tmp_path, 2, Parity("never"))
    with Run.open(tmp_path) as run:
        best = run.best()
        assert best is not None
        assert best.name == "step-000000"


def test_a_run_without_any_signal_ends_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latest = run_to(tmp_path, 1, Parity("never"))
    assert "no group had signal in 9 prompts" in capsys.readouterr().err
    before = load_file(tiny.MODEL / "model.safetensors")
    after = load_file(latest / "model.safetensors")
    assert all(torch.equal(before[name].float(), after[name]) for name in after)


def test_the_checkpoint_is_an_ordinary_folder_with_a_latent_card(tmp_path: Path) -> None:
    import transformers

    latest = run_to(tmp_path, 1)
    assert transformers.AutoModelForCausalLM.from_pretrained(latest).config.model_type == "llama"
    card = json.loads((latest / "lgrpo.json").read_text())
    assert (card["mode"], card["recipe"], card["k"]) == ("latent", "tiny", 4)


def test_an_explicit_run_writes_ordinary_tokens_only(tmp_path: Path) -> None:
    run_to(tmp_path, 1, explicit=True, first_token=False)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["latent"] == 0
    assert line["explicit"] > 0


def sampler(pattern: Sequence[bool], **changes: object) -> Sampler:
    """A real sampler whose grader gives the n-th prompt differing rewards where `pattern` says so."""
    from lgrpo.engine import Engine

    chosen = settings(**changes)
    policy = Policy.load(tiny.MODEL)
    engine = Engine(policy, chosen.latent_settings, chosen.text_settings, chosen.max_response, chosen.slots)
    seen = itertools.count()

    class Grader:
        failures = 0

        def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
            out: list[float] = []
            for _ in range(len(responses) // chosen.group):
                out += [float(pattern[next(seen) % len(pattern)])] + [0.0] * (chosen.group - 1)
            return out

    return Sampler(policy, engine, PROBLEMS, Grader(), chosen)


def test_groups_without_signal_are_replaced_until_the_batch_is_full() -> None:
    drawn = sampler([True, False], draws=9).collect(0)
    assert len(drawn.kept) == 3
    assert all(group.has_signal(settings()) for group in drawn.kept)
    assert drawn.cursor == len(drawn.seen) > 3


def test_the_search_for_signal_ends_after_the_allowed_draws() -> None:
    drawn = sampler([False], draws=5).collect(0)
    assert drawn.kept == []
    assert drawn.cursor == 5 * 3


def test_rewards_that_differ_only_from_a_masked_rollout_are_no_signal() -> None:
    """`high` leaves invalid rollouts out of the statistics: of valid rewards that are all equal nothing is left."""
    cut_off, ended = (
        Rollout((1,), torch.tensor([5]), torch.zeros(1, 2).long(), torch.zeros(1, 2), torch.zeros(1), valid)
        for valid in (False, True)
    )
    group = Group(PROBLEMS[0], [cut_off, ended, ended, ended], [0.0, 1.0, 1.0, 1.0])
    assert not group.has_signal(settings(keep_invalid_in_statistics=False, mask_invalid=True))
    assert group.has_signal(settings(keep_invalid_in_statistics=True, mask_invalid=True))
    assert group.has_signal(settings(keep_invalid_in_statistics=False, mask_invalid=False))
    alone = Group(PROBLEMS[0], [cut_off, cut_off, cut_off, ended], [0.0, 0.0, 0.0, 1.0])
    assert alone.has_signal(settings(keep_invalid_in_statistics=False, mask_invalid=True))


def test_an_epoch_visits_every_problem_once_and_draws_new_noise_in_the_next() -> None:
    one = sampler([True], batch=12, draws=1, noise_scale=1.0)
    first, second = one.collect(0), one.collect(12)
    assert {g.problem for g in first.kept} == set(PROBLEMS) == {g.problem for g in second.kept}
    by_problem = {g.problem: g.rollouts for g in second.kept}
    same = [torch.equal(g.rollouts[0].scores[:1], by_problem[g.problem][0].scores[:1]) for g in first.kept]
    assert not any(same)


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    one, other = sampler([True], batch=12, draws=1), sampler([True], batch=12, draws=1, seed=1)
    orders = [[g.problem.problem for g in made.seen] for made in (one.collect(0), one.collect(12), other.collect(0))]
    assert len({tuple(order) for order in orders}) == 3
    assert len({frozenset(order) for order in orders}) == 1


def test_a_draw_depends_on_the_cursor_alone() -> None:
    straight, fresh = sampler([True]), sampler([True])
    straight.collect(0)
    ours, theirs = straight.collect(3), fresh.collect(3)
    assert [g.problem for g in ours.kept] == [g.problem for g in theirs.kept]
    for mine, other in zip(ours.kept, theirs.kept, strict=True):
        assert all(torch.equal(a.scores, b.scores) for a, b in zip(mine.rollouts, other.rollouts, strict=True))


def test_problems_of_one_text_with_one_seed_share_their_key_and_nothing_else_does() -> None:
    assert Problem("a", "1").key == Problem("a", "2").key != Problem("b", "1").key


def test_a_checkpoint_is_asked_the_way_it_was_trained(tmp_path: Path) -> None:
    """Trained with other lengths and another noise than the recipe's, it must not be scored under the recipe's."""
    from lgrpo.asking.ask import engine_settings

    latest = run_to(tmp_path, 1, noise_scale=0.125, noise_top_p=0.5)
    asked = engine_settings(Policy.load(latest), None, pytest.fail)
    assert (asked.max_response, asked.noise_scale, asked.noise_top_p) == (6, 0.125, 0.5)
    assert engine_settings(Policy.load(latest), 9, pytest.fail).max_response == 9


class Poisoned(Optimizer):
    """Its gradients of the steps in `bad` (from 1) are no numbers."""

    bad: frozenset[int] = frozenset()
    taken = 0

    def step(self) -> Any:
        Poisoned.taken += 1
        if Poisoned.taken in Poisoned.bad:
            first = next(parameter for parameter in self.parameters if parameter.grad is not None)
            assert first.grad is not None
            first.grad.view(-1)[0] = float("nan")
        return super().step()


def poison(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    monkeypatch.setattr("lgrpo.learner.Optimizer", Poisoned)
    monkeypatch.setattr(Poisoned, "bad", frozenset(bad))
    monkeypatch.setattr(Poisoned, "taken", 0)


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def test_a_step_that_is_not_finite_is_left_out_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, 1, 2, 4, 5)  # two optimiser steps a batch: never three in a row
    latest = run_to(tmp_path, 3)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in metrics] == [2.0, 1.0, 1.0]
    assert [(event["step"], event["count"]) for event in told(tmp_path, "skipped")] == [(1, 2), (2, 1), (3, 1)]
    assert "step 1: 2 optimiser steps left out: loss or gradient not finite" in capsys.readouterr().err
    assert json.loads((latest / "train_state.json").read_text())["skipped"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(latest / "model.safetensors").values())


def test_three_steps_in_a_row_that_are_not_finite_end_the_run_with_a_diagnosis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 6, 7, 8)
    with pytest.raises(UserError) as caught:
        run_to(tmp_path, 8, eval_every=1)
    message = str(caught.value)
    assert message.startswith(
        "step 4: 3 optimiser steps in a row had a loss or gradient that is not finite; the weights"
    )
    assert "the weights are finite; start again from the last good checkpoint with a lower rate" in message
    assert f"`lgrpo train {tmp_path / 'checkpoints/step-000003'} --out {tmp_path}-2 --lr 0.0005`" in message
    assert [event["step"] for event in told(tmp_path, "diverged")] == [4]
    assert (tmp_path / "report.html").exists()


def test_what_a_diverged_run_advises_has_the_options_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my run"
    asked = TrainOptions(
        data="a b.jsonl", overrides=["k=3", "limit=9"], without=["masking"], explicit=True, seed=0, overwrite=True
    )
    poison(monkeypatch, 2, 3, 4)
    with pytest.raises(UserError) as caught:
        run_to(folder, 8, asked=asked, eval_every=1)
    command = str(caught.value).split("`")[1]
    words = ["train", str(folder / "checkpoints/step-000001"), "--data", "a b.jsonl", "--out", f"{folder}-2"]
    words += ["--set", "k=3", "--set", "limit=9", "--lr", "0.0005", "--seed", "0", "--without", "masking", "--explicit"]
    assert shlex.split(command) == ["lgrpo", *words]
    assert "--set k=3 --set limit=9" in command


def test_a_good_step_later_in_the_batch_does_not_hide_three_bad_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 1, 2, 3)  # of four
    with pytest.raises(UserError, match="step 1: 3 optimiser steps in a row"):
        run_to(tmp_path, 1, batch=8, update_batch=2)


def test_the_count_of_bad_steps_survives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 3, 4, 5)
    run_to(tmp_path, 2)
    with pytest.raises(UserError, match="step 3: 3 optimiser steps in a row"):
        run_to(tmp_path, 4)


def test_weights_that_are_no_numbers_are_named_and_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Learner.learn

    def break_weights(self: Learner, groups: Sequence[Group]) -> dict[str, float]:
        numbers = learn(self, groups)
        with torch.no_grad():
            self.policy.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
        return numbers

    monkeypatch.setattr(Learner, "learn", break_weights)
    with pytest.raises(UserError, match=r"1 tensors hold numbers that are not finite \(model.layers.0.mlp.up_proj"):
        run_to(tmp_path, 9, eval_every=100)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(tmp_path: Path) -> None:
    whole = run_to(tmp_path / "whole", 4, eval_every=1)
    latest = run_to(tmp_path / "damaged", 3, eval_every=1)
    content = bytearray((latest / "train_state.safetensors").read_bytes())
    content[-1] ^= 128
    (latest / "train_state.safetensors").write_bytes(content)
    again = run_to(tmp_path / "damaged", 4, eval_every=1)
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [event["checkpoint"] for event in told(tmp_path / "damaged", "damaged")] == ["step-000003"]
    lines = [json.loads(line) for line in (tmp_path / "damaged" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_a_policy_without_a_logit_that_is_a_number_ends_after_three_steps(tmp_path: Path) -> None:
    policy = Policy.load(tiny.MODEL)
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with Run.start(tmp_path, "train", []) as run, Show() as show:
        with pytest.raises(UserError, match=r"step 3: 3 optimiser steps in a row .*; 1 tensors hold numbers") as caught:
            train(policy, PROBLEMS, PROBLEMS[:2], settings(steps=9, eval_every=2), Parity("never"), run, show)
        assert "step-000000 --out" in str(caught.value)  # what was saved at step 2 is no good checkpoint
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["skipped"], line["broken"] > 0) for line in metrics] == [(1.0, True)] * 3


def test_a_run_whose_every_checkpoint_is_damaged_begins_anew_and_has_no_step_twice(tmp_path: Path) -> None:
    run_to(tmp_path / "run", 1)
    for weights_file in (tmp_path / "run").glob("checkpoints/*/model.safetensors"):
        weights_file.write_bytes(weights_file.read_bytes()[:-1])
    run_to(tmp_path / "run", 2)
    assert [line["step"] for line in read_lines(tmp_path / "run/metrics.jsonl")] == [1, 2]
