"""Whatever a model, a data file, a folder's name or somebody's run says, it is shown and never obeyed.

One hostile text goes through every way by which text reaches a terminal, a page or a table to paste.
"""

import io
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_report import Page
from test_scores import AGAINST, ENTRY

from lgrpo import commands, session, tiny
from lgrpo.asking import chat
from lgrpo.asking.ask import Wish
from lgrpo.cli import main
from lgrpo.commands import TrainOptions
from lgrpo.health import Trouble
from lgrpo.plan import Setting
from lgrpo.policy import Card, Policy
from lgrpo.report import write_report
from lgrpo.screen import Show, terminal
from lgrpo.screen.chain import Chain
from lgrpo.screen.scores import markdown, scores
from lgrpo.screen.strands import Column, strands, vote

NAME = "[red]q[link=x]\x1b]0;own\x07\x1b[2J\x9b31m\u202eevil\u2066\u2028\x08\r\n'\"><img src=x onerror=alert(1)>`|a|"
HOSTILE = NAME + "</script><script>alert(1)</script><svg/onload=alert(1)>&lt;b&gt;\ud800"
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\??(25[lh]|2K|1A|[0-9]*[ABCDGK])|\r")  # what rich itself may write


def obeyed(text: str) -> list[str]:
    """What a terminal would obey, in a text from which rich's own sequences are taken."""
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [repr(letter) for letter in text if letter != "\n" and unicodedata.category(letter) in bad]


def assert_shown(text: str, live: bool = False) -> None:
    assert "[red]q" in text, text  # it is there, and was not taken for markup
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text
    assert obeyed(OURS.sub("", text) if live else text) == []


@pytest.fixture(autouse=True)
def _an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(tmp_path)


# -- the screen


def _staged(show: Show) -> Show:
    show.stage("train", 3)
    return show


def _sampled(show: Show) -> None:
    _staged(show).sample(HOSTILE, HOSTILE, HOSTILE, False, HOSTILE)


def _troubled(show: Show) -> None:
    _staged(show).health([Trouble("reward", HOSTILE, HOSTILE)])


def _phased(show: Show) -> None:
    show.stage(HOSTILE, 3)
    show.phase(HOSTILE)


SHOWN: dict[str, Callable[[Show], None]] = {
    "plan": lambda show: show.plan([Setting(HOSTILE, HOSTILE, HOSTILE), Setting("a", [HOSTILE], "b")]),
    "stage and phase": _phased,
    "numbers": lambda show: _staged(show).step(1, {HOSTILE: 0.5, "reward": HOSTILE}),
    "say": lambda show: show.say(HOSTILE),
    "warn": lambda show: show.warn(HOSTILE),
    "sample": _sampled,
    "health": _troubled,
}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", SHOWN)
def test_the_screen_of_a_run(name: str, live: bool) -> None:
    file = io.StringIO()
    with Show(file, live, 300, 50) as show:
        SHOWN[name](show)
    assert_shown(file.getvalue(), live)


def _console(file: io.StringIO, live: bool) -> Console:
    return terminal.console_on(file, live, 300, 50)


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


SCORED = [
    {"checkpoint": HOSTILE, "results": [ENTRY | {"benchmark": HOSTILE}]},
    {
        "checkpoint": "b" + HOSTILE,
        "results": [
            ENTRY
            | {"benchmark": HOSTILE}
            | {
                "against": AGAINST
                | {"checkpoint": HOSTILE, "won": [{"index": 0, "problem": HOSTILE, "before": 0.0, "after": 1.0}]}
            }
        ],
    },
]
BLOCS = [(HOSTILE, [Column([1, 2], [[(HOSTILE, 0.6), (HOSTILE, 0.4)]])]), (None, [Column([3], [[(HOSTILE, 1.0)]])])]


def _chain(file: io.StringIO, width: int) -> None:
    chain = Chain(True, file, width)
    chain.step([(HOSTILE, 0.6), (HOSTILE, 0.4)])


DRAWN: dict[str, Callable[[io.StringIO, int], None]] = {
    "chain": _chain,
    "strands": lambda file, width: strands(BLOCS, 1, True, file, width),
    "vote": lambda file, width: vote(BLOCS, True, file, width),
    "scores": lambda file, width: scores(SCORED, file, width),
}


@pytest.mark.parametrize("width", [60, 2000])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_chains_votes_and_scores(name: str, live: bool, width: int) -> None:
    file = Tty() if live else io.StringIO()
    DRAWN[name](file, width)
    assert "\x1b[2J" not in file.getvalue()
    assert "\x1b]" not in file.getvalue()
    assert obeyed(OURS.sub("", file.getvalue()) if live else file.getvalue()) == []
    assert "[re" in file.getvalue()


def test_tables_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    for live in (False, True):
        file = io.StringIO()
        terminal.table(_console(file, live), ["a", "b"], [[HOSTILE, HOSTILE]])
        assert_shown(file.getvalue(), live)
    terminal.note(HOSTILE)
    terminal.label(HOSTILE)
    session.on_stderr(HOSTILE)
    assert_shown(capsys.readouterr().err)


def test_the_line_below_a_conversation() -> None:
    asker: Any = SimpleNamespace(name=NAME)
    assert_shown(chat.toolbar(SimpleNamespace(asker=asker, wish=Wish())))  # type: ignore[arg-type]


# -- Markdown


def test_markdown_stays_one_table_whose_cells_are_text() -> None:
    text = markdown(SCORED)
    assert_shown(text)
    tables = [part.split("\n") for part in text.split("\n\n")]
    for lines in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(cells) == 1
    assert "<" not in text
    assert not re.search(r"(?<!\\)`", text)


# -- the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, called latent, trained on data with such a name."""
    folder = tmp_path_factory.mktemp("model") / "latent"
    folder.mkdir()
    policy = Policy.load(tiny.MODEL)
    policy.card = Card("latent", "tiny", 4, HOSTILE.replace("\ud800", ""), {"max_response": 12})
    policy.save(folder)
    return str(folder)


def _folder(name: str, record: dict[str, Any]) -> Path:
    folder = Path("runs") / name.replace("/", "")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def _data(name: str, *rows: Any) -> str:
    path = Path(name.replace("/", ""))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


REFUSED: dict[str, Callable[[], Sequence[str]]] = {
    "a command": lambda: [NAME],
    "an option": lambda: ["train", f"--{NAME}"],
    "a value": lambda: ["train", "--recipe", NAME],
    "a setting": lambda: ["train", "--set", f"{NAME}=1"],
    "a setting's value": lambda: ["init", "--set", f"steps={NAME}"],
    "a model to train": lambda: ["train", NAME],
    "a base": lambda: ["init", NAME],
    "a model to score": lambda: ["eval", NAME],
    "a model to ask": lambda: ["sample", "q", "--model", NAME],
    "data": lambda: ["eval", "tiny", "--data", NAME],
    "a level": lambda: ["eval", "tiny", "--data", f"arithmetic:{NAME}"],
    "a device": lambda: ["eval", "tiny", "--device", NAME],
    "a file of problems": lambda: ["sample", "--model", "tiny", "--file", NAME],
    "fields": lambda: ["eval", "tiny", "--data", _data("fields.jsonl", {NAME: 1})],
    "a damaged file": lambda: ["eval", "tiny", "--data", _data(f"{NAME}.jsonl", NAME)],
    "a run without a checkpoint": lambda: ["eval", str(_folder(NAME, {"command": NAME}))],
    "a record": lambda: ["train", str(_folder(NAME, {"command": NAME, "options": {NAME: NAME}}))],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_and_not_obeyed(name: str) -> None:
    result = CliRunner().invoke(main, list(REFUSED[name]()))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert_shown(result.stderr)


def test_the_name_of_a_run_that_is_finished_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(NAME, {"command": "init", "options": {"seed": 0}, "finished": None})
    monkeypatch.setattr(commands, "init", lambda asked: folder)
    monkeypatch.setattr(commands, "_train", lambda asked: folder)
    commands.train(TrainOptions(checkpoint=str(folder)))
    assert_shown(capsys.readouterr().err)


# -- what a model says


@pytest.fixture
def _speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model each of whose tokens, and whose every answer, is hostile."""
    monkeypatch.setattr(Policy, "decode", lambda self, ids: HOSTILE)
    monkeypatch.setattr(Policy, "piece", lambda self, token: f"{HOSTILE}{token}")


ASKED: dict[str, list[str]] = {
    "one answer": [],
    "all words": ["--all"],
    "several answers": ["--samples", "3", "--explore", "--all"],
    "JSON": ["--json"],
}


@pytest.mark.usefixtures("_speaks")
@pytest.mark.parametrize("name", ASKED)
def test_answers_and_chains(name: str, model: str) -> None:
    asked = ["sample", NAME, "--model", model, "--device", "cpu", "--max-response", "12", *ASKED[name]]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert_shown(result.stdout)
    assert obeyed(result.stderr) == []


@pytest.mark.usefixtures("_speaks")
def test_answers_to_a_file(model: str) -> None:
    path = _data(f"{NAME}.jsonl", {"problem": NAME, "answer": NAME})
    result = CliRunner().invoke(
        main, ["sample", "--file", path, "--model", model, "--device", "cpu", "--max-response", "12"]
    )
    assert result.exit_code == 0, result.output
    assert_shown(result.stdout)
    assert_shown(result.stderr)  # the file's name


@pytest.mark.usefixtures("_speaks")
@pytest.mark.parametrize("form", ["", "--markdown", "--json"])
def test_scores(form: str, model: str) -> None:
    path = _data(f"{NAME}.jsonl", {"problem": NAME, "answer": NAME})
    asked = ["eval", model, "--data", path, "--runs", "1", "--samples", "0", "--device", "cpu", "--out", "o"]
    result = CliRunner().invoke(main, [*asked, *([form] if form else [])])
    assert result.exit_code == 0, result.output
    assert_shown(result.stdout)
    assert_shown(result.stderr)


# -- the report of a run that somebody sent


def _sent(name: str) -> Path:
    sample = {
        "problem": HOSTILE, "reference": HOSTILE, "answer": HOSTILE, "right": False, "latent_length": 3,
        "chain": [[[HOSTILE, 0.7], ["x", 0.3]]],
    }  # fmt: skip
    score = {"event": "held_out", "pass@1": 0.5, "pass@1_se": 0.1, "problems": HOSTILE, "shares": [0, 1]}
    events: list[dict[str, Any]] = [
        {**score, "step": 0, "samples": [sample]},
        {**score, "step": 2, "pass@1": 0.9, "samples": [sample]},
        {"event": "health", "step": HOSTILE, "what": HOSTILE, "helps": HOSTILE, "time": HOSTILE},
        {"event": HOSTILE, "time": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE], "table": {HOSTILE: HOSTILE}},
    ]
    record = {
        "command": HOSTILE, "argv": [HOSTILE] * 3, "started": HOSTILE, "finished": HOSTILE, "device": HOSTILE,
        "git": HOSTILE, "platform": HOSTILE, "versions": {HOSTILE: HOSTILE}, "resumed": [{"started": HOSTILE}],
        "identity": dict.fromkeys(("checkpoint", "base", "data", "data_hash", "seed"), HOSTILE),
        "settings": {HOSTILE: {"value": HOSTILE, "reason": HOSTILE}, "steps": {"value": HOSTILE, "reason": HOSTILE}},
    }  # fmt: skip
    folder = _folder(name, record)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward": 0.5, HOSTILE: HOSTILE}) + "\n")
    (folder / "eval").mkdir()
    summary = {"time": "z", "results": [{**ENTRY, "benchmark": HOSTILE}]}
    (folder / "eval" / "summary-x.json").write_text(json.dumps(summary))
    return folder


def test_a_report() -> None:
    text = write_report(_sent(NAME)).read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "img", "link", "a", "iframe"}.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert "<script" not in text
    assert "alert(1)</script>" in page.text  # it is there, as text
    assert page.text.count("[red]q") > 20
    assert obeyed(text) == []


def test_where_a_report_was_written() -> None:
    result = CliRunner().invoke(main, ["eval", str(_sent(NAME)), "--report"])
    assert result.exit_code == 0, result.output
    assert_shown(result.stdout)
