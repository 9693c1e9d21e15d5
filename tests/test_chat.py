"""A conversation on a terminal: what is typed, what the commands do, and how it ends."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from lgrpo import tiny
from lgrpo.asking import chat
from lgrpo.asking.ask import Asker, Wish
from lgrpo.asking.present import Looks
from lgrpo.asking.slash import COMMANDS, Talk, helped, obey
from lgrpo.errors import UserError
from lgrpo.policy import Card, Policy
from lgrpo.screen import prompt as prompts
from lgrpo.screen.prompt import Prompt, history_file

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP, TAB = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A", "\t"


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Asker:
    folder = tmp_path_factory.mktemp("model") / "latent"
    folder.mkdir()
    policy = Policy.load(tiny.MODEL)
    policy.card = Card("latent", "tiny", 4, "arithmetic")
    policy.save(folder)
    return Asker(str(folder), "cpu", 12, print)


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def typing(keys: PipeInput, text: str, history: Path | None = None) -> Prompt:
    keys.send_text(text)
    meanings = {f"/{name}": command.meaning for name, command in COMMANDS.items()}
    return Prompt(meanings, lambda: "here", history, keys, DummyOutput())


def told(asker: Asker, keys: PipeInput, text: str, load: Callable[[str | None], Asker] | None = None) -> None:
    chat.talk(load or (lambda name: asker), Wish(), Looks(), typing(keys, text))


# -- typing


def test_enter_asks_alt_enter_and_pasted_lines_stay_one_problem(keys: PipeInput) -> None:
    prompt = typing(keys, f"one{ALT_ENTER}two{ENTER}\x1b[200~three\nfour\x1b[201~!{ENTER}{CTRL_D}")
    assert [prompt.ask(), prompt.ask(), prompt.ask()] == ["one\ntwo", "three\nfour!", None]


def test_ctrl_c_clears_what_is_typed_and_leaves_where_nothing_is(keys: PipeInput) -> None:
    prompt = typing(keys, f"half a question{CTRL_C}whole{ENTER}{CTRL_C}")
    assert [prompt.ask(), prompt.ask()] == ["whole", None]


def test_a_colour_in_what_is_pasted_is_no_movement_of_the_mouse(keys: PipeInput) -> None:
    """A terminal without bracketed paste sends it as it is, and prompt_toolkit ends with a traceback."""
    assert typing(keys, f"\x1b[31mred\x1b[0m 3+4?{ENTER}").ask() == "red 3+4?"


def test_the_arrow_brings_back_what_was_asked_before_this_time_too(keys: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    assert typing(keys, f"first\nline{ENTER}", path).ask() is not None
    assert path.stat().st_mode & 0o777 == 0o600
    again = typing(keys, f"{UP}{UP}", path)
    assert "first" in path.read_text()
    assert list(again._session.history.load_history_strings()) != []


@pytest.mark.parametrize("place", ["file", "missing"])
def test_a_history_that_cannot_be_kept_costs_nothing(keys: PipeInput, tmp_path: Path, place: str) -> None:
    """The user's folder is a file, or went while somebody typed."""
    (tmp_path / "file").write_text("")
    path = tmp_path / place / "history"
    prompt = typing(keys, f"5 + 4{ENTER}6 + 4{ENTER}", path)
    assert prompt.ask() == "5 + 4"
    if place == "missing":
        path.unlink()
        path.parent.rmdir()
    assert prompt.ask() == "6 + 4"


def test_history_stands_where_state_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert history_file() == tmp_path / ".local/state/lgrpo/history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # is to be ignored, says the specification
    assert history_file() == tmp_path / ".local/state/lgrpo/history"
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert history_file() == Path("/elsewhere/lgrpo/history")


def test_commands_are_completed_with_their_meaning() -> None:
    completer = prompts._Commands({"/help": "this table", "/samples": "answers", "/seed": "again"})
    event: Any = None
    found = list(completer.get_completions(Document("/s"), event))
    assert [(one.text, one.display_meta_text) for one in found] == [("/samples", "answers"), ("/seed", "again")]
    assert list(completer.get_completions(Document("s"), event)) == []


def test_the_prompt_goes_to_a_terminal_and_never_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    piped, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", piped)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert prompts._terminal() is terminal
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", piped)
    assert prompts._terminal() is terminal


# -- commands


def after(asker: Asker, *lines: str) -> Talk:
    talk = Talk(asker, Wish(), Looks())
    for line in lines:
        talk, _ = obey(line, talk, lambda name: asker)
    return talk


def test_commands_change_what_is_asked_and_how_it_is_shown(asker: Asker) -> None:
    talk = after(asker, "/samples 8", "/explore on", "/temperature 0", "/seed 7", "/all", "/chain off")
    assert talk.wish == Wish(8, True, 0.0, 7)
    assert talk.looks == Looks(chain=False, every=True)
    assert after(asker, "/explore 0.5").wish.explore == 0.5
    assert after(asker, "/explore", "/explore").wish.explore is False
    assert after(asker, "/explore on", "/explore off").wish.explore is False
    assert after(asker, "/temperature 2", "/temperature").wish.temperature is None
    assert after(asker, "/chain", "/all on", "/all off").looks == Looks(chain=False)
    assert after(asker, "/quit").over
    now = {command.split()[0]: value for command, value, _ in helped(talk)}
    assert now == {
        "/help": "", "/samples": "8", "/explore": "noise 0.25", "/temperature": "0", "/seed": "7",
        "/chain": "hidden", "/all": "all 4", "/model": asker.name, "/quit": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sampels 3", "there is no /sampels; did you mean /samples?"),
        ("/temp 1", "there is no /temp; did you mean /temperature?"),
        ("/", "there is no /; /help shows them all"),
        ("/xyzzy", "there is no /xyzzy; /help shows them all"),
        ("/samples", "/samples needs how many, from 1 to 1024"),
        ("/samples 0", "/samples needs how many, from 1 to 1024"),
        ("/samples ²", "/samples needs how many, from 1 to 1024"),
        ("/explore loud", "/explore needs on, off, or the scale of the noise, 0, or from 1e-06 to 1e+06"),
        ("/explore 1e308", "/explore needs on, off"),
        ("/explore -1", "/explore needs on, off"),
        ("/temperature nan", "/temperature needs a number, 0, or from 1e-06 to 1e+06"),
        ("/temperature inf", "/temperature needs a number"),
        ("/temperature 1e-300", "/temperature needs a number"),
        ("/seed 99999999999", "/seed needs a whole number, 0 or more"),
        ("/all maybe", "/all takes on or off, or nothing to turn it round"),
    ],
)
def test_a_command_that_cannot_be_obeyed_changes_nothing_and_says_why(asker: Asker, line: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        after(asker, line)


def test_another_model_is_asked_and_one_that_is_not_there_is_not(
    asker: Asker, keys: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    other, asked = Asker("tiny", "cpu", 6, print), []

    def load(name: str | None) -> Asker:
        asked.append(name)
        if name == "nowhere":
            raise UserError("there is no 'nowhere'")
        return other if name else asker

    told(asker, keys, f"/model nowhere{ENTER}/model{ENTER}/model tiny{ENTER}{CTRL_D}", load)
    assert asked == [None, "nowhere", "tiny"]
    said = capsys.readouterr().err.splitlines()[1:]
    latent = f"{asker.name}, latent, 0.8 M parameters"
    assert said == ["there is no 'nowhere'", latent, "asking tiny, explicit, 0.8 M parameters"]


# -- talking


def test_answers_are_on_stdout_and_all_else_on_stderr(
    asker: Asker, keys: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    told(
        asker,
        keys,
        f"{ENTER}What is 3 + 4?{ENTER}/samples 2{ENTER} /2 of 8?{ENTER}/help{ENTER}/quit{ENTER}never{ENTER}",
    )
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    tallies = re.findall(r"^(\d+) latent \+ (\d+) explicit, \d+ tokens/s", said.err, re.MULTILINE)
    assert len(tallies) == 2
    assert re.search(r"^vote  ", said.err, re.MULTILINE)
    assert re.search(r"^/samples N +2 +answers to a problem", said.err, re.MULTILINE)
    assert "\x1b" not in said.out + said.err


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    asker: Asker, keys: PipeInput, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next answer is what it would have been."""
    question = "What is 3 + 4?"
    told(asker, keys, f"{question}{ENTER}{CTRL_D}")
    undisturbed = capsys.readouterr().out
    begin, pressed = asker.engine.generate, []

    def generate(requests: Any, on_finish: Any, on_steps: Any) -> Any:
        def hear(*part: Any) -> None:
            on_steps(*part)
            if len(pressed) < 3:
                pressed.append(1)
                if len(pressed) == 3:
                    os.kill(os.getpid(), signal.SIGINT)

        return begin(requests, on_finish, hear)

    monkeypatch.setattr(asker.engine, "generate", generate)
    told(asker, keys, f"{question}{ENTER}{question}{ENTER}{CTRL_D}")
    said = capsys.readouterr()
    assert "stopped\n" in said.err
    assert said.out == undisturbed


def read_until(terminal: int, pattern: str, seen: str = "", seconds: float = 120) -> str:
    """What a terminal shows up to a pattern; the prompt asks it where the cursor is, and is answered."""
    end = time.monotonic() + seconds
    while not re.search(pattern, seen):
        assert time.monotonic() < end, f"no {pattern!r} in {seen[-2000:]!r}"
        if select.select([terminal], [], [], 1)[0]:
            got = os.read(terminal, 65536).decode(errors="replace")
            if "\x1b[6n" in got:
                os.write(terminal, b"\x1b[1;1R")
            seen += got
    return seen


def test_on_a_real_terminal_with_stdout_in_a_pipe(asker: Asker, tmp_path: Path) -> None:
    """Only answers go into the pipe; prompt, chain and tally are on the terminal; Ctrl-D ends it well."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-m", "lgrpo", "sample", "--model", asker.name, "--max-response", "12"]
    it = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True)
    os.close(theirs)
    try:
        read_until(ours, "Ctrl-D leaves")
        os.write(ours, b"What is 3 + 4?\r")
        shown = read_until(ours, r"(?s)tokens/s.*Ctrl-D leaves")
        assert re.search(r"  1 .* .*█", shown)
        os.write(ours, b"\x04")
        answer, _ = it.communicate(timeout=60)
    finally:
        it.kill()
        os.close(ours)
    assert it.returncode == 0
    assert answer.count("\n") == 1
    assert "\x1b" not in answer
    assert "tokens/s" not in answer
    assert (tmp_path / "lgrpo" / "history").read_text().strip().endswith("+What is 3 + 4?")
