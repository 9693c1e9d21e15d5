"""What the command line says before any command is at work, each in a process of its own: help, version, mistakes."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from lgrpo import __version__
from lgrpo.people import NO_MEMORY, People

TOLD = ["--help", "-h", "--version", "init --help", "train -h", "sample --help", "eval --help"]
FULL = "the answer cannot be written to stdout (No space left on device); send it elsewhere, and ask again"
CLOSED = "there is no stdout to write the answer to; leave it open, or send it to a file"


def shell(arguments: list[str], redirected: str = "") -> "subprocess.CompletedProcess[str]":
    command = ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-m", "lgrpo", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("words", TOLD)
def test_help_and_version_that_stdout_does_not_take_are_one_line(words: str) -> None:
    arguments = words.split()
    told = shell(arguments)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"lgrpo, version {__version__}\n" if words == "--version" else "Usage: lgrpo ")
    closed = shell(arguments, ">&-")
    assert (closed.returncode, closed.stderr) == (2, f"Error: {CLOSED}\n")
    if Path("/dev/full").exists():
        full = shell(arguments, "> /dev/full")
        assert (full.returncode, full.stderr) == (2, f"Error: {FULL}\n")


def test_help_that_nobody_reads_any_more_ends_quietly() -> None:
    left = shell(["--help"], "| true")
    assert (left.stdout, left.stderr) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "redirected", "why"),
    [
        (["--file", "-"], "<&-", "there is no stdin to read from"),
        ([], "0> written", "stdin cannot be read (Bad file descriptor)"),
    ],
)
def test_problems_that_stdin_cannot_give_are_one_line(
    arguments: list[str], redirected: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = shell(["sample", *arguments, "--model", "tiny", "--device", "cpu"], redirected)
    assert (asked.returncode, asked.stdout) == (2, "")
    instead = "pipe the problems in, or give one in quotes or a --file"
    assert asked.stderr.splitlines()[-1] == f"Error: {why}; {instead}"
    assert "Traceback" not in asked.stderr


def test_a_mistake_before_any_command_is_one_line() -> None:
    """Whatever it quotes, and without a stdout, which it does not need."""
    for redirected in ("", ">&-"):
        wrong = shell(["--\x1b[2Jhelp"], redirected)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith("Error: No such option ")
        assert wrong.stderr.endswith(" (see `lgrpo --help`)\n")
        assert wrong.stderr.count("\n") == 1
        assert "\x1b" not in wrong.stderr


def taking(how: str) -> None:
    if how == "python":
        bytearray(1 << 60)
    elif how == "cpu":
        torch.empty(1 << 60, dtype=torch.uint8)
    elif how == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("how", ["python", "cpu", "gpu"])
def test_memory_that_runs_out_where_nothing_smaller_is_left_is_one_line(how: str) -> None:
    people = People("lgrpo", commands={"take": click.Command("take", callback=lambda: taking(how))})
    ended = CliRunner().invoke(people, ["take"])
    assert (ended.exit_code, ended.stdout, ended.stderr) == (2, "", f"Error: {NO_MEMORY}\n")


def test_a_mistake_of_ours_is_not_called_memory() -> None:
    people = People("lgrpo", commands={"take": click.Command("take", callback=lambda: taking("wrong"))})
    with pytest.raises(RuntimeError, match="shapes"):
        CliRunner().invoke(people, ["take"], catch_exceptions=False)


def test_lgrpo_alone_shows_its_help() -> None:
    alone = shell([])
    assert alone.stderr.startswith("Usage: lgrpo [OPTIONS] COMMAND [ARGS]...\n")
    assert alone.stderr.count("\n") > 10
