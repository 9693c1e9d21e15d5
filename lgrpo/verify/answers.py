r"""What an answer says: the box it stands in, and the number, choice or text it holds.

Plain readings only, each a few microseconds; whatever they cannot settle is left to computer algebra (`verifier.py`).
What counts as the same number is decided here:

- `1,234`, `1234`, `1234.0`, `$1,234`, `1{,}234` and `1\,234` are one number; so are `0.50`, `.5`, `1/2` and `\frac12`.
- Whole numbers and fractions compare exactly. Where either side is written with a decimal point or an exponent, they
  may differ by one part in a million of the reference.
- `%` is dropped; where only one side has it, `50%` is also 0.5.
- A unit behind the number is dropped (`5 cm`, `5\text{ apples}`, `90^\circ`), but not a word that changes the number
  (`5 million`, `5 or more`) and not a single letter, which may be a variable (`5 x`).
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

_BOX = re.compile(r"\\(boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_LONGEST_NUMBER = 400  # characters; beyond it Python's own limits on digits come near

_UNIT_WORDS = r"[A-Za-z]{2,}(?:[ -][A-Za-z]{2,})*\.?"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?[$€£¥]? ?(?P<minus>-?)"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?P<point>\.[0-9]*)?(?P<exponent>[eE][-+]?[0-9]{1,3})?"
    r"(?: ?/ ?(?P<under>[0-9]+))?"
    r"(?P<percent> ?\\?%| percent)?"
    rf"(?: ?\\(?:text|textrm|mathrm|mbox)\{{ ?(?P<latex_unit>{_UNIT_WORDS}) ?\}}| (?P<unit>{_UNIT_WORDS}))?"
    r"(?: ?\^ ?(?:\{? ?\\circ ?\}?|\{?(?P<power>[23])\}?)| ?°)?"
    r"\.?"
)
_FRACTION = re.compile(
    r"([-+]?) ?\\frac ?(?:\{ ?(-?[0-9]+) ?\}|([0-9])) ?(?:\{ ?([0-9]+) ?\}|([0-9]))"  # \frac{10}{3}, \frac12
)
_CHANGES_THE_NUMBER = re.compile(
    r"\b(?:hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half|halves|thirds?|quarters?|percent|or|and|to|"
    r"plus|minus|times|over|squared|cubed|factorial|pi|root|less|fewer|more|base|mod)\b",
    re.IGNORECASE,
)
_SPACING = re.compile(r"\\[,;: ]|\\q?quad\b|~")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\{([^{}\\]*)\}")
_GROUPED = re.compile(r"(?<!\\)\{([0-9]{1,3}(?:,[0-9]{3})+)\}")  # {1,234}, which is not the set \{1,234\}
_LOOSE_SPACE = re.compile(r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z])\s+")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ -][^\W\d_]+)*")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}`, or None where there is none.

    "Last" is by where a box opens, so the inner one of two nested boxes counts. Braces must balance; `\{` and `\}` are
    signs on the page and count for nothing, as in TeX. One pass over the text, however it is nested.
    """
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return None
    opened: list[int] = []  # where the content of each open brace begins; negative for a brace that is no box
    begin = end = -1
    for match in _BOX.finditer(text, first):
        token = match[0]
        if match[1]:
            opened.append(match.end())
        elif token == "{":
            opened.append(-1)
        elif token == "}" and opened:
            start = opened.pop()
            if start > begin:
                begin, end = start, match.start()
    return text[begin:end] if begin >= 0 else None


@lru_cache(maxsize=8192)
def tidy(text: str) -> str:
    r"""The same answer without what only concerns its looks: `$`, spacing macros, `\left`, `\dfrac`, final commas."""
    text = text.strip()
    for opening, closing in _DELIMITERS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            text = inner if opening not in inner else text
    if not text.isascii():
        text = "".join(str(int(sign)) if sign.isdecimal() else sign for sign in text).replace("\u2212", "-")
    if "\\" in text or "{" in text or "$" in text:
        text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("{,}", ",").replace("\\!", "")
        text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text)
        text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", text)
        text = _GROUPED.sub(lambda match: "{" + match[1].replace(",", "") + "}", text)
        text = _SPACING.sub(" ", text).replace("\\approx", " ").replace("\\$", "").replace("$", " ")
    return " ".join(text.split()).rstrip(".,; ")


class Number(NamedTuple):
    value: Fraction
    exact: bool  # written without a decimal point and without an exponent
    percent: bool


@lru_cache(maxsize=8192)
def number(text: str) -> Number | None:
    """The number a tidy text is, or None where it is anything else (an expression, a list, words)."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if match := _FRACTION.fullmatch(text):
        sign, over, below = match[1], int(match[2] or match[3]), int(match[4] or match[5])
        return Number(Fraction(-over if sign == "-" else over, below), True, False) if below else None
    if not (match := _NUMBER.fullmatch(text)):
        return None
    whole, point, exponent, under = match["whole"], match["point"], match["exponent"], match["under"]
    if whole is None and (point is None or len(point) == 1):
        return None
    if under is not None and (point or exponent or int(under) == 0):
        return None
    unit = match["latex_unit"] or match["unit"]
    if unit and _CHANGES_THE_NUMBER.search(unit):
        return None
    if match["power"] and not unit:
        return None  # 5^2 is a power, 5 cm^2 is a unit
    value = Fraction((whole or "0").replace(",", "") + (point or "").rstrip(".") + (exponent or ""))
    if under is not None:
        value /= int(under)
    if (match["sign"] == "-") != (match["minus"] == "-"):
        value = -value
    return Number(value, not (point or exponent), bool(match["percent"]))


def same_number(answer: Number, reference: Number) -> bool:
    """Whether two numbers are the same under the rules at the top of this file."""
    values = [(answer.value, reference.value)]
    if answer.percent and not reference.percent:
        values.append((answer.value / 100, reference.value))
    if reference.percent and not answer.percent:
        values.append((answer.value, reference.value / 100))
    if answer.exact and reference.exact:
        return any(left == right for left, right in values)
    return any(abs(left - right) <= abs(right) / 1_000_000 for left, right in values)


@lru_cache(maxsize=8192)
def plain(text: str) -> str:
    r"""A tidy text for comparing letter by letter: `\text{...}` opened, loose spaces gone, words in lower case."""
    text = _LOOSE_SPACE.sub("", _TEXT.sub(r"\1", text)).strip().rstrip(".")
    return text.casefold() if _WORDS.fullmatch(text) else text


@lru_cache(maxsize=8192)
def choice(text: str) -> str | None:
    r"""The letter A to E that a tidy text is, as of a multiple choice: `C`, `(C)`, `C.`, `\text{(C)}`; else None."""
    match = re.fullmatch(r"\(?([A-Ea-e])\)?[.:]?", _TEXT.sub(r"\1", text).strip())
    return match[1].upper() if match else None


def has_control_characters(text: str) -> bool:
    return _CONTROL.search(text) is not None


def settle(answer: str, reference: str) -> bool | None:
    """Whether a tidy answer equals a tidy reference, or None where plain reading cannot tell."""
    if answer == reference or not answer:
        return bool(answer)
    if has_control_characters(answer):
        return False
    if (letter := choice(reference)) and reference != reference.lower():  # a lower-case letter is a variable
        return choice(answer) == letter
    expected = number(reference)
    if expected is not None:
        if (given := number(answer)) is not None:
            return same_number(given, expected)
        if "\\" not in answer and not any(sign.isdigit() for sign in answer):
            return False
    return True if plain(answer) == plain(reference) else None
