"""What a line of a conversation that begins with / does to it. Knows neither terminal nor screen."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from lgrpo.asking.ask import Asker, Wish
from lgrpo.asking.present import Looks
from lgrpo.errors import UserError
from lgrpo.ranges import ANSWERS, NOISE, TEMPERATURE, Range

Obeyed = tuple["Talk", str]


@dataclass(frozen=True)
class Talk:
    """A conversation: who is asked, for what, and how it is shown."""

    asker: Asker
    wish: Wish
    looks: Looks
    over: bool = False


class Command(NamedTuple):
    argument: str  # what may follow, for people
    meaning: str
    run: Callable[[Talk, str], Obeyed]
    value: Callable[[Talk], str] = lambda talk: ""  # as it is now


def obey(line: str, talk: Talk, load: Callable[[str | None], Asker]) -> Obeyed:
    """The conversation after a command, and what to say about it. Raises UserError, and nothing has changed."""
    name, _, argument = line.strip().removeprefix("/").partition(" ")
    if name == "model" and argument.strip():
        asker = load(argument.strip())
        return replace(talk, asker=asker), f"asking {described(asker)}"
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3)
        near += [other for other in COMMANDS if name and other.startswith(name) and other not in near]
        maybe = f"; did you mean {' or '.join('/' + other for other in near)}?" if near else "; /help shows them all"
        raise UserError(f"there is no /{name}{maybe}")
    return COMMANDS[name].run(talk, argument.strip())


def described(asker: Asker) -> str:
    """The model in a few words."""
    kind = "latent" if asker.policy.latent else "explicit"
    return f"{asker.name}, {kind}, {asker.policy.parameters / 1e6:,.1f} M parameters"


def helped(talk: Talk) -> list[tuple[str, str, str]]:
    """(command, value now, meaning) of every command."""
    return [
        (f"/{name} {command.argument}".rstrip(), command.value(talk), command.meaning)
        for name, command in COMMANDS.items()
    ]


def _explore(talk: Talk, argument: str) -> Obeyed:
    if argument in ("", "on", "off"):
        wanted: float | bool = not talk.wish.explore if argument == "" else argument == "on"
    else:
        wanted = _number(argument, NOISE, "/explore needs on, off, or the scale of the noise")
    return _wish(talk, explore=wanted)


def _samples(talk: Talk, argument: str) -> Obeyed:
    wanted = _whole(argument, f"/samples needs how many, {ANSWERS}", ANSWERS)
    return _wish(talk, samples=wanted)


def _temperature(talk: Talk, argument: str) -> Obeyed:
    if argument == "":
        return _wish(talk, temperature=None)
    return _wish(talk, temperature=_number(argument, TEMPERATURE, "/temperature needs a number"))


def _seed(talk: Talk, argument: str) -> Obeyed:
    return _wish(talk, seed=_whole(argument, "/seed needs a whole number, 0 or more", Range(0, 2**32 - 1)))


def _all(talk: Talk, argument: str) -> Obeyed:
    talk = replace(talk, looks=replace(talk.looks, every=_switched(talk.looks.every, argument, "/all")))
    return talk, f"words of a step: {_all_now(talk)}"


def _chain(talk: Talk, argument: str) -> Obeyed:
    talk = replace(talk, looks=replace(talk.looks, chain=_switched(talk.looks.chain, argument, "/chain")))
    return talk, f"chain: {_chain_now(talk)}"


def _model(talk: Talk, argument: str) -> Obeyed:
    return talk, described(talk.asker)


def _help(talk: Talk, argument: str) -> Obeyed:
    return talk, ""  # a table, which is the screen's


def _quit(talk: Talk, argument: str) -> Obeyed:
    return replace(talk, over=True), ""


def _wish(talk: Talk, **changes: float | None) -> Obeyed:
    talk = replace(talk, wish=replace(talk.wish, **changes))  # type: ignore[arg-type]
    return talk, ", ".join(f"{name}: {COMMANDS[name].value(talk)}" for name in changes)


def _switched(now: bool, argument: str, name: str) -> bool:
    if argument not in ("", "on", "off"):
        raise UserError(f"{name} takes on or off, or nothing to turn it round")
    return not now if argument == "" else argument == "on"


def _number(text: str, numbers: Range, needed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not numbers.holds(value):
        raise UserError(f"{needed}, {numbers}")
    return value


def _whole(text: str, needed: str, numbers: Range) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and numbers.holds(int(text))):
        raise UserError(needed)
    return int(text)


def _explore_now(talk: Talk) -> str:
    return f"noise {talk.asker.noise_scale(talk.wish):g}" if talk.wish.explore else "off"


def _all_now(talk: Talk) -> str:
    return f"all {talk.asker.settings.k}" if talk.looks.every else "the top ones"


def _chain_now(talk: Talk) -> str:
    return "shown" if talk.looks.chain else "hidden"


COMMANDS: dict[str, Command] = {
    "help": Command("", "this table", _help),
    "samples": Command("N", "answers to a problem; the vote follows them", _samples, lambda t: str(t.wish.samples)),
    "explore": Command("on|off|SCALE", "noise on the latent chain, as in training", _explore, _explore_now),
    "temperature": Command(
        "X", "of the answer's tokens; alone: as trained", _temperature, lambda t: f"{t.asker.temperature(t.wish):g}"
    ),
    "seed": Command("N", "the same seed gives the same answer again", _seed, lambda t: str(t.wish.seed)),
    "chain": Command("on|off", "the latent chain on the screen", _chain, _chain_now),
    "all": Command("on|off", "all K words of each step, and all chains", _all, _all_now),
    "model": Command("PATH", "ask another model: run, folder or hub name", _model, lambda t: t.asker.name),
    "quit": Command("", "leave; so does Ctrl-D", _quit),
}
