"""Rows of JSON: lines, a list of rows, an object that holds one, or an object of columns; one row at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lgrpo.data.fields import Row, listed
from lgrpo.data.json_text import CHUNK, JsonText, List, refused
from lgrpo.data.splits import has_word, words_of
from lgrpo.errors import UserError

_BLANK = b" \t\r\n\xef\xbb\xbf"  # with the mark some editors put at the beginning of UTF-8


def json_rows(path: Path, split: str) -> Iterator[Row]:
    """The rows of a file, whatever it is called: many a .json has a row a line, and some .jsonl hold one list.

    split: which list is meant, where an object holds several. An object is read twice, since which of its members are
    the rows is not known before its end. Raises UserError with the place, OSError.
    """
    name = str(path)
    with path.open("rb") as file:
        is_list = _first_sign(file) == b"["
        text = JsonText(file, name)
        if is_list:
            values = _whole_list(text)
        elif path.suffix.lower() != ".json" or (lists := _whole_object(text, name)) is None:
            file.seek(0)
            yield from json_lines(file, name)
            return
        else:
            values = _of_object(lists, file, name, split)
        for number, row in enumerate(values, 1):
            yield _row(row, f"{name}, row {number}")


def json_lines(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The rows of JSON lines. Bytes, because only a line feed ends a line. Raises UserError with name and line."""
    for number, line in enumerate(file, 1):
        if line.strip(_BLANK):
            place = f"{name}, line {number}"
            yield _row(_parsed(line.strip(_BLANK), place), place)


def _first_sign(file: BinaryIO) -> bytes:
    while chunk := file.read(CHUNK):
        if filled := chunk.lstrip(_BLANK):
            return filled[:1]
    return b""


def _whole_list(text: JsonText) -> Iterator[Any]:
    yield from text.elements()
    text.end()


def _whole_object(text: JsonText, name: str) -> dict[str, List] | None:
    """The lists in an object that is all there is; None where it is a row, on a line of its own."""
    if text.sign() != "{":
        value = text.value()
        text.end()
        raise _no_list(value, name)
    line = text.line
    lists = text.lists()
    ends_there = text.line == line
    if ends_there and (text.line > line if text.sign() else not lists):
        return None
    text.end()
    if not lists:
        raise _no_list({}, name)
    return lists


def _of_object(lists: Mapping[str, List], file: BinaryIO, name: str, split: str) -> Iterator[Any]:
    """The rows in one of an object's lists, or made of all of them as columns."""
    of_rows = [one for one in lists if lists[one].of_objects]
    if of_rows:
        wanted = [one for one in of_rows if has_word(one, words_of(split))]
        if len(of_rows) > 1 and not wanted:
            raise UserError(f"{name}: several lists ({listed(sorted(of_rows))}) and none is called `{split}`")
        chosen = wanted[0] if wanted else of_rows[0]
        return JsonText(file, name, lists[chosen].at).elements()
    if len({one.length for one in lists.values()}) > 1:
        raise UserError(f"{name}: its columns differ in length; each needs a value for each row")
    columns = [JsonText(file, name, one.at).elements() for one in lists.values()]
    return (dict(zip(lists, values, strict=True)) for values in zip(*columns, strict=True))


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: holds {_kind(value)} where an object with fields is needed")
    return place, value


def _no_list(value: Any, name: str) -> UserError:
    return UserError(f"{name}: holds {_kind(value)} where a list of rows is needed")


def _parsed(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise refused(error, place, character=getattr(error, "colno", 0)) from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
