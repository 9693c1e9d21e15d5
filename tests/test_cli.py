"""The command line from end to end on the embedded model: what goes to stdout, what is left behind, what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from test_train import poison

from lgrpo import plan, session, tiny
from lgrpo.cli import main
from lgrpo.interrupt import SIGNALS
from lgrpo.latent_sft import schedule
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem
from lgrpo.screen import Show
from lgrpo.verify import Verifier

COMMANDS = ("init", "train", "sample", "eval")
QUESTION = "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?"
RESULT = {
    "benchmark", "problems", "runs", "pass@1", "pass@1_se", "pass@1_interval", "pass@k", "pass@k_interval",
    "latent_length", "explicit_length", "length", "invalid", "data_hash", "left_out", "unchecked", "tokens_per_second",
}  # fmt: skip
# The `tiny` recipe, so small that a command takes a second: nothing here tests what is learnt.
SMALL_TRAIN = {
    "steps": 3,
    "batch": 2,
    "update_batch": 1,
    "draws": 2,
    "max_response": 12,
    "held_out": 4,
    "eval_every": 2,
    "micro_tokens": 600,
}
SMALL_INIT = {"batch": 4, "warm_up_steps": 1, "decoder_steps": 1, "walk_steps": 3, "held_out": 4}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, with small recipes."""
    for table, small in ((plan._RECIPES, SMALL_TRAIN), (schedule._RECIPES, SMALL_INIT)):
        for name, value in small.items():
            monkeypatch.setitem(table["tiny"], name, (value, "small"))
    monkeypatch.chdir(tmp_path)


def lgrpo(*arguments: str, stdin: str | None = None) -> Result:
    """Run a command as a shell would; exceptions of ours are not caught."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        result = CliRunner().invoke(main, list(arguments), input=stdin, prog_name="lgrpo")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: str, stdin: str | None = None) -> Result:
    result = lgrpo(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result


def listing() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))}


def steps_of(run: str) -> list[int]:
    return [json.loads(line)["step"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def record_of(run: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(run, "run.json").read_text())
    return record


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The embedded model, called latent: it answers nothing right, and is there at once."""
    made = Policy.load(tiny.MODEL)
    made.card = Card("latent", "tiny", 4, "arithmetic")
    return made


@pytest.fixture
def latent(policy: Policy) -> str:
    Path("latent").mkdir()
    policy.save(Path("latent"))
    return "latent"


@pytest.fixture
def mixed_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that differ within a group, whatever an untrained chain says."""

    def grade(self: Verifier, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(number % 2) for number in range(len(responses))]

    monkeypatch.setattr(Verifier, "grade", grade)


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Presses Ctrl-C at the first step shown whose number is in the list."""
    at: list[int] = []
    step = Show.step

    def pressing(self: Show, number: int, numbers: Any) -> None:
        step(self, number, numbers)
        if number in at:
            at.remove(number)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Show, "step", pressing)
    return at


# -- what a user does


def test_train_alone_in_an_empty_folder_initialises_and_trains_and_the_rest_follows() -> None:
    trained = done("train", "--steps", "1", "--set", "limit=60", "--seed", "1")
    assert trained.stdout == ""
    assert "tiny has no latent chain yet: running `lgrpo init` first" in trained.stderr
    assert {path.name for path in Path("runs").iterdir()} == {"tiny-init", "tiny-grpo"}
    for run in ("runs/tiny-init", "runs/tiny-grpo"):
        assert record_of(run)["finished"]
        assert record_of(run)["identity"]["seed"] == 1
    assert "best checkpoint runs/tiny-grpo/checkpoints/step-00000" in trained.stderr

    scored = done("eval", "--json", "--limit", "3", "--runs", "2", "--samples", "4")
    result = json.loads(scored.stdout)
    assert result.keys() == {"checkpoint", "model", "model_hash", "seed", "results"}
    assert result["checkpoint"] == "runs/tiny-grpo"
    assert [entry.keys() for entry in result["results"]] == [RESULT]
    entry = result["results"][0]
    assert (entry["benchmark"], entry["problems"], entry["runs"]) == ("arithmetic", 3, 2)
    assert entry["pass@k"].keys() == {"1", "2", "4"}

    asked = done("sample", QUESTION)
    assert asked.stdout.count("\n") == 1
    assert re.search(r"^  1  ", asked.stderr, re.MULTILINE)
    assert "  1  " not in asked.stdout
    piped = done("sample", "--no-chain", stdin=QUESTION + "\n")
    assert piped.stdout == asked.stdout
    assert "  1  " not in piped.stderr


@pytest.mark.parametrize("command", ["init", "train"])
def test_answers_that_cannot_be_checked_are_left_out_and_counted(command: str) -> None:
    """One that is longer than any answer, and one that is empty once its signs are off."""
    with Path("rows.jsonl").open("w") as file:
        for n in range(26):
            answer = {5: "7" * 2_001, 11: "$"}.get(n, str(n + 3))
            row = {"problem": f"What is {n} + 3?", "answer": answer, "cot": f"<<{n}+3={n + 3}>>"}
            file.write(json.dumps(row) + "\n")
    Path("latent").mkdir()
    model = Policy.load(tiny.MODEL)
    model.card = Card("latent", "tiny", 4, "arithmetic")
    model.save(Path("latent"))
    base = ["latent", "--steps", "1"] if command == "train" else ["tiny"]
    said = done(command, *base, "--data", "rows.jsonl", "--out", "run").stderr
    assert "2 problems have an answer that cannot be checked and are left out\n" in said
    assert record_of("run")["settings"]["data"]["reason"] == "20 problems to train on, 4 held out"


@pytest.mark.parametrize("command", ["init", "train"])
def test_held_out_answers_that_could_not_be_checked_are_counted_and_said_in_words(
    latent: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 held-out problems, whatever is answered: two references are no mathematics, which the checker finds out."""
    with Path("rows.jsonl").open("w") as file:
        for n in range(24):
            row = {"problem": f"What is {n} + 3?", "answer": str(n + 3), "cot": f"<<{n}+3={n + 3}>>"}
            file.write(json.dumps(row) + "\n")

    def torn(*arguments: Any) -> tuple[list[Problem], list[Problem], list[plan.Setting]]:
        train_set, held_out, rows = set_aside(*arguments)
        return train_set, [replace(one, answer="\\frac{{") for one in held_out[:2]] + held_out[2:], rows

    set_aside = session.set_aside
    monkeypatch.setattr(session, "set_aside", torn)
    monkeypatch.setattr("lgrpo.verify.verifier.boxed", lambda text: None if "frac" in text or text.isdigit() else "7")
    base = ["latent", "--steps", "1"] if command == "train" else ["tiny"]
    said = done(command, *base, "--data", "rows.jsonl", "--out", "run").stderr
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    scores = [event for event in events if event["event"] == "held_out"]
    assert scores
    for one in scores:
        assert (one["problems"], one["unchecked"]) == (4, 2)
        why = "reference cannot be read"
        assert [(sample["reference"], sample["unchecked"]) for sample in one["samples"]][:2] == [("\\frac{{", why)] * 2
        assert [sample["unchecked"] for sample in one["samples"]][2:] == [None, None]
    words = "2 of the 4 held-out answers could not be checked and count as wrong"
    assert [event["what"] for event in events if event.get("name") == "held_out_unchecked"] == [words]
    assert said.count(f"warning: {words}. Usually helps: are the reference answers well-formed?") == 1
    count = 2 * len(scores)
    assert (
        f"warning: {count} answers could not be checked, and count as wrong (reference cannot be read {count})" in said
    )


def test_init_then_train_by_name_and_eval_of_several() -> None:
    done("init", "--steps", "5", "--set", "limit=80", "--out", "mine")
    assert steps_of("mine") == [1, 2, 3, 4, 5]
    assert json.loads(next(Path("mine/checkpoints").glob("walk-*/lgrpo.json")).read_text())["data"] == "arithmetic"
    again = done("init", "--steps", "5", "--set", "limit=80", "--out", "mine")
    assert "mine is finished; `lgrpo train mine` goes on from there" in again.stderr
    done("train", "mine", "--steps", "1", "--set", "limit=60")
    assert Path("runs/mine-grpo/run.json").exists()
    scored = done("eval", "mine", "tiny", "--json", "--limit", "2", "--runs", "1", "--samples", "0")
    both = json.loads(scored.stdout)
    assert [one["checkpoint"] for one in both] == ["mine", "tiny"]
    latent, explicit = (one["results"][0] for one in both)
    assert explicit["latent_length"] == 0
    assert latent["pass@k"] == {}
    assert explicit["against"]["checkpoint"] == "mine"
    table = done("eval", "tiny", "--limit", "2", "--runs", "1", "--samples", "0").stdout.splitlines()
    assert table[0].split()[:5] == ["checkpoint", "hash", "benchmark", "problems", "runs"]
    assert len(table) == 2


def test_any_setting_can_be_set_and_is_recorded_with_its_reason() -> None:
    done("init", "--set", "limit=40", "--set", "batch=2", "--set", "train_embedding=no", "--set", "max_response=20")
    settings = record_of("runs/tiny-init")["settings"]
    assert settings["batch"] == {"value": 2, "reason": "you set it"}
    assert settings["train_embedding"]["value"] is False
    assert settings["max_response"]["value"] == 20
    done("train", "--steps", "1", "--set", "limit=40", "--set", "batch = 1", "--set", "group=3", "--set", "slots=5")
    settings = record_of("runs/tiny-grpo")["settings"]
    assert settings["group"] == {"value": 3, "reason": "you set it"}
    assert settings["slots"] == {"value": 5, "reason": "you set it"}
    assert "that are free" in settings["memory: update"]["reason"]
    line = json.loads(Path("runs/tiny-grpo/metrics.jsonl").read_text())
    assert line["positions"] <= 3 * 12 * SMALL_TRAIN["draws"]
    refused = lgrpo("train", "runs/tiny-init", "--steps", "2", "--set", "limit=40")
    assert "holds another run (batch 1, now 2)" in refused.stderr
    options = ["--set", "limit=40", "--set", "max_prompt=2040", "--out", "longer"]
    for command in (["init"], ["train", "runs/tiny-init"]):
        longer = lgrpo(*command, "--steps", "1", *options)
        assert longer.exit_code == 2
        assert "max_prompt=2040 and max_response=12 are more than the 2048 positions of" in longer.stderr
    assert not Path("longer").exists()


def test_of_few_problems_a_fifth_is_held_out() -> None:
    Path("data.jsonl").write_text(FILES["good.jsonl"])
    done("init", "--data", "data.jsonl", "--steps", "2")
    assert record_of("runs/tiny-init")["settings"]["held_out"] == {"value": 1, "reason": "a fifth of the 9 problems"}
    event = [json.loads(line) for line in Path("runs/tiny-init/events.jsonl").read_text().splitlines()][-1]
    assert (event["event"], event["problems"]) == ("held_out", 1)


def test_a_stopped_run_goes_on_without_arguments_and_a_finished_one_says_so(
    latent: str, ctrl_c: list[int], mixed_rewards: None
) -> None:
    ctrl_c.append(1)
    stopped = lgrpo("train", latent, "--set", "limit=40", "--seed", "2")
    assert stopped.exit_code == 130
    assert "stopping after this step" in stopped.stderr
    assert "stopped; `lgrpo train runs/latent-grpo` goes on from here" in stopped.stderr
    assert steps_of("runs/latent-grpo") == [1]
    assert record_of("runs/latent-grpo")["finished"] is None

    ended = done("train")
    assert "going on with runs/latent-grpo from step-000001" in ended.stderr
    assert steps_of("runs/latent-grpo") == [1, 2, 3]
    assert record_of("runs/latent-grpo")["identity"]["seed"] == 2

    before = listing()
    refused = lgrpo("train")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "Error: runs/latent-grpo has finished its 3 steps; `lgrpo eval` scores it, --steps N trains on\n"
    )
    assert listing() == before

    done("train", "runs/latent-grpo", "--steps", "4")
    assert steps_of("runs/latent-grpo") == [1, 2, 3, 4]
    assert "has finished its 4 steps" in lgrpo("train").stderr
    before = listing()  # fewer than it has taken cannot be, and run.json must not say so
    refused = lgrpo("train", latent, "--set", "limit=40", "--seed", "2", "--steps", "2")
    assert (refused.exit_code, listing()) == (2, before)
    assert "latent-grpo has taken 4 steps already; give --steps with no fewer, or another --out" in refused.stderr


def test_the_diagnosis_of_a_run_that_diverged_comes_whatever_became_of_its_files(
    latent: str, mixed_rewards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options in another form than a command can have, and a state that is no JSON, from one moment to the next."""

    def spoil(weights: object) -> list[str]:
        Path("mine/run.json").write_text(json.dumps({**record_of("mine"), "options": {"steps": "many", "strange": 1}}))
        for state in Path("mine/checkpoints").glob("*/train_state.json"):
            state.write_text("{")
        return ["lm_head.weight"]

    poison(monkeypatch, 1, 2, 3)
    monkeypatch.setattr("lgrpo.train.not_finite", spoil)
    options = ["--set", "limit=40", "--steps", "9", "--seed", "2", "--without", "masking"]
    ended = lgrpo("train", latent, *options, "--out", "mine", "--overwrite")
    assert ended.exit_code == 2
    (told,) = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert told.startswith("Error: step 2: 3 optimiser steps in a row had a loss or gradient that is not finite; 1 ten")
    again = "--out mine-2 --set limit=40 --steps 9 --lr 2.5e-05 --seed 2 --without masking`; the best is step-000000"
    assert told.endswith(f"`lgrpo train mine/checkpoints/step-000000 {again}")


def test_what_is_said_to_a_run_that_goes_on_adds_to_what_it_began_with(
    latent: str, ctrl_c: list[int], mixed_rewards: None
) -> None:
    """A --set does not undo the others, and a seed of 0 is a seed."""
    ctrl_c.append(1)
    assert lgrpo("train", latent, "--seed", "2", "--set", "limit=40", "--set", "eval_every=5").exit_code == 130
    before = listing()
    refused = lgrpo("train", "runs/latent-grpo", "--seed", "0")
    assert "holds another run (seed 2, now 0)" in refused.stderr
    assert listing() == before
    ctrl_c.append(2)
    assert lgrpo("train", "runs/latent-grpo", "--set", "slots=5", "--set", " eval_every = 3").exit_code == 130
    assert record_of("runs/latent-grpo")["options"]["overrides"] == ["limit=40", " eval_every = 3", "slots=5"]
    settings = {name: one["value"] for name, one in record_of("runs/latent-grpo")["settings"].items()}
    assert [settings[name] for name in ("limit", "eval_every", "slots", "seed")] == [40, 3, 5, 2]
    done("train")
    assert record_of("runs/latent-grpo")["identity"]["seed"] == 2


def test_a_prolonged_run_that_is_stopped_is_not_called_finished(
    latent: str, ctrl_c: list[int], mixed_rewards: None
) -> None:
    done("train", latent, "--set", "limit=40", "--steps", "1")
    ctrl_c.append(2)
    assert lgrpo("train", "--steps", "4").exit_code == 130
    done("train")
    assert steps_of("runs/latent-grpo") == [1, 2, 3, 4]


def test_a_run_goes_on_from_another_working_directory_with_the_data_it_began_with(
    latent: str, mixed_rewards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Path("runs/latent-grpo").resolve()
    done("train", latent, "--data", "rows.jsonl", "--steps", "1")
    Path("below").mkdir()
    monkeypatch.chdir("below")
    done("train", str(run), "--steps", "2")
    assert steps_of(str(run)) == [1, 2]
    moved = run.with_name("moved")
    run.rename(moved)
    Path("../rows.jsonl").rename("rows.jsonl")
    done("train", str(moved), "--data", "rows.jsonl", "--steps", "3")
    assert steps_of(str(moved)) == [1, 2, 3]


def test_a_stopped_init_is_finished_before_training(ctrl_c: list[int]) -> None:
    ctrl_c.append(2)
    stopped = lgrpo("train", "--steps", "1", "--set", "limit=60", "--seed", "3")
    assert stopped.exit_code == 130
    assert not Path("runs/tiny-grpo").exists()
    ended = done("train", "--steps", "1", "--set", "limit=60")
    assert "runs/tiny-init is not finished: going on with `lgrpo init` first" in ended.stderr
    assert steps_of("runs/tiny-init") == [1, 2, 3, 4, 5]
    assert record_of("runs/tiny-init")["identity"]["seed"] == 3
    assert record_of("runs/tiny-grpo")["finished"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_eval_ends_at_once_when_told_to(latent: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Show, "stage", lambda *_: os.kill(os.getpid(), number))
    before = listing()
    stopped = lgrpo("eval", latent, "--limit", "2")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert stopped.stderr.startswith("stopped; the same command goes on from the samples in runs/eval/latent/arith")
    assert stopped.stderr.count("\n") == 1
    assert listing() == before


@pytest.mark.parametrize("mixtures", [True, False])
def test_a_latent_model_without_a_card_is_told_from_an_explicit_one(
    latent: str, monkeypatch: pytest.MonkeyPatch, mixtures: bool
) -> None:
    """The embedded model walks its written chain in superpositions, too: only that each is one token gives it away."""
    Path(latent, "lgrpo.json").unlink()
    monkeypatch.setitem(plan._RECIPES["tiny"], "max_response", (64, "the embedded model's chain fits"))
    if mixtures:
        monkeypatch.setattr("lgrpo.session.SINGLE", 1.1)
    trained = done("train", latent, "--data", "arithmetic", "--set", "limit=60", "--steps", "1")
    kept = "latent has no lgrpo.json, but answers after a latent chain: it is trained as it is"
    assert (kept in trained.stderr) == mixtures
    assert ("latent has no latent chain yet: running `lgrpo init` first" in trained.stderr) != mixtures
    assert Path("runs/latent-init").exists() != mixtures
    scored = done("eval", latent, "--data", "arithmetic", "--limit", "2", "--runs", "1", "--samples", "0", "--json")
    assert (
        "latent has no lgrpo.json, but answers after a latent chain: it is asked for one" in scored.stderr
    ) == mixtures
    assert (json.loads(scored.stdout)["results"][0]["latent_length"] > 0) == mixtures
    asked = done("sample", QUESTION, "--model", latent, "--json")
    assert (json.loads(asked.stdout)["latent_length"] > 0) == mixtures
    assert json.loads(Path("runs/latent-grpo/checkpoints/step-000001/lgrpo.json").read_text())["mode"] == "latent"


# -- help


def test_help_is_quick_to_come_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\n"
        "from lgrpo.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "main(['train', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    checkout = Path(plan.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_its_default(command: str) -> None:
    made = main.commands[command]
    context = click.Context(made, info_name=command)
    options = [option for option in made.params if isinstance(option, click.Option) and option.name != "help"]
    assert 0 < len(options) <= 13
    for option in options:
        record = option.get_help_record(context)
        assert record is not None
        assert "[default: " in record[1], option.name


# -- what is refused

PROBLEM = {"problem": "What is 3 + 4?", "answer": "7"}
FILES: dict[str, str] = {
    "good.jsonl": "".join(
        json.dumps({"problem": f"What is {i} + 4?", "answer": str(i + 4), "cot": f"{i}+4={i + 4}"}) + "\n"
        for i in range(9)
    ),
    "broken.jsonl": json.dumps(PROBLEM) + '\n{"problem": "What is\n',
    "answerless.jsonl": json.dumps(PROBLEM) + "\n" + json.dumps({"problem": "What?"}) + "\n",
    "empty.jsonl": "",
    "chainless.jsonl": "".join(json.dumps({**PROBLEM, "problem": f"What is {i}?"}) + "\n" for i in range(9)),
    "long.jsonl": "".join(json.dumps({**PROBLEM, "problem": f"{i} " * 2500, "cot": "3+4=7"}) + "\n" for i in range(9)),
    "longchain.jsonl": "".join(json.dumps({**PROBLEM, "problem": f"{i}?", "cot": "7 " * 500}) + "\n" for i in range(9)),
    "notes.md": "no data",
}


@pytest.fixture
def files(latent: str, policy: Policy) -> None:
    """Data of every broken kind, and models of every broken kind."""
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("nothing").mkdir()
    for name in ("garbage", "cut", "carded", "foreign"):
        shutil.copytree(latent, name)
    Path("garbage/config.json").write_text("{garbage")
    weights = Path("cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    Path("carded/lgrpo.json").write_text("[]")
    card = replace(policy.card, data="good.jsonl")
    Path("foreign/lgrpo.json").write_text(json.dumps(card.__dict__))
    Path("other").mkdir()
    Path("other/photo.jpg").write_text("mine")


MODELS = {
    "nowhere/at/all": "there is no 'nowhere/at/all'; name a run, a model folder, or a hub model as owner/name",
    "good.jsonl": "good.jsonl is a file; name the folder",
    "nothing": "nothing is neither a run (run.json) nor a model (config.json)",
    "garbage": "garbage: cannot be loaded as a causal language model",
    "cut": "cut/model.safetensors: not a whole safetensors file",
    "carded": "lgrpo.json: not a card lgrpo wrote",
    "owner/name": "owner/name: cannot be loaded as a causal language model",
}
WITH_MODEL = {
    "init": lambda model: ["init", model],
    "train": lambda model: ["train", model],
    "sample": lambda model: ["sample", "What is 3 + 4?", "--model", model],
    "eval": lambda model: ["eval", model],
}
DATA = {
    "nowhere.jsonl": "nowhere.jsonl: no such file or folder; data may also be",
    "broken.jsonl": "broken.jsonl, line 2: not JSON",
    "answerless.jsonl": "answerless.jsonl, line 2: no field for the answer; fields found: problem",
    "empty.jsonl": "empty.jsonl: holds no problems",
    "notes.md": "notes.md: unknown type of file; known are .parquet, .jsonl",
    "nothing": "nothing: no data file",
    "gsm8k-aug": "the data set whynlp/gsm8k-aug is not in the cache and cannot be fetched from the hub",
    "arithmetic:hardest": "arithmetic has no level 'hardest'; it has ",
}
REFUSED: list[tuple[list[str], str]] = [
    *[(WITH_MODEL[command](model), message) for command in COMMANDS for model, message in MODELS.items()],
    # A variable of the shell that is not set: neither the embedded model, nor the newest run, nor this folder.
    *[(WITH_MODEL[command](""), "it is empty; name one, or leave it out") for command in COMMANDS],
    *[(words, "it is empty; name one, or leave it out") for words in (
        ["init", "--data", ""], ["train", "latent", "--data", ""], ["eval", "latent", "--data", " "],
        ["sample", "--file", "", "--model", "latent"],
    )],
    *[
        ([*words, "--data", data], message)
        for words in (["init"], ["train", "latent"], ["eval", "latent"])
        for data, message in DATA.items()
    ],
    (["init", "--data", "chainless.jsonl"], "none of the 9 problems has a chain of thought"),
    (["init", "--data", "longchain.jsonl"], "no problem fits 512 positions of prompt, 128 of chain and 12 of response"),
    (["init", "--data", "long.jsonl"], "every prompt is longer than 512 positions; try --recipe high"),
    (["train", "latent", "--data", "long.jsonl"], "every prompt is longer than 512 positions; try --recipe high"),
    (["eval", "latent", "--data", "long.jsonl"], "are more than the 2048 of latent; shorten it or leave it out"),
    (["sample", "long " * 3000, "--model", "latent"], "are more than the 2048 of latent; shorten it or leave it out"),
    (["init", "latent"], "latent has a latent chain already; `lgrpo train latent` goes on from there"),
    (["train", "latent", "--explicit"], "latent has a latent chain; --explicit needs a model that writes its chain"),
    (["sample", "", "--model", "latent"], "no problem given; put it in quotes, or pipe it in"),
    (["sample", "  \n", "--model", "latent"], "no problem given; put it in quotes, or pipe it in"),
    (["sample", "What is 3 + 4?"], "there is no run in runs/ yet; `lgrpo train` makes one, or name a checkpoint"),
    (["eval"], "there is no run in runs/ yet; `lgrpo train` makes one, or name a checkpoint"),
    (["eval", "foreign"], "foreign was trained on good.jsonl; give --data with problems it has not seen"),
    (["eval", "latent", "nowhere"], "there is no 'nowhere'"),
    (["eval", "latent", "--data", "arithmetic", "--data", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
    (["eval", "latent", "--data", "svamp"], "ChilleD/SVAMP is not in the cache and cannot be fetched from the hub"),
    (["eval", "latent", "--json", "--markdown"], "--json and --markdown are two forms of the same answer; choose one"),
    (["eval", "latent", "--limit", "2", "--out", "notes.md"], "'--out': Directory 'notes.md' is a file."),
    (["init", "--set", "limit=60", "--out", "other"], "other holds files that are no run (photo.jpg); choose"),
    (["train", "latent", "--set", "limit=60", "--out", "other"], "other holds files that are no run (photo.jpg)"),
    (["train", "latent", "--set", "limit=60", "--out", "notes.md"], "notes.md is a file; choose another --out"),
    (["train", "tiny", "--out", "notes.md"], "notes.md is a file; choose another --out"),  # before its `init`
    (["train", "latent", "--set", "limit=1"], "1 of 1 different problems cannot be held out; give more problems"),
    (["init", "--set", "limit=-1"], "--set limit=-1: it must be 0, or from 1 to 2147483647"),
    *[([*words, "--device", "cuda:99"], "device 'cuda:99' cannot be used") for words in (
        ["init"], ["train", "latent"], ["sample", "3?", "--model", "latent"], ["eval", "latent"]
    )],
    (["eval", "latent", "--device", "abacus"], "device 'abacus' cannot be used"),
    (["eval", "latent", "--device", "meta"], "device 'meta' cannot be used"),
    (["eval", "latent", "--max-response", "99999"], "--max-response 99999 leaves a prompt no room in the 2048 "),
    (["init", "--steps", "0"], "'--steps': 0 is not in the range 1<=x<=2147483647. (see `lgrpo init --help`)"),
    *[(["init", "--lr", lr], f"'--lr': {lr} is not ") for lr in ("nan", "inf", "2.0", "1e-300")],
    *[(["sample", "3?", "--temperature", heat], f"'--temperature': {heat} is not ") for heat in (
        "nan", "inf", "1e+308", "1e-300"
    )],
    *[([*words, "9" * 20], f"{words[-1]!r}: {'9' * 20} is not in the range ") for words in (
        ["init", "--steps"], ["train", "--steps"], ["sample", "3?", "--max-response"], ["eval", "--max-response"],
        ["eval", "--limit"], ["eval", "--runs"], ["eval", "--samples"],
    )],
    (["eval", "--runs", "1025"], "'--runs': 1025 is not in the range 1<=x<=1024."),
    (["eval", "latent", "--limit", "2000000000"], "arithmetic: at most 1,000,000 problems are made; give a "),
    (["train", "latent", "--set", "limit=2000000000"], "arithmetic: at most 1,000,000 problems are made"),
    (["train", "--lr", "0"], "'--lr': 0.0 is not in the range 0<x<=1."),
    (["train", "latent", "--set", "max_response=2000"], "max_prompt=512 and max_response=2000 are more than the 2048"),
    (["train", "latent", "--set", "group=1"], "group must be at least 2: an advantage compares rollouts"),
    (["train", "latent", "--set", "size=1"], "--set size=1: there is no such setting; there are batch, checkpointing"),
    (["train", "latent", "--set", "batch"], "--set batch=: a whole number is needed"),
    (["train", "latent", "--set", "batch=1.5"], "--set batch=1.5: a whole number is needed"),
    (["train", "latent", "--set", "tau=0"], "--set tau=0: it must be from 1e-06 to 1e+06"),
    (["train", "latent", "--set", "kl=nan"], "--set kl=nan: it must be 0, or from 1e-06 to 1e+06"),
    (["train", "latent", "--set", "top_p=2"], "--set top_p=2: it must be from 1e-06 to 1"),
    *[(["train", "latent", "--set", pair], f"--set {pair}: it must be from 1 to 65536") for pair in (
        f"batch={10**12}", "batch=65537", f"group={10**15 - 1}", f"slots={10**9}"
    )],
    *[(["train", "latent", "--set", f"{name}={10**20}"], f"=1{'0' * 20}: it must be ") for name in (
        "limit", "draws", "max_prompt", "max_response", "held_out", "eval_every", "micro_tokens", "top_k", "kl", "clip"
    )],
    *[(["init", "--set", f"{name}={10**20}"], f"=1{'0' * 20}: it must be ") for name in (
        "limit", "batch", "ratio", "k", "joint_steps", "max_chain", "save_every", "slots", "output_scale", "joint_lr"
    )],
    (["train", "latent", "--set", "group=65536", "--set", "batch=64"], "batch * group is 4,194,304 rollouts; give few"),
    *[(["train", "latent", "--set", pair], f"--set {pair}: it must be ") for pair in (
        "noise_scale=1e308", "noise_scale=1e-300", "tau=1e-300", "tau=1e308", "temperature=1e-300", "top_p=1e-300"
    )],
    (["train", "latent", "--set", "k=3"], "--set k=3: there is no such setting"),
    (["init", "--set", "k=99999"], "--set k=99999: tiny has "),
    (["init", "--set", "train_embedding=2"], "--set train_embedding=2: yes or no is needed"),
    (["train", "--steps", "many"], "'--steps': 'many' is not a valid integer range."),
    (["train", "--recipe", "huge"], "'--recipe': 'huge' is not one of 'tiny', 'low', 'high'."),
    (["init", "--recipe", "huge"], "'--recipe': 'huge' is not one of 'tiny', 'low', 'high'."),
    (["train", "--without", "noise"], "'--without': 'noise' is not one of 'masking', 'one-sided', 'first-token'."),
    (["train", "--stepz", "3"], "No such option '--stepz'"),
    (["sample", "3?", "-n", "0"], "'-n' / '--samples': 0 is not in the range 1<=x<=1024."),
    (["sample", "3?", "--temperature", "-1"], "'--temperature': -1.0 is not in the range 0<=x<=1000000.0."),
    (["eval", "--runs", "0"], "'--runs': 0 is not in the range 1<=x<=1024."),
    (["eval", "--samples", "-1"], "'--samples': -1 is not in the range 0<=x<=1024."),
    (["sample", "3?", "--seed", "-1"], "'--seed': -1 is not in the range 0<=x<=4294967295."),
    (["train", "--seed", f"{2**64}"], "'--seed': 18446744073709551616 is not in the range"),
    (["retrain"], "No such command 'retrain'."),
]  # fmt: skip


@pytest.mark.parametrize("command", [*COMMANDS, "retrain"])
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_written(files: None, command: str) -> None:
    """All cases of one command at once: making the files takes longer than to refuse them."""
    before = listing()
    for arguments, message in REFUSED:
        if arguments[0] != command:
            continue
        result = lgrpo(*arguments)
        case = f"lgrpo {' '.join(arguments)[:80]}: {result.stderr[:500]}"
        assert result.exit_code == 2, case
        assert result.stdout == "", case
        assert result.stderr.startswith("Error: "), case
        assert message in result.stderr, case
        assert result.stderr.count("\n") == 1, case
        assert len(result.stderr) < 400, case
        assert listing() == before, case


def test_another_run_in_the_folder_is_neither_mixed_with_nor_replaced(latent: str) -> None:
    done("train", latent, "--set", "limit=40", "--steps", "1")
    before = listing()
    refused = lgrpo("train", latent, "--set", "limit=40", "--steps", "1", "--seed", "1")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: runs/latent-grpo holds another run (seed 0, now 1); choose another --out")
    assert listing() == before
    done("train", latent, "--set", "limit=40", "--steps", "1", "--seed", "1", "--overwrite")
    assert record_of("runs/latent-grpo")["identity"]["seed"] == 1


def test_a_run_does_not_go_on_with_other_data(latent: str, ctrl_c: list[int]) -> None:
    Path("data.jsonl").write_text(FILES["good.jsonl"])
    ctrl_c.append(1)
    assert lgrpo("train", latent, "--data", "data.jsonl").exit_code == 130
    Path("data.jsonl").write_text(FILES["good.jsonl"].replace("What is 3", "How much is 3"))
    refused = lgrpo("train")
    assert refused.exit_code == 2
    assert "holds another run (data_hash " in refused.stderr


def test_an_error_is_one_line_whatever_it_quotes():
    result = CliRunner().invoke(main, ["sample", "3 + 4", "--model", "runs/x\n\x1b[2J"])
    assert result.exit_code == 2
    assert "there is no 'runs/x\\n\\x1b[2J'" in result.stderr
    assert "\x1b" not in CliRunner().invoke(main, ["eval", "--runs", "\x1b[2J"]).stderr
