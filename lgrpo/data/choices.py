"""Multiple choice: the options of a row, lettered behind the problem, so that the answer is a letter.

Understood are GPQA's columns (`correct answer`, `incorrect answer 1`, ...), and a list called `choices` or `options`
beside an answer that is a letter (`B`, `(B)`, `B) 4`), the place of an option counted from 0 (MMLU), or an option's
text. Instead of a list it may be `{"text": [...], "label": [...]}` (ARC, OpenBookQA, CommonsenseQA); the answer is then
a label first of all, a letter or a digit.
"""

import hashlib
import re
from collections.abc import Mapping
from numbers import Number
from typing import Any

from lgrpo.errors import UserError
from lgrpo.text import whole_characters
from lgrpo.verify.answers import chosen, tidy

CORRECT, INCORRECT = "correct answer", "incorrect answer"
LISTS = ("choices", "options")
COLUMNS = (CORRECT, *(f"{INCORRECT} {number}" for number in range(1, 10)), *LISTS)
LETTERS = "ABCDEFGHIJ"  # as the verifier knows them


def lettered(fields: Mapping[str, Any], problem: str, answer: Any) -> tuple[str, str] | None:
    """(problem with its options, letter of the right one) of a row's fields in lower case; None without options.

    Raises UserError, without saying where, where options are there and cannot be used.
    """
    if fields.get(CORRECT) is not None:
        wrong = [_option(value, name) for name, value in fields.items() if name.startswith(INCORRECT) and value]
        right = _option(fields[CORRECT], CORRECT)
        # By a hash of problem and option: the same for everybody, in whatever order columns are.
        options = sorted([right, *wrong], key=lambda option: _hash(f"{problem}\n{option}"))
        place, name = options.index(right), CORRECT
    else:
        name = next((name for name in LISTS if _texts_and_labels(fields.get(name))[0]), "")
        if not name:
            return None
        texts, labels = _texts_and_labels(fields[name])
        options = [_option(text, name) for text in texts]
        if labels and len(labels) != len(options):
            raise UserError(f"`{name}`: {len(options)} texts and {len(labels)} labels; each option needs its own")
        place = _place(answer, options, labels, name)
        own = [re.match(rf"\(?{letter}[).:] ?", option) for letter, option in zip(LETTERS, options, strict=False)]
        if all(own):  # lettered already
            options = [option[match.end() :] for match, option in zip(own, options, strict=True) if match]
    if not 1 < len(options) <= len(LETTERS):
        raise UserError(f"`{name}`: {len(options)} options; a choice needs 2 to {len(LETTERS)}")
    return _with_options(problem, options), LETTERS[place]


def _texts_and_labels(value: Any) -> tuple[list[Any], list[str]]:
    """The options' texts and their labels in upper case; empty where there are none."""
    if isinstance(value, list) and all(
        isinstance(option, Mapping) and {"text", "label"} <= {*option} for option in value
    ):
        value = {part: [option[part] for option in value] for part in ("text", "label")}
    texts, labels = (value.get("text"), value.get("label")) if isinstance(value, Mapping) else (value, None)
    return (
        texts if isinstance(texts, list) else [],
        [str(label).strip().upper() for label in labels] if isinstance(labels, list) else [],
    )


def _option(value: Any, name: str) -> str:
    if not isinstance(value, (str, Number)):
        raise UserError(f"`{name}` holds {type(value).__name__} where an option's text is needed")
    return whole_characters(str(value)).strip()


def _place(answer: Any, options: list[str], labels: list[str], name: str) -> int:
    text = whole_characters(str(answer)).strip()
    letter = chosen(tidy(text))  # of `(B)` and `B) 4`, too
    for label in (text.upper(), letter):
        if label in labels:
            return labels.index(label)
    from_zero = not any(label.isdecimal() for label in labels)
    if isinstance(answer, int) and not isinstance(answer, bool) and from_zero and 0 <= answer < len(options):
        return answer
    if text in options:
        return options.index(text)
    if letter and not labels and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    if text.isascii() and text.isdecimal() and from_zero and int(text) < len(options):
        return int(text)
    raise UserError(f"the answer is no letter, place or text of one of the {len(options)} `{name}`")


def _with_options(problem: str, options: list[str]) -> str:
    lines = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    letters = f"{', '.join(LETTERS[: len(options) - 1])} or {LETTERS[len(options) - 1]}"
    return f"{problem}\n{lines}\nAnswer with the letter of the right option: {letters}."


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
