"""`init` from end to end on a model of a few thousand weights: stages, interruption, the choice of the checkpoint."""

import json
import os
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor

from lgrpo import evaluate
from lgrpo import initialise as initialise_module
from lgrpo.cli import main
from lgrpo.engine.slots import Slots
from lgrpo.errors import UserError
from lgrpo.history import History
from lgrpo.initialise import initialise
from lgrpo.latent_sft.encoder import Encoder, Latents
from lgrpo.latent_sft.labels import Labels
from lgrpo.latent_sft.schedule import Schedule, schedule
from lgrpo.memory.latent_sft import PARTS
from lgrpo.memory.trial import Trial
from lgrpo.optimizer import Optimizer
from lgrpo.overrides import read_overrides
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem
from lgrpo.runs import Run
from lgrpo.stages import RATES
from lgrpo.verify.verifier import Verdict

STEPS = {"warm_up_steps": 2, "encoder_steps": 1, "decoder_steps": 2, "joint_steps": 1, "walk_steps": 4}
PROBLEMS = [
    Problem(f"w{i} w{3 * i % 20}", f"w{i}", " ".join(f"w{(i + j) % 20}" for j in range(3 + i % 4))) for i in range(20)
]


def settings(**changes: Any) -> Schedule:
    small = {
        "max_prompt": 96,
        "max_response": 24,
        "batch": 4,
        "k": 3,
        "eval_every": 2,
        "save_every": 2,
        "micro_tokens": 64,
    }
    return schedule("tiny", device="cpu", **{**STEPS, **small, **changes})[0]


def base(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Policy:
    made = models.policy(architecture, dtype=dtype)
    made.card = Card("explicit", data="words.jsonl")
    return made


class Recorder:
    """A Show that writes down what it is told; at one step in every `stop_after` it presses Ctrl-C."""

    def __init__(self, stop_after: int = 0):
        self.stages: list[tuple[str, int, int]] = []
        self.numbers: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.scores: list[Mapping[str, Any]] = []
        self.samples = 0
        self._stop_after = stop_after
        self._steps = 0

    def stage(self, title: str, total: int, done: int = 0, history: Any = None) -> None:
        self.stages.append((title, total, done))

    def step(self, done: int, numbers: Mapping[str, Any]) -> None:
        if "grad_norm" not in numbers:
            return
        self.numbers.append(computed(numbers))
        self._steps += 1
        if self._steps == self._stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def phase(self, text: str) -> None:
        pass

    def score(self, score: Mapping[str, Any]) -> None:
        self.scores.append(score)

    def health(self, troubles: Sequence[Any]) -> None:
        pass

    def sample(self, problem: str, chain: str, answer: str, right: bool, reference: str) -> None:
        self.samples += 1

    def say(self, text: str) -> None:
        self.said.append(text)

    warn = say


class ByText:
    """Scores each answer by its text alone, in whatever order and company it comes."""

    failures = 0

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(sum(text.encode()) % 2) for text in responses]

    def verdicts(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        return [Verdict(reward) for reward in self.grade(responses, references)]


class Grader:
    """Scores by the order of calls: what the test wants the held-out scores to be."""

    def __init__(self, *shares: float):
        self._shares = list(shares)

    failures = 0

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        share = self._shares.pop(0) if self._shares else 0.5
        return [float(number < share * len(responses)) for number in range(len(responses))]

    def verdicts(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        return [Verdict(reward) for reward in self.grade(responses, references)]


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def computed(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers without those the machine has a say in."""
    return {name: value for name, value in numbers.items() if not name.startswith("memory_")}


def start(folder: Path) -> Run:
    return Run.start(folder, "init", [], identity={"seed": 0})


def go(run: Run | None, show: Any, policy: Policy | None = None, grader: Any = None, **changes: Any) -> Policy:
    grader = grader or Grader()
    return initialise(policy or base(), PROBLEMS[:16], PROBLEMS[16:], settings(**changes), grader, run, show)


def test_a_run_stopped_in_the_middle_of_parts_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    show = Recorder()
    with start(tmp_path / "whole") as run:
        whole = go(run, show)
        best = run.best()
    assert [stage[0] for stage in show.stages] == [
        "warm start", "encoder", "decoder", "encoder and decoder", "labels", "walk",
    ]  # fmt: skip
    assert all(done == 0 for _, _, done in show.stages)
    stops = 0
    while True:
        with start(tmp_path / "pieces") as run:
            try:
                pieces = go(run, Recorder(stop_after=4))  # within the decoder's part, then within the walk
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops == 2
    expected, found = weights(whole), weights(pieces)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    lines = [[computed(one) for one in History.read(tmp_path / name).steps] for name in ("whole", "pieces")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(1, sum(STEPS.values()) + 1))
    assert best is not None
    assert best.name in os.listdir(tmp_path / "pieces" / "checkpoints")


def test_an_end_that_is_cut_short_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the progress is removed, a run that is not yet finished would find none and begin anew."""
    remove, removed = initialise_module.remove_folder, []

    def cut(folder: Path) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(folder)
        remove(folder)

    with monkeypatch.context() as patched, start(tmp_path) as run:
        patched.setattr(initialise_module, "remove_folder", cut)
        with pytest.raises(KeyboardInterrupt):
            go(run, Recorder())
    with start(tmp_path) as run:
        assert run.finished
        initialise_module.drop_progress(run)
        assert {path.name for path in run.checkpoints()} <= {"walk-000002", "walk-000004"}


def test_the_result_is_a_latent_checkpoint_and_nothing_else_stays(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        made = go(run, Recorder())
        assert run.finished
        assert made.card == Card("latent", "tiny", 3, "words.jsonl")
        assert {path.name for path in run.checkpoints()} <= {"walk-000002", "walk-000004"}
        best = run.best()
    assert best is not None
    again = Policy.load(best)
    assert again.card == Card("latent", "tiny", 3, "words.jsonl")
    assert all(torch.equal(a, b) for a, b in zip(weights(made).values(), weights(again).values(), strict=True))


def test_each_part_moves_what_it_should_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(base())
    none = dict.fromkeys(STEPS, 0)
    for part, moves in (("warm_up_steps", False), ("encoder_steps", False), ("decoder_steps", True)):
        policy = base()
        go(None, Recorder(), policy, **{**none, part: 1, "walk_steps": 1, "walk_lr": 1e-30, "weight_decay": 0.0})
        moved = [name for name, value in weights(policy).items() if not torch.equal(value, before[name])]
        assert bool(moved) == moves, part
    policy = base()
    go(None, Recorder(), policy, train_embedding=False)
    moved = {name for name, value in weights(policy).items() if not torch.equal(value, before[name])}
    assert "lm_head.weight" not in moved
    assert "model.embed_tokens.weight" not in moved
    assert "model.norm.weight" in moved


def test_micro_batches_change_neither_losses_nor_weights() -> None:
    results = []
    for micro_tokens in (4096, 1):
        policy, show = base(), Recorder()
        go(None, show, policy, micro_tokens=micro_tokens)
        results.append((show.numbers, weights(policy)))
    (numbers_a, weights_a), (numbers_b, weights_b) = results
    for a, b in zip(numbers_a, numbers_b, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    for name in weights_a:
        assert torch.allclose(weights_a[name], weights_b[name], rtol=0, atol=2e-3), name


def test_checkpointing_runs_layers_again_and_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, calls, results = type(base().model.model.layers[0]), [0], []
    forward = kind.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls[-1] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(kind, "forward", spy)
    for checkpointing in (False, True):
        policy = base()
        go(None, Recorder(), policy, checkpointing=checkpointing)
        results.append(weights(policy))
        calls.append(0)
    assert calls[1] > calls[0]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [
        {n: v for n, v in event.items() if n not in ("event", "time")} for event in events if event["event"] == kind
    ]


def without_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise_module, "trial", lambda *args, **rest: Trial(args[2].slots, args[3].positions, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_worst_case_is_tried_first_and_changes_no_bit_of_the_run(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: dict[str, tuple[dict[str, Tensor], str, Tensor]] = {}
    for kind in ("tried", "untried"):
        if kind == "untried":
            without_trial(monkeypatch)
        torch.manual_seed(5)
        show = Recorder()
        with start(tmp_path / kind) as run:
            made = go(run, show, base(dtype=dtype))
        metrics = [computed(one) for one in History.read(tmp_path / kind).steps]
        results[kind] = weights(made), metrics, torch.get_rng_state()
        assert events_of(tmp_path / kind, "trial") == [{"slots": 256, "micro_tokens": 64, "peak": None}]
        assert events_of(tmp_path / kind, "out_of_memory") == []
    (tried, lines, random), (untried, other_lines, other_random) = results.values()
    assert tried.keys() == untried.keys()
    assert all(torch.equal(tried[name], untried[name]) for name in tried)
    assert lines == other_lines
    assert torch.equal(random, other_random)


def test_a_run_that_goes_on_tries_the_parts_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the 4th and the 8th of ten steps, then when nothing is left but the end."""
    done: list[int] = []
    tried = initialise_module.trial

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    def spy(policy: Policy, engine: Any, chosen: Schedule, budget: Any, before: int, **rest: Any) -> Trial:
        done.append(before)
        return tried(policy, engine, chosen, budget, before, **rest)

    monkeypatch.setattr(initialise_module, "trial", spy)
    for stop_after in (4, 4, 0):
        with start(tmp_path) as run:
            try:
                go(run, Recorder(stop_after))
            except KeyboardInterrupt:
                assert stop_after
    assert done == [0, 4, 8]
    with start(tmp_path / "again") as run:
        monkeypatch.setattr(initialise_module._Best, "finish", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                go(run, Recorder())
    assert done == [0, 4, 8, 0]


def test_running_out_of_memory_while_labels_are_written_is_told_and_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Labels] = []
    label, latents, failed = initialise_module.write_labels, Encoder.latents, [0]

    def limited(self: Encoder, examples: Sequence[Any], decoder: Policy) -> Latents:
        if torch.is_inference_mode_enabled() and len(examples) > 2:
            failed[0] += 1
            raise torch.OutOfMemoryError("injected")
        return latents(self, examples, decoder)

    def spy(*args: Any) -> Labels:
        kept.append(label(*args))
        return kept[-1]

    monkeypatch.setattr(initialise_module, "write_labels", spy)
    go(None, Recorder(), micro_tokens=256)
    monkeypatch.setattr(Encoder, "latents", limited)
    show = Recorder()
    with start(tmp_path) as run:
        go(run, show, micro_tokens=256)
    assert failed[0] > 0
    told = [event["micro_tokens"] for event in events_of(tmp_path, "out_of_memory")]
    assert len(told) == failed[0]
    assert told == sorted(set(told), reverse=True)
    assert sum("out of memory" in line for line in show.said) == len(told)
    smooth, disturbed = kept
    assert torch.equal(smooth.starts, disturbed.starts)
    assert torch.equal(smooth.indices, disturbed.indices)
    assert torch.allclose(smooth.probabilities, disturbed.probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_out_of_memory_among_the_weights_is_told_and_changes_no_bit(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step of each part: some tensors have moved, others have not."""
    smooth, disturbed = base(dtype=dtype), base(dtype=dtype)
    with start(tmp_path / "smooth") as run:
        smooth = go(run, Recorder(), smooth)
    move, calls = Optimizer._move_piece, [0]

    def limited(self: Optimizer, *args: Any) -> None:
        calls[0] += 1
        if calls[0] % 40 == 0:
            raise torch.OutOfMemoryError("injected")
        move(self, *args)

    monkeypatch.setattr(Optimizer, "_move_piece", limited)
    with start(tmp_path / "disturbed") as run:
        disturbed = go(run, Recorder(), disturbed)
    assert len(events_of(tmp_path / "disturbed", "out_of_memory")) >= 5
    assert all("optimizer_piece" in event for event in events_of(tmp_path / "disturbed", "out_of_memory"))
    ours, theirs = weights(disturbed), weights(smooth)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    metrics = [[computed(one) for one in History.read(tmp_path / k).steps] for k in ("smooth", "disturbed")]
    assert metrics[0] == metrics[1]


def test_running_out_of_memory_in_a_held_out_score_is_told_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three problems at a time are too many: the engine remembers, and every answer and score is the same."""
    answer, answered = evaluate.answer, []

    def listen(*args: Any, **rest: Any) -> Any:
        answered.append(answer(*args, **rest))
        return answered[-1]

    monkeypatch.setattr(evaluate, "answer", listen)
    with start(tmp_path / "smooth") as run:
        smooth = go(run, Recorder(), grader=ByText())
    step = Slots.step

    def limited(self: Slots, rows: int, *rest: Any, **more: Any) -> None:
        if rows > 2:
            raise torch.OutOfMemoryError("injected")
        step(self, rows, *rest, **more)

    monkeypatch.setattr(Slots, "step", limited)
    show = Recorder()
    with start(tmp_path / "disturbed") as run:
        disturbed = go(run, show, grader=ByText())
    assert len(answered) == 4
    for ours, theirs in zip([*answered[2], *answered[3]], [*answered[0], *answered[1]], strict=True):
        assert (ours.problem, ours.text, ours.right) == (theirs.problem, theirs.text, theirs.right)
        assert torch.equal(ours.rollout.indices, theirs.rollout.indices)
    told = ["out of memory: 2 rollouts at a time from now on"]
    assert [event["note"] for event in events_of(tmp_path / "disturbed", "rollouts")] == told
    assert [line for line in show.said if "memory" in line] == told
    scores = events_of(tmp_path / "smooth", "held_out")
    assert len(scores) == 2
    assert events_of(tmp_path / "disturbed", "held_out") == scores
    ours, theirs = weights(disturbed), weights(smooth)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_after_running_out_of_memory_a_step_is_taken_again_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, the second time after some of the gradient has gathered: the weights are those of an undisturbed run."""
    without_trial(monkeypatch)  # it would be what runs out
    undisturbed, policy, show, smooth = base(), base(), Recorder(), Recorder()
    go(None, smooth, undisturbed, micro_tokens=256)
    hidden, seen, failed = Policy.hidden, [0], [0]

    def limited(self: Policy, *args: Any) -> Tensor:
        gathered = any(p.grad is not None for p in self.model.parameters())
        seen[0] += 1
        if seen[0] == 2 or (gathered and failed == [1]):
            failed[0] += 1
            raise torch.OutOfMemoryError("injected")
        return hidden(self, *args)

    monkeypatch.setattr(Policy, "hidden", limited)
    with Run.start(tmp_path, "init", []) as run:
        policy = go(run, show, policy, micro_tokens=256)
    assert failed == [2]
    told = [event["micro_tokens"] for event in events_of(tmp_path, "out_of_memory")]
    assert len(told) == 2
    assert told == sorted(told, reverse=True)
    assert sum("out of memory" in line for line in show.said) == 2
    for ours, theirs in zip(show.numbers, smooth.numbers, strict=True):  # losses, and the norm of each gradient
        assert ours == pytest.approx(theirs, rel=1e-3)
    for name, theirs in weights(undisturbed).items():
        assert torch.allclose(weights(policy)[name], theirs, rtol=0, atol=2e-3), name


def test_the_best_held_out_score_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Pass@1 on the held-out slice, without a run as with one."""
    scores = [0.25, 0.75, 0.5, 0.75]
    seen: dict[str, list[dict[str, Tensor]]] = {"run": [], "none": []}
    for kind in seen:
        policy = base()
        left = list(scores)

        def look(*args: Any, policy: Policy = policy, kind: str = kind, left: list[float] = left, **_: Any) -> Any:
            seen[kind].append(weights(policy))
            return _summary(left.pop(0))

        monkeypatch.setattr("lgrpo.evaluate.summarise", look)
        run = start(tmp_path) if kind == "run" else None
        made = go(run, Recorder(), policy, eval_every=1)
        if run is not None:
            run.close()
        second = seen[kind][1]
        assert all(torch.equal(value, second[name]) for name, value in weights(made).items())


def _summary(score: float) -> Any:
    from lgrpo.evaluate import Score

    return Score(4, 1, score, 0.0, 3.0, 4.0, 7.0, 0.0)


def test_problems_without_a_chain_are_counted_and_said_and_none_at_all_is_an_error() -> None:
    show = Recorder()
    mixed = [*PROBLEMS[:8], Problem("w1", "w2"), Problem("w1 w2", "w2", "")]
    initialise(base(), mixed, PROBLEMS[16:], settings(), Grader(), None, show)
    assert show.said[0].startswith("8 of 10 problems can be learnt from; left out: 2 without a chain of thought")
    with pytest.raises(UserError, match="no problem has a chain of thought"):
        initialise(base(), mixed[8:], PROBLEMS[16:], settings(), Grader(), None, Recorder())
    with pytest.raises(UserError, match="no problem fits 2 positions of prompt"):
        initialise(base(), PROBLEMS, PROBLEMS[16:], settings(max_prompt=2), Grader(), None, Recorder())


@pytest.mark.parametrize("architecture", ["gemma3", "gpt-neox", "mistral"])
def test_other_architectures_go_through_all_parts(architecture: str) -> None:
    show = Recorder()
    made = go(None, show, base(architecture))
    assert made.latent
    assert len(show.numbers) == sum(STEPS.values())
    assert show.samples == 2
    assert all(numbers["grad_norm"] > 0 for numbers in show.numbers)


@pytest.mark.parametrize("name", ["progress", "labels"], ids=["the newest progress", "labels whose encoder is gone"])
def test_a_damaged_checkpoint_costs_time_and_changes_no_bit(tmp_path: Path, name: str) -> None:
    with start(tmp_path / "whole") as run:
        whole = weights(go(run, Recorder(), grader=ByText(), eval_every=1))
    with start(tmp_path / "hurt") as run, pytest.raises(KeyboardInterrupt):
        go(run, Recorder(stop_after=8), grader=ByText(), eval_every=1)
    saved = sorted(os.listdir(tmp_path / "hurt/checkpoints"))
    assert [one for one in saved if one.startswith("progress")] == ["progress-000007", "progress-000008"]
    folder = max((tmp_path / "hurt/checkpoints").glob(f"{name}*"))
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with start(tmp_path / "hurt") as run:
        assert len(run.damaged) == 1
        show = Recorder()
        again = weights(go(run, show, grader=ByText(), eval_every=1))
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    assert next(stage for stage in show.stages if stage[0] != "labels") == (
        ("walk", 4, 1) if name == "progress" else ("warm start", 2, 0)
    )
    lines = [[computed(one) for one in History.read(tmp_path / folder).steps] for folder in ("whole", "hurt")]
    assert lines[0] == lines[1]


def test_three_losses_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = Optimizer.step, [0]

    def poisoned(self: Optimizer) -> Any:
        taken[0] += 1
        if taken[0] in {1, 2, 4, 5, 6}:
            for parameter in self.parameters:
                parameter.grad = parameter.grad if parameter.grad is None else parameter.grad * float("inf")
        return step(self)

    monkeypatch.setattr(Optimizer, "step", poisoned)
    show = Recorder()
    with start(tmp_path) as run, pytest.raises(UserError, match="3 optimiser steps in a row") as caught:
        go(run, show, walk_steps=6)
    assert "begin again with a lower rate, --set joint_lr=" in str(caught.value)
    assert [one["skipped"] for one in show.numbers] == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("part", RATES)
def test_the_lower_rate_that_a_diverged_run_is_advised_can_be_given(part: str) -> None:
    given = main.commands["init"].make_context("init", shlex.split(f"{RATES[part]}3e-07")).params
    chosen = read_overrides(given["overrides"], Schedule)
    rates = schedule("low", max_prompt=96, max_response=24, device="cpu", walk_lr=given["lr"], **chosen)[0]
    assert getattr(rates, PARTS[part].steps.replace("_steps", "_lr")) == 3e-7


def test_labels_are_not_taught_to_weights_that_are_older_than_they_are(tmp_path: Path) -> None:
    with start(tmp_path / "whole") as run:
        whole = weights(go(run, Recorder(), grader=ByText(), save_every=1))
    with start(tmp_path / "hurt") as run, pytest.raises(KeyboardInterrupt):
        go(run, Recorder(stop_after=7), grader=ByText(), save_every=1)
    checkpoints = tmp_path / "hurt/checkpoints"
    assert sorted(path.name for path in checkpoints.glob("progress*")) == ["progress-000006", "progress-000007"]
    shutil.rmtree(checkpoints / "progress-000007")
    state = json.loads((checkpoints / "progress-000006/init_state.json").read_text())
    with start(tmp_path / "early") as run, pytest.raises(KeyboardInterrupt):
        go(run, Recorder(stop_after=5), grader=ByText(), save_every=1)
    assert state["done"] == sum(STEPS.values()) - STEPS["walk_steps"]  # the last of stage 1: here labels are right
    shutil.rmtree(checkpoints / "progress-000006")
    shutil.copytree(tmp_path / "early/checkpoints/progress-000005", checkpoints / "progress-000005")
    with start(tmp_path / "hurt") as run:
        again = weights(go(run, show := Recorder(), grader=ByText(), save_every=1))
    assert show.stages[0] == ("encoder and decoder", 1, 0)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
