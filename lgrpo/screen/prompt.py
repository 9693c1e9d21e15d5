"""The line where a person types: history, several lines, completion. Everything through prompt_toolkit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

KEYS = "Enter asks   Alt+Enter new line   / commands   Ctrl-D leaves"
_STYLE = Style.from_dict({  # the terminal's own colours, so that it reads on dark and light ground
    "prompt": "ansimagenta bold",
    "bottom-toolbar": "noreverse dim",
    "completion-menu": "bg:default fg:default",
    "completion-menu.completion": "bg:default fg:default",
    "completion-menu.completion.current": "bg:default fg:default reverse",
    "completion-menu.meta.completion": "bg:default fg:default",
    "completion-menu.meta.completion.current": "bg:default fg:default reverse",
    "scrollbar.background": "bg:default",
    "scrollbar.button": "bg:default reverse",
})  # fmt: skip


class Prompt:
    """Asks for one text after the other, on the terminal even where stdout goes elsewhere."""

    def __init__(
        self,
        commands: Mapping[str, str],
        toolbar: Callable[[], str],
        history: Path | None = None,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        """commands: what to complete after /, and what each means; toolbar: what is true now; history: its file."""
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", "> ")],
            multiline=True,
            prompt_continuation=lambda width, number, wrapped: " " * width,
            bottom_toolbar=lambda: f" {KEYS}   {toolbar()}",
            completer=_Commands(commands),
            complete_while_typing=Condition(lambda: self._session.default_buffer.text.startswith("/")),
            complete_style=CompleteStyle.COLUMN,
            reserve_space_for_menu=min(8, len(commands)),
            key_bindings=_keys(),
            history=_history(history),
            style=_STYLE,
            input=input,
            output=output or create_output(stdout=_terminal()),
        )

    def ask(self) -> str | None:
        """What was typed; None where the person leaves."""
        try:
            return self._session.prompt()
        except EOFError:
            return None


class _Commands(Completer):
    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        for name, meaning in self._commands.items() if typed.startswith("/") else ():
            if name.startswith(typed):
                yield Completion(name, -len(typed), display_meta=meaning)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _ask(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add(Keys.Vt100MouseEvent)  # nobody asked for the mouse: this is the colour of a text that was pasted
    def _pass_over(event: KeyPressEvent) -> None: ...

    @keys.add("c-c")
    def _clear_or_leave(event: KeyPressEvent) -> None:
        buffer: Buffer = event.current_buffer
        if buffer.text:
            buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return keys


class _Kept(FileHistory):
    """Problems asked before, in a file; a disk that is full costs the history and not the conversation."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _history(path: Path | None) -> History:
    """In the file, which only its owner may read; for this time only where there can be none."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return _Kept(str(path))


def history_file() -> Path | None:
    """Where the user's state belongs (XDG_STATE_HOME); None where there is no home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    try:
        root = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return root / "lgrpo" / "history"


def _terminal() -> TextIO:
    """stderr where it is a terminal, else stdout, else the terminal itself."""
    for stream in (sys.stderr, sys.stdout):
        if stream.isatty():
            return stream
    return open("/dev/tty", "w", encoding="utf-8")  # for as long as the program runs
