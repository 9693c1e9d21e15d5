r"""What an answer says: the box it stands in, and the number, choice or text it holds.

Plain readings only, each a few microseconds; whatever they cannot settle is left to computer algebra (`verifier.py`).
What counts as the same number is decided here:

- `1,234`, `1234`, `1234.0`, `$1,234`, `1{,}234` and `1\,234` are one number; so are `0.50`, `.5`, `1/2` and `\frac12`,
  `3.25`, `3 1/4` and `3\frac{1}{4}`.
- Whole numbers and fractions compare exactly. Where either side is written with a decimal point or an exponent, they
  may differ by a millionth of the reference; by a ten-thousandth where the reference itself is a decimal that is not
  whole, since such references are rounded (`151.43` is `151.42857`, but `0.3333` is not `1/3` and `7.0001` not `7`).
- `%` is dropped; where only one side has it, `50%` is also 0.5.
- A unit behind the number is dropped (`5 cm`, `30 km/h`, `\frac12\text{ apples}`, `90^\circ`), but not a word that
  changes the number (`5\text{ or more}`), nor a base (`101_2`), nor a single letter, which may be a variable (`5 x`).
  `5 million` is 5000000, whether dollars or people.
- An answer that leaves the last step to the reader is not the number: `36-7`, `2^5`, `\sqrt{16}`, `2x = 24`, and
  `36/3` or `\frac{36}{3}` for 12. Computer algebra would work it out, and reinforcement would learn to leave it out.
  Nothing is left to do in `x = 12`, `m+n = 12`, `1.2\times 10^3`, `1\frac12`, and a fraction that is not whole, in
  lowest terms or not. What the reference itself leaves to do (`2^{10}`), the answer may do or leave.

A pair or an interval needs its brackets where the reference has them.

A multiple choice is the letter: `B`, `(B)`, `\text{B}`, `B) 5 cm`.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

_BOX = re.compile(r"\\(boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_LONGEST_NUMBER = 400  # characters; beyond it Python's own limits on digits come near

_GROUP = r"\\(?:text|textrm|mathrm|mbox)\{"
_UNIT_WORDS = r"[A-Za-z]{2,}(?:[ -][A-Za-z]{2,})*(?:/[A-Za-z]+)?\.?"
_TAIL = (  # what may stand behind a number
    rf"(?P<percent> ?\\?%| percent| ?{_GROUP} ?percent ?\}})?"
    rf"(?: ?{_GROUP} ?(?P<latex_unit>[A-Za-z][A-Za-z ./()-]+|[mshgLlNJWVK]) ?\}}| (?P<unit>{_UNIT_WORDS}))?"
    r"(?: ?\^ ?(?:\{? ?\\circ ?\}?|\{?(?P<power>[23])\}?)| ?°)?"
    r"\.?"
)
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?[$€£¥]? ?(?P<minus>-?)"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?P<point>\.[0-9]*)?(?P<exponent>[eE][-+]?[0-9]{1,3})?"
    rf"(?:(?: (?P<over>[0-9]+))? ?/ ?(?P<under>-?[0-9]+))?{_TAIL}"  # 1/2, 12 1/2
)
_FRACTION = re.compile(  # \frac{10}{3}, \frac12, 3\frac{1}{4}
    r"(?P<sign>[-+]?) ?(?:(?P<whole>[0-9]+) ?)?\\frac ?(?:\{ ?(?P<over>-?[0-9]+) ?\}|(?P<digit_over>[0-9])) ?"
    rf"(?:\{{ ?(?P<under>-?[0-9]+) ?\}}|(?P<digit_under>[0-9])){_TAIL}"
)
_WRAPPED = re.compile(rf"\(([^(),]*)\)|\{{((?:[^{{}},]|\{{[^{{}}]*\}})*)\}}|{_GROUP}([^{{}}\\]*)\}}")
_CHANGES_THE_NUMBER = re.compile(
    r"\b(?:hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half|halves|thirds?|quarters?|percent|or|and|to|"
    r"plus|minus|times|over|(?<![a-z] )(?:squared|cubed)|factorial|pi|root|less|fewer|more|base|mod)\b",
    re.IGNORECASE,
)
_SCALE = re.compile(r"(hundred|thousand|million|billion|trillion|dozen)s?\b ?", re.IGNORECASE)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_LISTING = {"or", "and", "to", "percent"}
_ASSIGNED = re.compile(r"([^=,;<>!]{1,60})= ?([^=]+)")  # x = 12, m+n = 12, and 36-7 = 29
_STEPS = r"[-+*/^(){}. 0-9]|\\(?:frac|sqrt|cdot|times)(?![A-Za-z])"
_TO_SOLVE = re.compile(rf"(?=.*[0-9])(?:{_STEPS})*([A-Za-z])(?!(?: ?\^\{{-1\}})? ?\()(?:{_STEPS}|\1)*")  # 2x+3, no f(3)
_IN_WORDS = re.compile(r"\\(?:text|math|mbox)[a-z]*\{([^{}]*)\}")
_BRACKETED_LIST = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")
_BARE_LIST = re.compile(r"[^()\[\]=<>,]*,[^()\[\]=<>]*")
_NOT_A_STEP = re.compile(  # what looks like an operation and is the number's own writing
    rf"{_GROUP}[^{{}}]*\}}(?: ?\^ ?\{{?[23]\}}?)?"  # units
    r"| ?\^ ?\{? ?\\circ ?\}?"
    r"|(?:(?<=[0-9.]) ?(?:\\times|\\cdot|[*×·]) ?|^[-+]? ?)10 ?\^ ?\{? ?[-+]?[0-9]+ ?\}?$"  # times a power of ten
)
_MIXED = re.compile(
    r"(?<=[0-9])(?: ?\\frac ?(?:\{ ?([0-9]+) ?\}|([0-9])) ?(?:\{ ?([0-9]+) ?\}|([0-9]))| ([0-9]+) ?/ ?([0-9]+))"
)
_STEP = re.compile(
    r"[+*×·÷√]|/ ?[^A-Za-z ]|[0-9] ?_ ?(?!\{? ?10\b)|[0-9)}\].] ?[-^!]|[0-9)}] ?\(|\) ?[0-9]"
    r"|\\(?:times|cdot|div|pm|mp|sqrt|frac|binom|sum|prod|log|ln|exp|sin|cos|tan|lfloor|lceil|max|min|gcd)(?![a-z])"
)
_OPTION = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|answer|choice)(?: is)?:? )?\(?([A-Ja-j])(?:\)[.:]?|[.:])? ?(.*)", re.I
)
_ANOTHER = re.compile(r"(?:or|and)\b|[,/&]|.*(?<![A-Za-z])[A-Ja-j][).:]")  # after an option's letter: a second option
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad\b|~")
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
        text = _SPACING.sub(" ", text).replace("\\approx", "=").replace("\\$", "").replace("$", " ")
    return " ".join(text.split()).rstrip(".,; ").removeprefix("=").lstrip()


class Number(NamedTuple):
    value: Fraction
    exact: bool  # written without a decimal point and without an exponent
    percent: bool
    fraction: bool  # written with a numerator and a denominator, and no whole number before them


@lru_cache(maxsize=8192)
def number(text: str) -> Number | None:
    """The number a tidy text is, in brackets or not; None where it is anything else (an expression, a list, words)."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if wrapped := _WRAPPED.fullmatch(text):
        text = (wrapped[1] or wrapped[2] or wrapped[3] or "").strip()
    if match := _FRACTION.fullmatch(text):
        whole, point, exponent, negative = match["whole"], None, None, match["sign"] == "-"
        over, under = match["over"] or match["digit_over"], match["under"] or match["digit_under"]
    elif match := _NUMBER.fullmatch(text):
        whole, point, exponent = match["whole"], match["point"], match["exponent"]
        over, under, negative = match["over"], match["under"], (match["sign"] == "-") != (match["minus"] == "-")
        if whole is None and (point is None or len(point) == 1):
            return None
        if under is not None and over is None:
            whole, over = None, whole
    else:
        return None
    unit, scale = match["latex_unit"] or match["unit"], 1
    while unit and (scaled := _SCALE.match(unit)):
        unit, scale = unit[scaled.end() :], scale * _SCALES[scaled[1].lower()]
    if unit and _CHANGES_THE_NUMBER.search(unit.removesuffix("times")):
        return None
    if match["power"] and not unit:
        return None  # 5^2 is a power, 5 cm^2 is a unit
    value = Fraction((whole or "0").replace(",", "") + (point or "").rstrip(".") + (exponent or ""))
    if under is not None:
        if over is None or point or exponent or int(under) == 0:
            return None
        part = Fraction(int(over.replace(",", "")), int(under))
        if whole is not None and ("-" in over + under or part >= 1):
            return None  # no mixed number but a sum that is left to do
        value += part
    value *= scale
    fraction = under is not None and whole is None and scale == 1
    return Number(-value if negative else value, not (point or exponent), bool(match["percent"]), fraction)


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
    text = _LOOSE_SPACE.sub("", " ".join(_TEXT.sub(r"\1", text).split())).rstrip(".")
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


def _weighty_words(text: str) -> list[str]:
    r"""The words in a tidy text that change the number before them; `1 \text{ or } 2` is a list, whose words may go."""
    found = (match[0].lower() for words in _IN_WORDS.findall(text) for match in _CHANGES_THE_NUMBER.finditer(words))
    return sorted(word.removesuffix("s") for word in found if word not in _LISTING)


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
            if _TO_SOLVE.fullmatch(assigned[1].strip()):
                return False
            given = number(assigned[2])
        if given is not None:
            return same_number(given, expected)
        if unfinished(answer) or any(_CHANGES_THE_NUMBER.search(words) for words in _IN_WORDS.findall(answer)):
            return False
        if "\\" not in answer and not any(sign.isdigit() for sign in answer):
            return False
    elif _BRACKETED_LIST.fullmatch(reference) and _BARE_LIST.fullmatch(answer):
        return False  # 1,2 for the point or the interval (1,2)
    if plain(answer) == plain(reference):
        return True
    # Computer algebra drops words, and 5 is not 5\text{ or more}.
    return None if _weighty_words(answer) == _weighty_words(reference) else False
