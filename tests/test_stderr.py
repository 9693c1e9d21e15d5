"""A show that nobody watches any more: work, answer and exit code are what they are with one who does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import latent, policy  # noqa: F401 - fixtures

ENDS = {"mistake": 2, "stop": 130}
SMALL = {"batch": 2, "update_batch": 2, "group": 2, "draws": 1, "max_response": 8, "held_out": 2, "limit": 40}
SPEAK = """
import sys, warnings
import click
from lgrpo.people import People
from lgrpo.screen import Show
from lgrpo.screen.terminal import note

@click.group(cls=People)
def main(): pass

def speak():
    for time in range(2):
        warnings.warn(f"once {time}")
        note("a note")
        click.echo("an error", err=True)
        for live in (False, True):
            with Show(live=live) as show:
                show.stage("train", 2)
                show.step(1, {"reward": 1.0})
                show.warn("careful")
    with open("done", "w") as file:
        file.write("all of it")
    print("the answer")

@main.command()
def mistake():
    speak()
    raise click.UsageError("no such thing")

@main.command()
def stop():
    speak()
    raise KeyboardInterrupt

main(prog_name="lgrpo")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def heard() -> Iterator[tuple[int, int]]:
    """(read end, write end) of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def spoken(how: str, stderr: int | None) -> tuple[int, bytes]:
    """(exit code, stdout) of a command that says all there is to say, and how it ends; stderr: None is closed."""
    shell = ["sh", "-c", '"$@" 2>&-', "sh"] if stderr is None else []
    command = [*shell, sys.executable, "-c", SPEAK, how]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("how", "code"), ENDS.items())
def test_what_stderr_does_not_take_changes_neither_the_work_nor_the_answer_nor_the_code(
    how: str, code: int, heard: tuple[int, int]
) -> None:
    os.close(heard[0])
    with open("/dev/full", "wb") as full:
        for stderr in (full.fileno(), heard[1], None):
            assert spoken(how, stderr) == (code, b"the answer\n"), stderr
            assert Path("done").read_text() == "all of it"
            Path("done").unlink()


def test_stderr_is_told_everything_as_long_as_it_takes_it() -> None:
    with open("log", "wb") as log:
        assert spoken("mistake", log.fileno()) == (2, b"the answer\n")
    told = Path("log").read_text()
    assert [told.count(words) for words in ("once 1", "a note\n", "an error\n", "careful")] == [1, 2, 2, 4]
    assert told.endswith("Error: no such thing (see `lgrpo mistake --help`)\n")


def train(model: str, stderr: int, **more: object) -> "subprocess.Popen[bytes]":
    settings = [f"--set={name}={value}" for name, value in {**SMALL, "eval_every": 900}.items()]
    command = [sys.executable, "-m", "lgrpo", "train", model, "--out", "run", "--device", "cpu", "--steps", "900"]
    return subprocess.Popen([*command, *settings], stdout=stderr, stderr=stderr, **more)  # type: ignore[call-overload]


def read_until(stream: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        part = os.read(stream, 4096)
        assert part, seen.decode()
        seen += part


def steps_saved() -> tuple[int, int]:
    """(steps done, steps in the latest checkpoint)."""
    done = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return done[-1], max(int(path.name.partition("-")[2]) for path in Path("run/checkpoints").iterdir())


def test_ctrl_c_saves_where_tee_dies_of_it_first(latent: str, heard: tuple[int, int]) -> None:  # noqa: F811
    process = train(latent, heard[1])
    os.close(heard[1])
    read_until(heard[0], b"train 2/900")
    os.close(heard[0])
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130
    done, saved = steps_saved()
    assert done == saved >= 2
