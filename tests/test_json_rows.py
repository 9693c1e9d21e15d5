"""JSON read piece by piece says what JSON read at once says, wherever the pieces end: rows, and what is wrong where."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgrpo.data import json_text
from lgrpo.data.fields import listed
from lgrpo.data.json_rows import json_rows
from lgrpo.data.splits import has_word, words_of
from lgrpo.errors import UserError

ROWS: list[Any] = [
    {"problem": 'é, 漢 and "🙂" \\ \n', "n": -1.5e-07, "t": [True, None, {"a": []}]},
    {},
    {"problem": "\x7f\ud83d", "n": 10**20, "é": float("-inf")},
]
COLUMNS = {"problem": ["é🙂", "b"], "": [1, [2]], "n": [-0.25, {"a": None}]}
DOCUMENTS = {
    "list.json": json.dumps(ROWS),
    "list.jsonl": json.dumps(ROWS, ensure_ascii=False, indent=1).replace("\n", "\r\n").replace("\ud83d", "\\ud83d"),
    "marked.json": "\ufeff" + json.dumps(ROWS[:2], ensure_ascii=False) + "\n\n",
    "empty.json": " [ \n ] ",
    "one.json": json.dumps({"v": [1], "n": 1.5, "data": ROWS[:2]}, indent=2),
    "splits.json": json.dumps({"test": ROWS[1:2], "my train": ROWS[:2], "e": []}),
    "unnamed.json": json.dumps({"b": ROWS[1:], "a": ROWS[1:]}),
    "twice.json": '{"a": [{"n": 1}], "b": 2, "a": [{"n": 2}, {"n": 3}], "b": [5]}',
    "columns.json": json.dumps(COLUMNS, ensure_ascii=False),
    "uneven.json": json.dumps({**COLUMNS, "n": [1]}),
    "nothing.json": "{\n}",
    "row.json": '\n{"problem": "é", "answer": 3}\n',
    "lines.json": '\n{"problem": ["é"], "n": [1]}\n \n{"problem": 5}\n',
    "joined.json": '{"n": 1} {"n": 2}\n{"n": 3}\n',
    "number.json": "-12.5e+3",
    "text.json": '"é\\u00e9"',
    "mixed.json": '[{"n": 1}, -12.5e3, {"n": 2}]',
}


def at_once(data: bytes, name: str, split: str) -> Iterator[tuple[str, Any]]:
    """The same, written plainly: all of it is parsed before the first row."""
    lines = [line.strip(b" \t\r\n\xef\xbb\xbf") for line in data.split(b"\n")]
    first, second = [*filter(None, lines), b"", b""][:2]
    if not first.startswith(b"["):
        row = tried(first)
        lists = isinstance(row, dict) and any(isinstance(value, list) for value in row.values())
        if not name.endswith(".json") or (isinstance(row, dict) and (second or not lists)):
            for number, line in enumerate(lines, 1):
                if line:
                    yield f"{name}, line {number}", parsed(line, f"{name}, line {number}")
            return
    found = parsed(data, name)
    if isinstance(found, dict):
        lists = {key: value for key, value in found.items() if isinstance(value, list)}
        of_rows = [key for key, value in lists.items() if value and isinstance(value[0], dict)]
        named = [key for key in of_rows if has_word(key, words_of(split))]
        if of_rows:
            if len(of_rows) > 1 and not named:
                raise UserError(f"{name}: several lists ({listed(sorted(of_rows))}) and none is called `{split}`")
            found = lists[(named or of_rows)[0]]
        elif lists:
            if len({*map(len, lists.values())}) > 1:
                raise UserError(f"{name}: its columns differ in length; each needs a value for each row")
            found = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if not isinstance(found, list):
        raise UserError(f"{name}: holds {kind(found)} where a list of rows is needed")
    yield from ((f"{name}, row {number}", row) for number, row in enumerate(found, 1))


def tried(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def parsed(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{place}{f', line {line}' if line > 1 else ''}: not UTF-8; convert the file") from error
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        why = f"{error.msg} at character {error.colno}"
        raise UserError(f"{place}{line}: not JSON ({why}); mend or remove it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: thousands of digits, or of lists in lists") from error


def kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def outcome(rows: Iterator[tuple[str, Any]]) -> tuple[list[tuple[str, Any]], str]:
    """The rows, and why there are no more; that of a row which is no object, from either way of reading."""
    found = []
    try:
        for place, row in rows:
            if not isinstance(row, dict):
                return found, f"{place}: holds {kind(row)} where an object with fields is needed"
            found.append((place, row))
    except UserError as error:
        return found, str(error)
    return found, ""


def both(
    path: Path, data: bytes, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[tuple[list[tuple[str, Any]], str], tuple[list[tuple[str, Any]], str]]]:
    """What is read in pieces of each size, and at once."""
    path.write_bytes(data)
    rows, why = outcome(at_once(data, path.name, "train"))
    for chunk in chunks:
        monkeypatch.setattr(json_text, "CHUNK", chunk)
        yield outcome(json_rows(Path(path.name), "train")), (rows, why)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_pieces_of_any_size_make_the_same_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = DOCUMENTS[name].encode()
    for ours, theirs in both(tmp_path / name, data, [*range(1, 24), 1 << 16], monkeypatch):
        assert ours == theirs
    assert ours[0] or ours[1] or name == "empty.json"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_was_cut_off_anywhere_is_refused_at_the_same_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the rows before it: read at once there are none. A number cut short is a number, and no row."""
    monkeypatch.chdir(tmp_path)
    data = DOCUMENTS[name].encode()
    for end in range(len(data)):
        for (rows, why), (all_rows, reason) in both(tmp_path / name, data[:end], [1, 5, 1 << 16], monkeypatch):
            assert why == reason or ("row 2: holds a number" in why and name == "mixed.json"), data[:end]
            assert reason or rows == all_rows


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_byte_changed_anywhere_is_read_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused later may be something else that is wrong as well, as long as it stands before it."""
    monkeypatch.chdir(tmp_path)
    data = DOCUMENTS[name].encode()
    for at, other in itertools.product(range(0, len(data), 2), [b'"', b"}", b"]", b",", b"\\", b"1", b"\xff", b"{"]):
        changed = data[:at] + other + data[at + 1 :]
        for (rows, why), (all_rows, reason) in both(tmp_path / name, changed, [3], monkeypatch):
            assert bool(why) == bool(reason), changed
            if not why:
                assert rows == all_rows, changed
            elif "holds" not in why and "UTF-8" not in reason and "Illegal trailing comma" not in reason:
                assert why == reason, changed


def test_a_long_value_is_not_tried_again_for_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the pieces, one more try."""
    tries = []
    decoder = json_text._DECODER

    class Counting:
        def raw_decode(self, text: str, at: int) -> Any:
            tries.append(len(text) - at)
            return decoder.raw_decode(text, at)

    monkeypatch.setattr(json_text, "_DECODER", Counting())
    monkeypatch.setattr(json_text, "CHUNK", 1)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"problem": '"é' * 50_000}, {"n": 1}], ensure_ascii=False))
    assert [len(row) for _, row in json_rows(path, "train")] == [1, 1]
    assert len(tries) < 40
    assert sum(tries) < 4 * path.stat().st_size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"n": 1}, ' + b"[" * 200_000, "a.json: nested too deeply"),
        (b'[{"n": ' + b"9" * 200_000 + b"}]", "a.json: not JSON that can be read"),
        (b'[{"n": 1}, {"n": 2},]', "a.json: not JSON"),
        (b'[{"n": 1}] [', "a.json: not JSON (Extra data at character 12)"),
        (
            b'[\n{"n": 1}\n{"n": 2}' + b" " * 300_000,
            "a.json, line 3: not JSON (Expecting ',' delimiter at character 1)",
        ),
        (b'[{"n" 1},' + b"[1]," * 200_000, "a.json: not JSON (Expecting ':' delimiter at character 7)"),
    ],
)
def test_what_is_wrong_in_a_long_file_is_said_without_reading_it_all(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_bytes(data)
    rows, why = outcome(json_rows(Path("a.json"), "train"))
    assert why.startswith(message)
    assert len(rows) <= 2
