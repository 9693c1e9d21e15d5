"""`--set NAME=VALUE`: any setting of a plan from the command line, checked before anything begins."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lgrpo.errors import UserError
from lgrpo.ranges import range_of

_ELSEWHERE = {  # settings that have an option of their own, or come with the checkpoint
    "recipe", "seed", "steps", "lr", "walk_lr", "explicit", "surrogate", "one_sided", "mask_invalid", "first_token",
}  # fmt: skip
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


def read_overrides(pairs: Sequence[str], settings: type, without: Sequence[str] = ()) -> dict[str, Any]:
    """Values by name, of the types that the dataclass `settings` declares. Raises UserError with the remedy.

    `without` are names that this command cannot change.
    """
    types = {field.name: field.type for field in fields(settings) if field.name not in {*_ELSEWHERE, *without}}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = (part.strip() for part in pair.partition("="))
        if name not in types:
            raise UserError(f"--set {pair}: there is no such setting; there are {', '.join(sorted(types))}")
        values[name] = _value(name, text, types[name])
    return values


def joined(before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """Pairs given earlier and those given now, each name once: the last word counts."""
    return tuple({pair.partition("=")[0].strip(): pair for pair in (*before, *now)}.values())


def _value(name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in _WORDS:
            raise UserError(f"--set {name}={text}: yes or no is needed")
        return _WORDS[text.lower()]
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"--set {name}={text}: {'a whole' if kind is int else 'a'} number is needed") from None
    if not (numbers := range_of(name, kind is int)).holds(value):
        raise UserError(f"--set {name}={text}: it must be {numbers}")
    return value
