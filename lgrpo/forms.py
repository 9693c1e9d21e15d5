"""Whether a JSON value has the form it was written in: a run's files are read long after, and anybody may edit them."""

from collections.abc import Callable, Mapping
from typing import Any

Form = Callable[[Any], bool]


def number(value: Any) -> bool:
    """A finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) < 1e300


def share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def truth(value: Any) -> bool:
    return isinstance(value, bool)


def text(value: Any) -> bool:
    return isinstance(value, str)


def list_of(form: Form, length: int | None = None) -> Form:
    """A list whose values all have the form; of a length, where one is given."""
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(form, value))


def object_of(form: Form) -> Form:
    """An object whose values all have the form."""
    return lambda value: isinstance(value, dict) and all(map(form, value.values()))


def object_with(needed: Mapping[str, Form]) -> Form:
    """An object that has these entries, each in its form; others are not looked at."""
    return lambda value: isinstance(value, dict) and all(name in value and needed[name](value[name]) for name in needed)


def anything(value: Any) -> bool:
    return True


def kept(entry: Mapping[str, Any], forms: Mapping[str, Form]) -> dict[str, Any]:
    """The entry without null, and without what is not in its form; names that no form is given for stay."""
    return {name: value for name, value in entry.items() if value is not None and forms.get(name, anything)(value)}


# A score, as `train` writes it into events.jsonl and `eval` into its summary.
SCORE = object_with({"pass@1": share, "pass@1_se": number, "latent_length": number, "explicit_length": number})
BESIDE_SCORE: Mapping[str, Form] = {
    "problems": count,
    "runs": count,
    "length": number,
    "invalid": share,
    "unchecked": count,
    "pass@1_interval": list_of(share, 2),
    "shares": list_of(share),
}
