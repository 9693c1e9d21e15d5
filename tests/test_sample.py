"""`lgrpo sample`: the answer on stdout, the show on stderr, whatever way the problem comes."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from rich.cells import cell_len
from test_cli import done, lgrpo
from test_screen import CONTROL

from lgrpo import tiny
from lgrpo.asking.ask import Asker, Wish
from lgrpo.asking.present import Looks, present
from lgrpo.cli import main
from lgrpo.engine import Pace
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem
from lgrpo.reading import answer_text, latent_steps
from lgrpo.rollout import Part, Rollout
from lgrpo.screen.chain import points
from lgrpo.text import clean

QUESTION = "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?"
OTHERS = [f"Ann has {n} apples and eats {n % 5}. How many apples are left?" for n in range(7, 19)]
KEYS = {
    "problem", "sample", "seed", "answer", "text", "valid", "latent_length", "explicit_length", "tokens", "chain",
    "seconds", "tokens_per_s", "time_to_first_answer_token", "model", "settings",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, called latent: it answers nothing right, and is there at once."""
    folder = tmp_path_factory.mktemp("model") / "latent"
    folder.mkdir()
    policy = Policy.load(tiny.MODEL)
    policy.card = Card("latent", "tiny", 4, "arithmetic")
    policy.save(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def asker(model: str) -> Asker:
    return Asker(model, "cpu", 24, print)


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# -- one problem


def test_stdout_is_exactly_the_answer_and_stderr_the_chain(model: str, asker: Asker) -> None:
    asked = done("sample", QUESTION, "--model", model, "--max-response", "24")
    (answer,) = asker.ask(Problem(QUESTION, ""), Wish())
    assert answer.text
    assert asked.stdout == answer.text + "\n"
    lines = asked.stderr.splitlines()
    assert [line[:5] for line in lines[: len(answer.chain)]] == [f"{n:3}  " for n in range(1, len(answer.chain) + 1)]
    for line, step in zip(lines, answer.chain, strict=False):
        assert line[5:].startswith(step[0].text)
        assert f" {points(step[0].weight)}" in line
    assert max(map(cell_len, lines)) <= 80
    assert not CONTROL.search(asked.stdout + asked.stderr)
    quiet = done("sample", "--no-chain", "--model", model, "--max-response", "24", stdin=QUESTION + "\n")
    assert quiet.stdout == asked.stdout
    assert "  1  " not in quiet.stderr


def test_all_shows_every_word_of_a_step(model: str) -> None:
    every = done("sample", QUESTION, "--model", model, "--all", "--max-response", "9").stderr
    top = done("sample", QUESTION, "--model", model, "--max-response", "9").stderr
    count = len(re.findall(r" (?:\.\d\d|1\.0)(?= |$)", every, re.MULTILINE))
    assert (
        count
        == 4
        * json.loads(done("sample", QUESTION, "--model", model, "--json", "--max-response", "9").stdout)[
            "latent_length"
        ]
    )
    assert len(re.findall(r" (?:\.\d\d|1\.0)(?= |$)", top, re.MULTILINE)) < count


@pytest.mark.parametrize("pace", [Pace(), Pace(look=3, halvings=2, columns=8)])
@pytest.mark.parametrize("explore", [False, True])
def test_what_is_streamed_is_what_generate_gives(
    asker: Asker, pace: Pace, explore: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the steps that a GPU takes, too, run one by one."""
    asker.engine.pace = pace
    wish, problem = Wish(5, explore, temperature=1.5, seed=3), Problem(QUESTION, "")
    heard: dict[int, list[Part]] = {}
    answers = asker.ask(problem, wish, lambda sample, part, text: heard.setdefault(sample, []).append(part))
    plain = asker.engine.generate(asker.requests(problem, wish))
    for answer, rollout in zip(answers, plain, strict=True):
        assert answer.rollout.tokens.tolist() == rollout.tokens.tolist()
        assert answer.text == answer_text(asker.policy, rollout)
        streamed = [step for part in heard[answer.sample] for step in latent_steps(asker.policy, part, 1.0)]
        assert streamed == answer.chain == latent_steps(asker.policy, rollout, 1.0)
    present(asker, problem, wish, Looks())
    assert capsys.readouterr().out == "".join(answer.text + "\n" for answer in answers)


def test_text_comes_as_it_is_made(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's line before the next step, each piece of text before the next token."""
    events: list[str] = []

    class Listening(io.StringIO):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def write(self, text: str) -> int:
            if text.strip():
                events.append(self.name)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Listening("text"))
    monkeypatch.setattr(sys, "stderr", Listening("line"))
    begin = asker.engine.generate

    def generate(requests: Any, on_finish: Any, on_steps: Any) -> Any:
        def hear(number: int, part: Part) -> None:
            events.append("step" if int(part.tokens[0]) < 0 else "token")
            on_steps(number, part)

        return begin(requests, on_finish, hear)

    monkeypatch.setattr(asker.engine, "generate", generate)
    (answer,) = present(asker, Problem(QUESTION, ""), Wish(), Looks())
    steps = answer.rollout.latent_length
    assert events[: 2 * steps] == ["step", "line"] * steps
    assert events[2 * steps : 2 * steps + 4] == ["token", "token", "token", "text"]  # the marker, one, and the next one
    assert events.count("text") > 1


def test_many_bytes_to_a_letter_and_tabs_come_out_whole(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\ta\tbc\td\re\tf €\n12345\t日本\x1b[2J\x9b\n"
    tokens = asker.policy.end_ids + asker.policy.tokenizer.encode(text + "x", add_special_tokens=False)

    def speak(requests: Any, on_finish: Any, on_steps: Any) -> list[Rollout]:
        import torch

        blank = torch.zeros(len(tokens), 4)
        rollout = Rollout((), torch.tensor(tokens), blank.long(), blank, blank[:, 0], valid=True)
        for at in range(len(tokens)):
            part = slice(at, at + 1)
            on_steps(0, Part(rollout.tokens[part], rollout.indices[part], rollout.scores[part]))
        on_finish(0, replace(rollout, tokens=torch.tensor(tokens)))
        return [rollout]

    monkeypatch.setattr(asker.engine, "generate", speak)
    present(asker, Problem("?", ""), Wish(), Looks())
    out = capsys.readouterr().out
    assert out == "</think>    a   bc  d e   f €\n12345   日本\\x1b[2J\\x9b\nx\n"
    assert out == clean(asker.policy.decode(tokens), lines=True) + "\n"
    assert not CONTROL.search(out)


def test_samples_as_json_are_an_object_a_line_with_everything(model: str) -> None:
    """And the last line alone is one, whatever stands on stderr."""
    asked = done("sample", QUESTION, "--model", model, "-n", "3", "--explore", "--json", "--seed", "5")
    objects = rows(asked.stdout)
    assert [one["sample"] for one in objects] == [1, 2, 3]
    for one in objects:
        assert one.keys() == KEYS
        assert len(one["chain"]) == one["latent_length"]
        assert len(one["tokens"]) == one["explicit_length"]
        for step in one["chain"]:
            assert [word.keys() for word in step] == [{"id", "word", "weight"}] * 4
            assert sum(word["weight"] for word in step) == pytest.approx(1, abs=1e-5)
        assert one["seed"] == 5
        assert one["tokens_per_s"] == pytest.approx((one["latent_length"] + one["explicit_length"]) / one["seconds"])
        assert one["time_to_first_answer_token"] is None or one["time_to_first_answer_token"] <= one["seconds"]
        assert one["settings"]["noise_scale"] == 0.25
        assert one["model"] == model
    assert len({str(one["chain"]) for one in objects}) == 3
    again = done("sample", QUESTION, "--model", model, "--explore", "--json", "--seed", "5", "--no-chain").stdout
    (first,) = rows(again)
    assert first.keys() == KEYS - {"chain"}
    assert first["tokens"] == objects[0]["tokens"]  # a draw does not depend on the others


def test_several_samples_follow_each_other_and_the_vote_is_on_stderr(model: str) -> None:
    arguments = ["sample", QUESTION, "--model", model, "-n", "4", "--temperature", "2"]
    plain = done(*arguments, "--max-response", "24")
    objects = rows(done(*arguments, "--max-response", "24", "--json").stdout)
    assert plain.stdout == "".join(one["text"] + "\n" for one in objects)
    assert plain.stderr.count("\n  1  ") + plain.stderr.startswith("  1  ") == 1  # the same chain for all of them
    assert re.search(r"^vote  .+ of 4  #", plain.stderr, re.MULTILINE)

    explored = done(*arguments, "--max-response", "24", "--explore")
    assert re.search(r"^4 chains (by|with) the", explored.stderr, re.MULTILINE)
    assert not explored.stderr.startswith("  1  ")
    assert max(map(cell_len, explored.stderr.splitlines())) <= 80
    assert not CONTROL.search(explored.stderr)
    hidden = done(*arguments, "--max-response", "24", "--explore", "--no-chain")
    assert hidden.stdout == explored.stdout
    assert " chains " not in hidden.stderr
    assert "vote  " in hidden.stderr


def test_an_answer_that_is_cut_off_says_so(model: str) -> None:
    short = done("sample", QUESTION, "--model", model, "--max-response", "3", "-n", "2")
    note = "cut off after 3 positions; --max-response allows more)"
    assert [line for line in short.stderr.splitlines() if "cut off" in line] == [
        f"(sample 1 {note}",
        f"(sample 2 {note}",
    ]


def test_bytes_that_are_no_text_are_asked_as_well_as_can_be(model: str) -> None:
    half, whole = "3 \udcff 4?", "3 ? 4?"
    options = ["--model", model, "--max-response", "9", "--json", "--no-chain"]
    given = json.loads(done("sample", half, *options).stdout)
    assert given["problem"] == whole
    assert given["tokens"] == json.loads(done("sample", whole, *options).stdout)["tokens"]


def test_exploring_a_chain_that_is_written_is_said_to_do_nothing() -> None:
    asked = done("sample", QUESTION, "--model", "tiny", "--explore")
    assert asked.stderr.startswith("tiny writes its chain: there is no latent one to explore with noise\n")
    assert asked.stdout == done("sample", QUESTION, "--model", "tiny").stdout


def test_a_terminal_without_the_signs_gets_codes(model: str) -> None:
    """An answer in another alphabet ends neither in a traceback nor in silence."""
    code = (
        "import sys; from lgrpo.asking import present; from lgrpo.cli import main\n"
        "real = present._Telling.end\n"
        "def end(self, answer): self._write('5 €'); real(self, answer)\n"
        "present._Telling.end = end\n"
        f"main(['sample', 'What is 3 + 4?', '--model', {model!r}, '--max-response', '3', '--no-chain'])\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "5 \\u20ac" in ran.stdout


# -- a file of them


@pytest.fixture
def data() -> Iterator[Path]:
    path = Path("problems.jsonl")
    lines = [{"question": question} for question in OTHERS]
    lines[2]["answer"] = "9"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_file_is_answered_in_its_order_and_draws_do_not_depend_on_the_batch(
    model: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows at a time and problems in parts of four: the same answers as each alone."""
    started = Asker.__init__

    def few(self: Asker, *arguments: Any) -> None:
        started(self, *arguments)
        self.engine.slots = 3

    monkeypatch.setattr(Asker, "__init__", few)
    options = ["--model", model, "-n", "3", "--explore", "--seed", "2", "--max-response", "24"]
    asked = done("sample", "--file", str(data), *options)
    objects = rows(asked.stdout)
    assert [(one["row"], one["sample"]) for one in objects] == [(r, s) for r in range(1, 13) for s in (1, 2, 3)]
    assert [one["problem"] for one in objects[::3]] == OTHERS
    for one in (objects[0], objects[20]):
        assert one.keys() == KEYS | {"row"}
        assert one["seconds"] is None
    assert [one["row"] for one in objects if "right" in one] == [3, 3, 3]
    assert objects[6]["reference"] == "9"
    alone = rows(done("sample", OTHERS[6], *options, "--json").stdout)
    for one, other in zip(objects[18:21], alone, strict=True):
        assert {k: one[k] for k in ("text", "tokens", "seed", "sample", "settings")} == {
            k: other[k] for k in ("text", "tokens", "seed", "sample", "settings")
        }
        assert [[word["id"] for word in step] for step in one["chain"]] == [
            [word["id"] for word in step] for step in other["chain"]
        ]
    assert "answering problems.jsonl 12/12  right 0" in asked.stderr
    assert not CONTROL.search(asked.stderr)


def test_right_answers_are_known_by_the_verifier(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("two.jsonl").write_text('{"problem": "a", "answer": "1/2"}\n{"problem": "b", "answer": "#### 7"}\n')
    answer = Asker.answer

    def half(self: Asker, *arguments: Any) -> Any:
        made = answer(self, *arguments)
        return replace(made, text="\\boxed{0.5}", rollout=replace(made.rollout, valid=True))

    monkeypatch.setattr(Asker, "answer", half)
    asked = done("sample", "--file", "two.jsonl", "--model", model, "--max-response", "4")
    assert [(one["reference"], one["right"]) for one in rows(asked.stdout)] == [("1/2", True), ("7", False)]
    assert "right 0.500" in asked.stderr


def test_lines_on_stdin_and_plain_text_are_files_too(model: str, data: Path) -> None:
    options = ["--model", model, "--max-response", "12"]
    expected = [(one["row"], one["text"]) for one in rows(done("sample", "--file", str(data), *options).stdout)]
    piped = done("sample", "--file", "-", *options, stdin="\n" + data.read_text())
    assert [(one["row"], one["text"]) for one in rows(piped.stdout)] == expected
    assert "answering stdin" in piped.stderr
    assert "chain" in rows(piped.stdout)[0]
    Path("plain.txt").write_text("\n".join([*OTHERS[:3], f"{OTHERS[3]}||chain #### 5"]))
    plain = rows(done("sample", "--file", "plain.txt", "--no-chain", *options).stdout)
    assert "chain" not in plain[0]
    assert [(one["row"], one["text"]) for one in plain] == expected[:4]
    assert [one.get("reference") for one in plain] == [None, None, None, "5"]


def test_who_asks_line_by_line_is_answered_line_by_line(model: str) -> None:
    command = [sys.executable, "-m", "lgrpo", "sample", "--file", "-", "--model", model, "--max-response", "6"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        assert it.stdin is not None
        assert it.stdout is not None
        assert it.stderr is not None
        for question in OTHERS[:3]:
            print(json.dumps({"problem": question}), file=it.stdin, flush=True)
            assert json.loads(it.stdout.readline())["problem"] == question
        print("nonsense", file=it.stdin, flush=True)
        it.stdin.close()
        assert it.stdout.read() == ""
        assert it.stderr.read().splitlines()[-1].startswith("Error: stdin, line 4: not JSON")
        assert it.wait() == 2


@pytest.mark.parametrize("what", [["--file", "problems.jsonl"], [QUESTION, "--json", "--no-chain"]])
def test_a_reader_that_has_enough_ends_it_quietly(model: str, data: Path, what: list[str]) -> None:
    command = [sys.executable, "-m", "lgrpo", "sample", *what, "--model", model, "-n", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stderr is not None
        assert json.loads(it.stdout.readline())["sample"] == 1
        it.stdout.close()
        errors = it.stderr.read()
        assert it.wait() == 1
    assert all(line.startswith("answering ") for line in errors.splitlines()), errors


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is full")
ENDED = "the answer cannot be written to stdout (No space left on device); send it elsewhere, and ask again"


@FULL
@pytest.mark.parametrize("what", [["--file", "problems.jsonl"], [QUESTION, "--json"], [QUESTION]])
def test_a_stdout_that_is_full_is_one_line(
    model: str, data: Path, what: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the answer is left in a buffer: it would be an error again when the interpreter ends."""
    options = main.make_context("lgrpo", ["sample", *what, "--model", model, "--max-response", "9"])
    with open("/dev/full", "w") as full, monkeypatch.context() as now:
        now.setattr("lgrpo.people.terminate_like_ctrl_c", lambda: None)
        now.setattr(sys, "stdout", full)
        with pytest.raises(click.UsageError, match=re.escape(ENDED)):
            main.invoke(options)
        full.flush()


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_stdout_is_full_ends_with_code_2(model: str, unbuffered: str) -> None:
    command = [sys.executable, "-m", "lgrpo", "sample", QUESTION, "--model", model, "--max-response", "9", "--no-chain"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (2, f"Error: {ENDED}\n")


def test_without_a_stdout_nothing_is_asked(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = main.make_context("lgrpo", ["sample", QUESTION, "--model", "nowhere"])
    monkeypatch.setattr("lgrpo.people.terminate_like_ctrl_c", lambda: None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(click.UsageError, match="there is no stdout to write the answer to"):
        main.invoke(options)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.jsonl", '{"problem": "a"}\n{"problem": \n', "bad.jsonl, line 2: not JSON"),
        ("none.jsonl", '{"problem": "a"}\n{"answer": "5"}\n', "none.jsonl, line 2: no field for the problem"),
        ("null.jsonl", '{"problem": null}\n', "null.jsonl, line 1: the field `problem` is null"),
        ("blank.jsonl", '{"problem": " "}\n', "blank.jsonl, line 1: the field `problem` is empty"),
        ("empty.jsonl", "\n", "empty.jsonl: holds no problems"),
        ("long.jsonl", '{"problem": "a"}\n{"problem": "' + "long " * 2100 + '"}\n', "long.jsonl, line 2: a prompt of"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_answered(model: str, name: str, text: str, message: str) -> None:
    Path(name).write_text(text)
    refused = lgrpo("sample", "--file", name, "--model", model)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("source", ["rows.jsonl", "-"])
def test_a_foreign_model_is_measured_with_the_prompt_it_is_asked(
    model: str, latent: bool, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but its answers says whether it has a latent chain, and a latent prompt is longer by its `<think>`."""
    shutil.copytree(model, "foreign")
    Path("foreign/lgrpo.json").unlink()
    template = Path("foreign/chat_template.jinja")
    template.write_text(template.read_text().replace("<think>", ""))  # else both prompts end with it
    monkeypatch.setattr("lgrpo.session.has_latent_chain", lambda *_: latent)
    policy = Policy.load("foreign")
    text = "long " * 404 + "."
    length = len(policy.prompt_ids(text, latent))
    assert length == len(policy.prompt_ids(text, not latent)) + (1 if latent else -1)
    lines = "".join(json.dumps({"problem": one}) + "\n" for one in ["3 + 4?", text])
    Path("rows.jsonl").write_text(lines)
    room = 2048 - length
    ask = ["sample", "--file", source, "--model", "foreign", "--max-response"]
    asked = rows(done(*ask, str(room), stdin=lines).stdout)
    assert [one["settings"]["latent"] for one in asked] == [latent, latent]
    assert 0 < asked[1]["latent_length"] + asked[1]["explicit_length"] <= room
    refused = lgrpo(*ask, str(room + 1), stdin=lines)
    assert (refused.exit_code, refused.stdout) == (2, "")
    wrong = (
        f"{'stdin' if source == '-' else source}, line 2: a prompt of {length} positions and a response of {room + 1}"
    )
    assert f"Error: {wrong} are more than the 2048 of foreign" in refused.stderr


def test_what_cannot_be_asked_is_refused(model: str, data: Path) -> None:
    for arguments, message in [
        (["What?", "--file", str(data)], "a problem and --file at once"),
        (["--file", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (
            ["--file", str(data), "--max-response", "99999"],
            "--max-response 99999 leaves a prompt no room in the 2048 positions of",
        ),
        ([], "no problem given; put it in quotes, or pipe it in"),
    ]:
        refused = lgrpo("sample", *arguments, "--model", model, stdin="")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert message in refused.stderr


@pytest.mark.parametrize("where", [["--file", "problems.jsonl"], [QUESTION]])
def test_ctrl_c_stops_at_once_and_what_is_told_stays(
    model: str, data: Path, where: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half line of an answer is ended, the rows before are there. On a GPU positions come a few at a time."""
    options = ["--model", model, "--max-response", "24", "--device", "cpu"]
    whole = done("sample", *where, *options)
    write, seen = io.TextIOWrapper.write, []

    def pressing(self: io.TextIOWrapper, text: str) -> int:
        count = write(self, text)
        if self is sys.stdout:
            seen.append(text)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
        return count

    monkeypatch.setattr("click.testing._NamedTextIOWrapper.write", pressing, raising=False)
    stopped = lgrpo("sample", *where, *options)
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("Stopped.\n")
    assert 0 < len(stopped.stdout) < len(whole.stdout)
    assert stopped.stdout.endswith("\n")
    assert whole.stdout.startswith(stopped.stdout.rstrip("\n"))
