"""`lgrpo eval` from end to end: killed and continued it says the same, more goes on from less, and two are compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lgrpo import faithful, tiny
from lgrpo.data import read_problems
from lgrpo.engine import Engine
from lgrpo.errors import UserError
from lgrpo.exam import score
from lgrpo.exam.score import EvalOptions
from lgrpo.interrupt import Stopped
from lgrpo.policy import Card, Policy
from lgrpo.runs.contents import seal
from lgrpo.screen import Show


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


NOTE = {"sequence": 1, "saved": "2026", "score": 0.5}


@pytest.fixture
def run_folder() -> str:
    """A run of ours, finished, whose one checkpoint is the embedded model, called latent."""
    model = Policy.load(tiny.MODEL)
    model.card = Card("latent", "tiny", 4, "arithmetic", {"max_response": 12})
    folder = Path("runs/mine/checkpoints/step-000001")
    folder.mkdir(parents=True)
    model.save(folder)
    seal(folder, NOTE)
    Path("runs/mine/run.json").write_text('{"command": "train"}')
    return "runs/mine"


def results(capsys: pytest.CaptureFixture[str], *checkpoints: str, **options: Any) -> Any:
    options = {"limit": 6, "runs": 2, "samples": 2, "device": "cpu", **options}
    score.evaluate(EvalOptions(checkpoints=checkpoints, as_json=True, **options))
    return json.loads(capsys.readouterr().out)


def without_speed(found: Any) -> Any:
    for entry in found["results"]:
        entry.pop("tokens_per_second")
    return found


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rollouts each call of the engine makes, but for those that a model is tried with when it is loaded."""
    monkeypatch.setattr(faithful, "check", lambda policy: None)
    made: list[int] = []
    generate = Engine.generate

    def counting(self: Engine, requests: Sequence[Any], *rest: Any) -> Any:
        made.append(len(requests))
        return generate(self, requests, *rest)

    monkeypatch.setattr(Engine, "generate", counting)
    return made


def test_a_killed_evaluation_goes_on_and_ends_in_the_very_same_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """A real process, killed with samples on disk: half of its last line is torn off as well."""
    asked: dict[str, Any] = {"limit": 24, "runs": 2, "samples": 4}
    options = [f"--{name}={value}" for name, value in asked.items()]
    command = [sys.executable, "-m", "lgrpo", "eval", "tiny", *options, "--device", "cpu", "--out", "killed", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    whole = without_speed(results(capsys, "tiny", out=Path("whole"), **asked))
    until = time.monotonic() + 100
    while time.monotonic() < until and not (there := list(Path("killed").glob("*.jsonl"))):
        time.sleep(0.02)
    process.kill()
    assert process.communicate()[0] == b""
    samples = there[0]
    lines = samples.read_bytes().splitlines(keepends=True)
    assert 2 < len(lines) < 144
    samples.write_bytes(b"".join(lines)[:-20])
    score.evaluate(EvalOptions(checkpoints=["tiny"], as_json=True, device="cpu", out=Path("killed"), **asked))
    again = capsys.readouterr()
    assert f"arithmetic: {len(lines) - 1} of 144 samples are in {samples}\n" in again.err
    assert without_speed(json.loads(again.out)) == whole
    texts = [
        sorted((row["key"], row["kind"], row["run"], row["text"]) for row in map(json.loads, path.open()))
        for path in (samples, *Path("whole").glob("*.jsonl"))
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 144


def test_ctrl_c_keeps_what_was_made_and_says_where(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as pressed:
        pressed.setattr(Show, "step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Stopped):
            results(capsys, run_folder)
    shown = capsys.readouterr()
    (samples,) = Path(run_folder).glob("eval/arithmetic-*.jsonl")
    assert shown.out == ""
    assert f"stopped; the same command goes on from the samples in {samples}\n" in shown.err
    assert len(samples.read_text().splitlines()) == 12
    made = asked_for(monkeypatch)
    results(capsys, run_folder)
    assert made == [12]


def test_a_finished_evaluation_is_printed_again_without_a_rollout(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = asked_for(monkeypatch)
    first = results(capsys, run_folder)
    assert made == [12, 12]
    assert first["results"][0]["tokens_per_second"] > 0
    assert results(capsys, run_folder) == first  # the speed it had then, too
    assert made == [12, 12]
    os.utime(next(Path(run_folder).glob("checkpoints/*/model.safetensors")))
    Path(run_folder).rename("runs/moved")
    assert results(capsys, "runs/moved")["results"] == first["results"]  # by content, wherever it is
    assert made == [12, 12]


def test_more_goes_on_from_less_and_less_is_part_of_it(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = asked_for(monkeypatch)
    less = results(capsys, run_folder, limit=4, runs=1, samples=0)
    more = results(capsys, run_folder, limit=6, runs=2, samples=1)
    assert made == [4, 8, 6]
    assert without_speed(results(capsys, run_folder, limit=4, runs=1, samples=0)) == without_speed(less)
    fresh = results(capsys, run_folder, limit=6, runs=2, samples=1, out=Path("elsewhere"))
    assert without_speed(fresh) == without_speed(more)
    assert made == [4, 8, 6, 12, 6]


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_response": 13}])
def test_other_settings_are_another_file(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    results(capsys, run_folder)
    made = asked_for(monkeypatch)
    results(capsys, run_folder, **change)
    assert made == [12, 12]
    assert len(list(Path(run_folder).glob("eval/arithmetic-*.jsonl"))) == 2


def test_other_weights_are_another_file(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results(capsys, run_folder)
    weights = next(Path(run_folder).glob("checkpoints/*/model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    seal(weights.parent, NOTE)
    made = asked_for(monkeypatch)
    results(capsys, run_folder)
    assert made == [12, 12]


def test_samples_and_summary_are_in_the_run_folder_and_say_everything(
    run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in Path(run_folder).rglob("*") if path.is_file()}
    found = results(capsys, run_folder)
    (samples,) = Path(run_folder).glob("eval/arithmetic-*.jsonl")
    (summary,) = Path(run_folder).glob("eval/summary-arithmetic-*.json")
    assert {path for path in Path(run_folder).rglob("*") if path.is_file()} - before == {samples, summary}
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 24
    problems = {problem.problem: problem for problem in read_problems("arithmetic", "test", 6)}
    for row in rows:
        problem = problems[row["problem"]]
        assert (row["key"], row["reference"]) == (f"{problem.key:016x}", problem.answer)
        assert len(row["chain"]) == row["latent_length"] > 0
        for step in row["chain"]:
            assert 1 <= len(step) <= 4
            weights = [weight for _, weight in step]
            assert weights == sorted(weights, reverse=True)
        assert row["right"] is False or (row["valid"] and row["answer"] == row["reference"])
    kept = json.loads(summary.read_text())
    assert kept["results"] == found["results"]
    assert (kept["checkpoint"], kept["samples"]) == (run_folder, samples.name)
    assert kept["model"].endswith("step-000001")
    assert len(kept["shares"]) == 6


def test_several_benchmarks_and_checkpoints_are_scored_and_compared(
    run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a").mkdir()
    for name in ("test.jsonl", "a/test.jsonl"):
        Path(name).write_text(f'{{"problem": "What is 1 + 1, {name}?", "answer": "2"}}\n')
    data = ["arithmetic", "test.jsonl", "a/test.jsonl"]
    both = results(capsys, run_folder, "tiny", data=data)
    assert [one["checkpoint"] for one in both] == [run_folder, "tiny"]
    for one in both:
        assert [entry["benchmark"] for entry in one["results"]] == data  # two of one name: by their whole source
    assert "against" not in both[0]["results"][0]
    before, after = (one["results"][0] for one in both)
    against = after["against"]
    assert against["checkpoint"] == run_folder
    assert against["difference"] == pytest.approx(after["pass@1"] - before["pass@1"])
    low, high = against["difference_interval"]
    assert low < against["difference"] < high
    asked = read_problems("arithmetic", "test", 6)
    assert against["won"]  # the chain of the first is cut off after 12 positions
    for one in against["won"]:
        assert one["problem"] == asked[one["index"]].problem
        assert one["before"] < 0.5 < one["after"]
    score.evaluate(EvalOptions(checkpoints=[run_folder, "tiny"], data=data, limit=6, runs=2, samples=2,
                               device="cpu", markdown=True))  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    assert sum(line.startswith(f"| {run_folder} (step 1) | {both[0]['model_hash'][:8]} |") for line in lines) == 3
    assert sum(line.startswith("| tiny |") for line in lines) == 6


def test_problems_that_no_answer_solves_are_left_out_of_the_score_and_counted(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is scored as if it had been alone, and its samples are the same."""
    rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    bad = [{"problem": "How long?", "answer": "9" * 2_001}, {"problem": "How much?", "answer": "$"}]
    for name, kept in (("some.jsonl", [bad[0], *rows, bad[1]]), ("none.jsonl", bad)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in kept))
    made = asked_for(monkeypatch)
    score.evaluate(EvalOptions(checkpoints=[run_folder, "tiny"], data=["some.jsonl"], runs=1, samples=0, device="cpu",
                               as_json=True))  # fmt: skip
    shown = capsys.readouterr()
    assert made == [4, 4]
    said = "2 of the 6 problems of some have an answer that cannot be checked and are left out\n"
    assert shown.err.count(said) == 1
    for one in json.loads(shown.out):
        (entry,) = one["results"]
        assert (entry["problems"], entry["left_out"]) == (4, 2)
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (entry,) = results(capsys, run_folder, data=["some.jsonl"], runs=1, samples=0, limit=None)["results"]
    assert (entry["problems"], entry["left_out"]) == (4, 0)
    assert made == [4, 4]
    with pytest.raises(UserError, match=r"none.jsonl: none of the 2 answers can be checked \(empty, or longer"):
        results(capsys, run_folder, data=["none.jsonl"])


def test_answers_that_could_not_be_checked_are_kept_counted_and_said_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = read_problems("arithmetic", "test", 2)
    rows = [{"problem": one.problem, "answer": answer} for one, answer in zip(question, ("\\frac{{", "7"), strict=True)]
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "tiny on some: 5 answers could not be checked, and count as wrong (reference cannot be read 5)\n"
    made = asked_for(monkeypatch)
    for _ in range(2):  # the second time, from what was kept
        score.evaluate(EvalOptions(checkpoints=["tiny"], data=["some.jsonl"], runs=3, samples=2, device="cpu",
                                   as_json=True, out=Path("out")))  # fmt: skip
        shown = capsys.readouterr()
        assert shown.err.count(said) == 1
        assert json.loads(shown.out)["results"][0]["unchecked"] == 5
    assert made == [6, 4]
    (samples,), (summary,) = Path("out").glob("some-*.jsonl"), Path("out").glob("summary-*.json")
    why = {row["problem"]: row["unchecked"] for row in map(json.loads, samples.open())}
    assert why == {question[0].problem: "reference cannot be read", question[1].problem: None}
    assert json.loads(summary.read_text())["results"][0]["unchecked"] == 5


def test_a_benchmark_is_asked_as_often_as_the_paper_asks_it(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgrpo.exam.score.read_problems", lambda *_: read_problems("arithmetic", "test", 1))
    found = results(capsys, run_folder, data=["aime24", "math500", "gpqa", "svamp", "x.jsonl"], runs=None, samples=0)
    assert [entry["runs"] for entry in found["results"]] == [64, 4, 8, 5, 5]


def test_a_report_that_cannot_be_is_said_before_anything_is_asked_or_after_the_scores(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = score._checkpoint
    monkeypatch.setattr(score, "_checkpoint", lambda *_: pytest.fail("hours of it"))
    with pytest.raises(UserError, match="only runs have a report"):
        results(capsys, f"{run_folder}/checkpoints/step-000001", report=True)
    monkeypatch.setattr(score, "_checkpoint", ask)
    monkeypatch.setattr(score, "write_report", lambda _: (_ for _ in ()).throw(PermissionError(13, "no right to it")))
    with pytest.raises(UserError, match="cannot be written: no right to it"):
        results(capsys, run_folder, report=True)
    assert json.loads(capsys.readouterr().out)["results"][0]["problems"] == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is full")
@pytest.mark.parametrize("form", [{}, {"as_json": True}, {"markdown": True}])
def test_a_stdout_that_is_full_is_one_line_and_costs_no_sample(
    run_folder: str, form: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"limit": 2, "runs": 1, "samples": 0, "device": "cpu", **form}
    with open("/dev/full", "w") as full, monkeypatch.context() as now:
        now.setattr("sys.stdout", full)
        with pytest.raises(UserError, match="the answer cannot be written to stdout"):
            score.evaluate(EvalOptions(checkpoints=[run_folder], **options))
    (samples,) = Path(run_folder).glob("eval/arithmetic-*.jsonl")
    assert len(samples.read_text().splitlines()) == 2
