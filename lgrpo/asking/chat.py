"""A conversation: one problem after the other, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lgrpo.asking.ask import Answer, Asker, Wish, question
from lgrpo.asking.present import Looks, present
from lgrpo.asking.slash import COMMANDS, Talk, described, helped, obey
from lgrpo.errors import UserError
from lgrpo.screen.prompt import Prompt, history_file
from lgrpo.screen.terminal import console_on, note, table
from lgrpo.text import clean


def talk(load: Callable[[str | None], Asker], wish: Wish, looks: Looks, prompt: Prompt | None = None) -> None:
    """Ask for problems and answer them until the person leaves. Ctrl-C stops an answer, not the conversation.

    `load` gives the model of a name; None is the one to begin with.
    """
    now = Talk(load(None), wish, looks)
    meanings = {f"/{name}": command.meaning for name, command in COMMANDS.items()}
    prompt = prompt or Prompt(meanings, lambda: toolbar(now), history_file())
    note(f"{described(now.asker)}; /help shows what can be set, and the same seed gives the same answer again")
    while not now.over and (text := prompt.ask()) is not None:
        if not text.strip():
            continue
        try:
            if text.startswith("/"):
                now = _obey(text, now, load)
            else:
                answers = present(now.asker, question(text), now.wish, now.looks)
                note(tally(answers))
        except UserError as error:
            note(str(error))
        except KeyboardInterrupt:
            note("stopped")


def _obey(text: str, now: Talk, load: Callable[[str | None], Asker]) -> Talk:
    then, reply = obey(text, now, load)
    if text.split()[0] == "/help":
        table(console_on(sys.stderr), ["command", "now", "meaning"], helped(then))
        note("a problem that begins with / needs a space before it")
    elif reply:
        note(reply)
    return then


def toolbar(now: Talk) -> str:
    """What will be asked, in a few words."""
    words = [clean(now.asker.name)]
    if now.wish.samples > 1:
        words.append(f"{now.wish.samples} samples")
    if now.wish.explore:
        words.append(f"noise {now.asker.noise_scale(now.wish):g}")
    return "   ".join(words)


def tally(answers: Sequence[Answer]) -> str:
    """Lengths and speed: `9 latent + 5 explicit, 412 tokens/s, first answer token after 0.04 s`."""
    latent = sum(answer.rollout.latent_length for answer in answers)
    explicit = sum(answer.rollout.explicit_length for answer in answers)
    took = max(answer.seconds or 0.0 for answer in answers)
    first = min((answer.first for answer in answers if answer.first is not None), default=None)
    parts = [f"{latent} latent + {explicit} explicit", f"{(latent + explicit) / took:.0f} tokens/s"]
    if first is not None:
        parts.append(f"first answer token after {first:.2f} s")
    return ", ".join(parts)
