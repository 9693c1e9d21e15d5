r"""What an answer says: the box it stands in, and the number, choice or text it holds.

Plain readings only, each a few microseconds; whatever they cannot settle is left to computer algebra (`verifier.py`).
What counts as the same number is decided here:

- `1,234`, `1234`, `1234.0`, `$1,234`, `1{,}234` and `1\,234` are one number; so are `0.50`, `.5`, `1/2` and `\frac12`.
- Whole numbers and fractions compare exactly. Where either side is written with a decimal point or an exponent, they
  may differ by a millionth of the reference; by a ten-thousandth where the reference itself is a decimal that is not
  whole, since such references are rounded (`151.43` is `151.42857`, but `0.3333` is not `1/3` and `7.0001` not `7`).
- `%` is dropped; where only one side has it, `50%` is also 0.5.
- A unit behind the number is dropped (`5 cm`, `5\text{ apples}`, `90^\circ`), but not a word that changes the number
  (`5 million`, `5 or more`) and not a single letter, which may be a variable (`5 x`).
- An answer that leaves the last step to the reader is not the number: `36-7`, `2^5`, `\sqrt{16}`, and `36/3` or
  `\frac{36}{3}` for 12. Computer algebra would work it out, and reinforcement would learn to leave it out. Nothing is
  left to do in `x = 12`, `1.2\times 10^3`, `1\frac12`, and a fraction that is not whole, in lowest terms or not.

A multiple choice is the letter: `B`, `(B)`, `\text{B}`, `B) 5 cm`.
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
_ASSIGNED = re.compile(r"[^=,;<>!]{1,60}= ?([^=]+)")  # x = 12, and 36-7 = 29
_NOT_A_STEP = re.compile(  # what looks like an operation and is the number's own writing
    r"\\(?:text|textrm|mathrm|mbox)\{[^{}]*\}(?: ?\^ ?\{?[23]\}?)?"  # units
    r"| ?\^ ?\{? ?\\circ ?\}?"
    r"|(?:(?<=[0-9.]) ?(?:\\times|\\cdot|[*×·]) ?|^[-+]? ?)10 ?\^ ?\{? ?[-+]?[0-9]+ ?\}?$"  # times a power of ten
)
_MIXED = re.compile(
    r"(?<=[0-9])(?: ?\\frac ?(?:\{ ?([0-9]+) ?\}|([0-9])) ?(?:\{ ?([0-9]+) ?\}|([0-9]))| ([0-9]+) ?/ ?([0-9]+))"
)
_STEP = re.compile(
    r"[+*×·÷√]|/ ?[^A-Za-z ]|[0-9)}\].] ?[-^!]|[0-9)}] ?\(|\) ?[0-9]"
    r"|\\(?:times|cdot|div|pm|mp|sqrt|frac|binom|sum|prod|log|ln|exp|sin|cos|tan|lfloor|lceil|max|min|gcd)(?![a-z])"
)
_OPTION = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|answer|choice)(?: is)?:? )?\(?([A-Ja-j])(?:\)[.:]?|[.:])? ?(.*)", re.I
)
_ANOTHER = re.compile(r"(?:or|and)\b|[,/&]|.*(?<![A-Za-z])[A-Ja-j][).:]")  # after an option's letter: a second option
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
    fraction: bool  # written with a numerator and a denominator


@lru_cache(maxsize=8192)
def number(text: str) -> Number | None:
    """The number a tidy text is, or None where it is anything else (an expression, a list, words)."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if match := _FRACTION.fullmatch(text):
        sign, over, below = match[1], int(match[2] or match[3]), int(match[4] or match[5])
        return Number(Fraction(-over if sign == "-" else over, below), True, False, True) if below else None
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
    return Number(value, not (point or exponent), bool(match["percent"]), under is not None)


def same_number(answer: Number, reference: Number) -> bool:
    """Whether two numbers are the same under the rules at the top of this file."""
    if answer.fraction and answer.value.denominator == 1 and not reference.fraction:
        return False  # a division left to do
    values = [(answer.value, reference.value)]
    if answer.percent and not reference.percent:
        values.append((answer.value / 100, reference.value))
    if reference.percent and not answer.percent:
        values.append((answer.value, reference.value / 100))
    if answer.exact and reference.exact:
        return any(left == right for left, right in values)
    rounded = not reference.exact and reference.value.denominator != 1
    return any(abs(left - right) <= abs(right) / (10_000 if rounded else 1_000_000) for left, right in values)


@lru_cache(maxsize=8192)
def unfinished(text: str) -> bool:
    """Whether a tidy text, where a number is asked for, holds an operation that is left to do."""
    text = _MIXED.sub(_without_proper_fraction, _NOT_A_STEP.sub("", text.rpartition("=")[2].strip()))
    return _STEP.search(text.strip("+- ")) is not None


def _without_proper_fraction(match: re.Match[str]) -> str:
    """Nothing for the fraction of a mixed number; one of 1 or more is a sum that is left to do."""
    over, under = (int(part) for part in match.groups() if part is not None)
    return "" if over < under else match[0]


@lru_cache(maxsize=8192)
def plain(text: str) -> str:
    r"""A tidy text for comparing letter by letter: `\text{...}` opened, loose spaces gone, words in lower case."""
    text = _LOOSE_SPACE.sub("", _TEXT.sub(r"\1", text)).strip().rstrip(".")
    return text.casefold() if _WORDS.fullmatch(text) else text


@lru_cache(maxsize=8192)
def choice(text: str) -> str | None:
    r"""The letter A to J that a tidy text is, as of a multiple choice: `C`, `(C)`, `C.`, `\text{(C)}`; else None."""
    match = re.fullmatch(r"\(?([A-Ja-j])\)?[.:]?", _TEXT.sub(r"\1", text).strip())
    return match[1].upper() if match else None


@lru_cache(maxsize=8192)
def chosen(text: str) -> str | None:
    """The letter of the one option a tidy answer names: `C`, `(C)`, `C) 5 cm`, `(C) 5 cm`, `Option C`; else None."""
    if letter := choice(text):
        return letter
    match = _OPTION.fullmatch(_TEXT.sub(r"\1", text).strip())
    if not match or (match[2] and match.string[match.end(1)] not in ").:") or _ANOTHER.match(match[2]):
        return None
    return match[1].upper()


def has_control_characters(text: str) -> bool:
    return _CONTROL.search(text) is not None


def settle(answer: str, reference: str) -> bool | None:
    """Whether a tidy answer equals a tidy reference, or None where plain reading cannot tell."""
    if answer == reference or not answer:
        return bool(answer)
    if has_control_characters(answer):
        return False
    if (letter := choice(reference)) and reference != reference.lower():  # a lower-case letter is a variable
        return chosen(answer) == letter
    expected = number(reference)
    if expected is not None:
        given = number(answer)
        if given is None and (assigned := _ASSIGNED.fullmatch(answer)):
            given = number(assigned[1])
        if given is not None:
            return same_number(given, expected)
        if unfinished(answer):
            return False
        if "\\" not in answer and not any(sign.isdigit() for sign in answer):
            return False
    return True if plain(answer) == plain(reference) else None
