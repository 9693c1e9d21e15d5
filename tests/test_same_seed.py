"""The same seed gives the same result: each command run twice, in folders of their own, differs in its times alone.

And in whatever way its work is cut: slots, micro-batches and the order of the problems decide no answer.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_cli import done

from lgrpo import plan, tiny
from lgrpo.asking.ask import Asker
from lgrpo.latent_sft import schedule
from lgrpo.metrics import group
from lgrpo.policy import Card, Policy
from lgrpo.verify import Verifier

SMALL_TRAIN = {
    "steps": 3, "batch": 2, "update_batch": 1, "draws": 2, "max_response": 12, "held_out": 4, "eval_every": 2,
    "micro_tokens": 600, "mask_invalid": False,
}  # fmt: skip
SMALL_INIT = {"batch": 4, "warm_up_steps": 1, "decoder_steps": 1, "walk_steps": 3, "held_out": 4}
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
QUESTIONS = [f"Ann has {n} apples and eats {n % 5}. How many apples are left?" for n in range(7, 13)]
UNLIKE = {
    "run_id",
    "cwd",
    "time",
    "started",
    "finished",
    "argv",
    "memory",
    "peak",
    "tokens_per_second",
    "seconds",
    "tokens_per_s",
    "time_to_first_answer_token",
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, small in ((plan._RECIPES, SMALL_TRAIN), (schedule._RECIPES, SMALL_INIT)):
        for name, value in small.items():
            monkeypatch.setitem(table["tiny"], name, (value, "small"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, called latent."""
    folder = tmp_path_factory.mktemp("model") / "latent"
    folder.mkdir()
    policy = Policy.load(tiny.MODEL)
    policy.card = Card("latent", "tiny", 4, "arithmetic")
    policy.save(folder)
    return str(folder)


@pytest.fixture
def mixed_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that differ within a group, whatever an untrained chain says: there is something to learn."""

    def grade(self: Verifier, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(number % 2) for number in range(len(responses))]

    monkeypatch.setattr(Verifier, "grade", grade)


def timeless(value: Any) -> Any:
    """A record without what is a time or a measure of this machine."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in UNLIKE and group(k) not in ("time", "device")}
        of_memory = {k for k, v in kept.items() if isinstance(v, dict) and "are free" in str(v.get("reason"))}
        return {k: timeless(v) for k, v in kept.items() if k not in of_memory}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def lines(path: Path) -> list[Any]:
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def left_in(folder: Path) -> dict[str, Any]:
    """All a command left behind, by file: tensors, and records without their times. The report is made of these."""
    out: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            out[name] = load_file(path)
        elif path.suffix == ".jsonl":
            out[name] = lines(path)
        elif path.suffix == ".json":
            out[name] = timeless(json.loads(path.read_text()))
            if path.name == "run.json":
                assert len(out[name].pop("id")) == 8  # of its own
        else:
            out[name] = None
    return out


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, here in ours.items():
        there = theirs[name]
        if name.endswith(".safetensors"):
            assert here.keys() == there.keys(), name
            assert all(torch.equal(here[key], there[key]) for key in here), name
        elif name.endswith("saved.json"):  # hashes of files, among them of records that hold times
            continue
        else:
            assert here == there, name


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Stdout of a command run in an empty folder, and what it left there."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    return done(*arguments).stdout, left_in(folder)


def weights_of(left: dict[str, Any]) -> list[torch.Tensor]:
    return [tensor for name, value in left.items() if name.endswith("model.safetensors") for tensor in value.values()]


@pytest.mark.usefixtures("mixed_rewards")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("command", ["init", "train"])
def test_training_twice_is_the_same_to_the_bit(
    command: str, device: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, states, metrics, events, plan and samples; with another seed, other weights."""
    start = [model] if command == "train" else []
    options = [command, *start, "--device", device, "--set", "limit=40", "--data", "arithmetic", "--out", "run"]
    first = in_folder(tmp_path / "a", monkeypatch, *options, "--seed", "5")
    again = in_folder(tmp_path / "b", monkeypatch, *options, "--seed", "5")
    other = in_folder(tmp_path / "c", monkeypatch, *options, "--seed", "6")
    assert first[0] == again[0]
    assert_same(first[1], again[1])
    names = {Path(name).name for name in first[1]}
    assert {"model.safetensors", "metrics.jsonl", "events.jsonl", "run.json"} <= names
    ours, theirs = weights_of(first[1]), weights_of(other[1])
    assert not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=False))
    assert first[1]["run/metrics.jsonl"] != other[1]["run/metrics.jsonl"]


@pytest.mark.parametrize("device", DEVICES)
def test_evaluating_twice_is_the_same(device: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and every sample; another seed answers otherwise."""
    options = ["eval", model, "--device", device, "--data", "arithmetic", "--limit", "4", "--runs", "2", "--json"]
    options += ["--samples", "2", "--max-response", "24"]
    first = in_folder(tmp_path / "a", monkeypatch, *options, "--seed", "5")
    again = in_folder(tmp_path / "b", monkeypatch, *options, "--seed", "5")
    other = in_folder(tmp_path / "c", monkeypatch, *options, "--seed", "6")
    assert timeless(json.loads(first[0])) == timeless(json.loads(again[0]))
    assert_same(first[1], again[1])
    assert samples_of(first[1])
    assert samples_of(first[1]) != samples_of(other[1])


def samples_of(left: dict[str, Any]) -> list[Any]:
    """All samples in a folder, in an order of their own."""
    rows = [row for name, value in left.items() if name.endswith(".jsonl") for row in value]
    return sorted(({k: v for k, v in row.items() if k != "problem"} for row in rows), key=str)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("as_file", [False, True])
def test_sampling_twice_is_the_same(
    as_file: bool, device: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in QUESTIONS))
    what = ["--file", str(tmp_path / "problems.jsonl")] if as_file else [QUESTIONS[0], "--json"]
    options = ["sample", *what, "--model", model, "--device", device, "-n", "3", "--explore", "--max-response", "16"]

    def told(seed: int) -> list[Any]:
        return [timeless(json.loads(line)) for line in done(*options, "--seed", str(seed)).stdout.splitlines()]

    first = told(5)
    assert first == told(5)
    assert [chain_ids(row) for row in first] != [chain_ids(row) for row in told(6)]


# -- not of batches or orders


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rollouts `sample` and `eval` keep in flight, in its last entry."""
    from lgrpo.engine import Engine

    chosen: list[int] = []
    started = Engine.__init__

    def few(self: Engine, *arguments: Any, **named: Any) -> None:
        started(self, *arguments, **named)
        if chosen:
            self.slots = chosen[-1]

    monkeypatch.setattr(Engine, "__init__", few)
    return iter([chosen])


def problem_file(path: Path, questions: list[str]) -> str:
    path.write_text("".join(json.dumps({"question": text, "answer": "3"}) + "\n" for text in questions))
    return str(path)


def test_an_evaluation_depends_neither_on_slots_nor_on_the_order_of_its_problems(
    model: str, slots: Iterator[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = next(slots)
    found = []
    for name, count, questions in (("a", 64, QUESTIONS), ("b", 2, QUESTIONS), ("c", 3, QUESTIONS[::-1])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        chosen.append(count)
        problem_file(Path("data.jsonl"), questions)
        options = ["--data", "data.jsonl", "--runs", "2", "--samples", "2", "--max-response", "24", "--json"]
        scored = timeless(json.loads(done("eval", model, *options, "--out", "out").stdout))
        for entry in scored["results"]:
            del entry["data_hash"]  # of the problems in their order
        found.append((scored, samples_of(left_in(Path("out")))))
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) == 6 * 4


def test_a_file_is_answered_alike_in_any_order(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Asker.__init__
    at_once = [64]

    def few(self: Asker, *arguments: Any) -> None:
        started(self, *arguments)
        self.engine.slots = at_once[0]

    monkeypatch.setattr(Asker, "__init__", few)
    answers = []
    for count, questions in ((64, QUESTIONS), (2, QUESTIONS), (3, QUESTIONS[::-1])):
        at_once[0] = count
        path = problem_file(tmp_path / "data.jsonl", questions)
        options = ["--model", model, "-n", "2", "--explore", "--max-response", "16"]
        rows = [timeless(json.loads(line)) for line in done("sample", "--file", path, *options).stdout.splitlines()]
        each = [(row["problem"], row["sample"], row["tokens"], str(chain_ids(row))) for row in rows]
        assert [row[0] for row in each] == [text for text in questions for _ in range(2)]
        answers.append(sorted(each))
    assert answers[0] == answers[1] == answers[2]


def chain_ids(row: Any) -> list[list[int]]:
    return [[word["id"] for word in step] for step in row["chain"]]


@pytest.mark.usefixtures("mixed_rewards")
def test_what_a_step_of_training_draws_depends_neither_on_slots_nor_on_micro_batches(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollouts and rewards are the same; loss and gradient up to rounding, for sums are taken in another order."""
    found = []
    for name, cut in (("a", ["slots=256", "micro_tokens=4096"]), ("b", ["slots=3", "micro_tokens=100"])):
        sets = [word for one in ["limit=40", *cut] for word in ("--set", one)]
        options = ["train", model, "--device", "cpu", "--data", "arithmetic", "--out", "run", "--steps", "1"]
        found.append(in_folder(tmp_path / name, monkeypatch, *options, *sets)[1]["run/metrics.jsonl"][0])
    whole, parts = found
    for exact in ("reward", "signal", "groups", "drawn", "latent", "explicit", "invalid", "boxed"):
        assert whole[exact] == parts[exact], exact
    assert {name: parts[name] for name in ("loss", "grad_norm")} == pytest.approx(
        {name: whole[name] for name in ("loss", "grad_norm")}, rel=1e-3, abs=1e-6
    )
