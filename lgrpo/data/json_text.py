"""JSON read from a file value by value: what was read is forgotten, and what follows is not read yet."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from lgrpo.errors import UserError

CHUNK = 1 << 16  # bytes read at a time; more where a value is longer

_BLANKS = re.compile(r"[ \t\r\n]*")
_LONGEST_SIGN = 16  # characters: `-Infinity`, `\ud83d\ude00`, an exponent
_DECODER = json.JSONDecoder()


class List(NamedTuple):
    """A list that is a member of an object."""

    at: int  # where it begins in the file, in bytes
    length: int
    of_objects: bool  # by its first value


class JsonText:
    """A place in a file of JSON, which goes forward. The values in it are the sizes that memory must hold.

    Raises UserError, naming file, line and character, as soon as it meets something that is no JSON.
    """

    def __init__(self, file: BinaryIO, name: str, at: int = 0) -> None:
        """file: seekable, and others may read it in turn. at: where to begin, in bytes."""
        self._file, self._name = file, name
        file.seek(at)
        if at == 0 and file.read(3) == codecs.BOM_UTF8:
            at = 3
        self._next = at  # the byte that is read next
        self._undecoded = b""  # the beginning of a character, or what is none
        self._text, self._at = "", 0
        self._lines, self._signs = 0, 0  # forgotten: lines, and characters of the line that the text begins in
        self._ended = False

    @property
    def line(self) -> int:
        """The line this place is in, from 1."""
        return self._lines + self._text.count("\n", 0, self._at) + 1

    def sign(self) -> str:
        """The next character that is no blank, where this place is then; "" at the end."""
        if (usual := self._text[self._at : self._at + 1]) > " ":
            return usual
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None
            self._at = blanks.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def value(self) -> Any:
        """The value that begins here, whole; this place is behind it then."""
        self.sign()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._cut(error):
                    raise self._refused(error) from error
            except (ValueError, RecursionError) as error:
                raise refused(error, self._name) from error
            else:
                if len(self._text) - end >= _LONGEST_SIGN or self._ended:  # else a number may go on: 1.5e is 1.5
                    self._at = end
                    return value
            self._more()

    def elements(self) -> Iterator[Any]:
        """The values of the list that begins here; this place is behind it after the last."""
        self._take("[")
        if self.sign() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def lists(self) -> dict[str, List]:
        """Which members of the object that begins here are lists; this place is behind it then."""
        found: dict[str, List | None] = {}  # the last of a name counts, at the place of the first
        self._take("{")
        ended = self.sign() == "}" and bool(self._take("}"))
        while not ended:
            if self.sign() != '"':
                raise self._expected("property name enclosed in double quotes")
            name = self.value()
            self._take(":")
            if self.sign() == "[":
                found[name] = self._list()
            else:
                self.value()
                found[name] = None
            ended = self._take(",}") == "}"
        return {name: one for name, one in found.items() if one is not None}

    def _list(self) -> List:
        at = self._next - len(self._undecoded) - len(self._text[self._at :].encode())
        length, of_objects = 0, False
        for value in self.elements():
            of_objects = isinstance(value, dict) if length == 0 else of_objects
            length += 1
        return List(at, length, of_objects)

    def end(self) -> None:
        """Raises UserError where more follows."""
        if self.sign():
            raise self._refused(json.JSONDecodeError("Extra data", self._text, self._at))

    def _take(self, signs: str) -> str:
        """The next character, one of these, and go behind it."""
        sign = self.sign()
        if not sign or sign not in signs:
            raise self._expected(f"'{signs[0]}' delimiter")
        self._at += 1
        return sign

    def _more(self) -> None:
        """Forget what is behind this place, and read as much again as there is before it.

        Doubled, so that a long value is not tried again for each little piece of it.
        """
        behind = self._text[: self._at]
        if lines := behind.count("\n"):
            self._lines, self._signs = self._lines + lines, 0
        self._signs += len(behind) - (behind.rfind("\n") + 1)
        rest = self._text[self._at :]
        self._file.seek(self._next)
        read = self._file.read(max(CHUNK, len(rest)))
        self._next += len(read)
        data = self._undecoded + read
        try:
            text, used = codecs.utf_8_decode(data, "strict", not read)
        except UnicodeDecodeError as error:
            if error.start == 0:
                raise refused(error, self._name, self._lines + rest.count("\n") + 1) from error
            text, used = data[: error.start].decode(), error.start  # it may be all that is asked for
        self._undecoded = data[used:]
        self._text, self._at, self._ended = rest + text, 0, not read and not self._undecoded

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether it may be an error for want of what was not read yet: the rest of a string, or of a sign."""
        near_the_end = error.pos > len(self._text) - _LONGEST_SIGN
        return not self._ended and (near_the_end or error.msg.startswith("Unterminated string"))

    def _expected(self, what: str) -> UserError:
        return self._refused(json.JSONDecodeError(f"Expecting {what}", self._text, self._at))

    def _refused(self, error: json.JSONDecodeError) -> UserError:
        before = self._signs if error.lineno == 1 else 0
        return refused(error, self._name, self._lines + error.lineno, before + error.colno)


def refused(error: Exception, place: str, line: int = 1, character: int = 0) -> UserError:
    """What to say of something that is no JSON. line: where it is, in a file of several; character: in its line."""
    where = f"{place}, line {line}" if line > 1 else place
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{where}: not UTF-8; convert the file")
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{where}: not JSON ({error.msg} at character {character}); mend or remove it")
    if isinstance(error, RecursionError):
        return UserError(f"{place}: nested too deeply; it cannot be a problem")
    return UserError(f"{place}: not JSON that can be read ({error})")  # a number of thousands of digits
