"""Rows out of data files, one at a time, each with the place it stands at, for messages.

JSON lines (.jsonl, .ndjson), JSON (.json: a list of rows, an object that holds one, an object of columns, or lines),
Parquet (.parquet), CSV with names in its first line (.csv), and plain lines `question||chain #### answer` as in
GSM8K-Aug (.txt).
"""

import csv
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lgrpo.data.fields import COLUMNS, listed
from lgrpo.errors import UserError

# In the order of preference where a folder holds several.
TYPES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".txt")
Row = tuple[str, Mapping[str, Any]]  # (place, fields)

_SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_NO_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})
_BLANK = b" \t\r\n\xef\xbb\xbf"  # with the mark some editors put at the beginning of UTF-8
_USUAL_FOLDERS = ("", "data", "main", "default", "all")


def rows(path: Path, split: str = "train", bare: bool = False) -> Iterator[Row]:
    """The rows of a file. Raises UserError with file and line.

    split: matters where a JSON file holds several; bare: a line of plain text may be a question alone.
    """
    kind = path.suffix.lower()
    if kind not in TYPES:
        raise UserError(f"{path}: unknown type of file; known are {', '.join(TYPES)}")
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
        elif kind == ".txt":
            yield from _text_rows(path, bare)
        elif kind == ".csv":
            yield from _csv_rows(path)
        elif _holds_lines(path, kind):
            with path.open("rb") as file:
                yield from json_lines(file, str(path))
        else:
            yield from _json_rows(path, split)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def choose(names: Sequence[str], split: str, source: str, part: str = "") -> list[str]:
    """The data files of a split among a folder's file names (with `/`), as shards in order.

    part: only names under this folder, or with this beginning. Raises UserError where it is not clear which are meant.
    """
    known = [name for name in sorted(names) if name.startswith(part) and _is_data(name)]
    if not known:
        where = f" under {part}" if part else ""
        raise UserError(f"{source}: no data file{where}; known are {', '.join(TYPES)}")
    if known == [part]:  # one file, by its name
        return known
    words = _SPLITS.get(split, (split,))
    others = [word for other, group in _SPLITS.items() if other != split for word in group]
    found = [name for name in known if _has_word(name, words)]
    if not found and split == "train":  # a lone data set is there to be trained on
        found = [name for name in known if not _has_word(name, others)]
    if not found:
        raise UserError(f"{source}: no file for the split `{split}` among {listed(known)}; name the file")

    folders = {_folder(name, words) for name in found}
    if len(folders) > 1:
        usual = next((folder for folder in _USUAL_FOLDERS if folder in folders), None)
        if usual is None:
            raise UserError(f"{source}: several data sets; choose one as {source}:FOLDER, of {listed(sorted(folders))}")
        found = [name for name in found if _folder(name, words) == usual]
    kind = next(kind for kind in TYPES if any(name.lower().endswith(kind) for name in found))
    found = [name for name in found if name.lower().endswith(kind)]
    if len({re.sub(r"[0-9]+(-of-[0-9]+)?", "", PurePosixPath(name).stem) for name in found}) > 1:
        raise UserError(f"{source}: several files for the split `{split}`: {listed(found)}; name one of them")
    return found


def folder_files(folder: Path) -> list[str]:
    """The names of all files in a folder and below, with `/`, hidden ones left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return path.suffix in TYPES and path.name not in _NO_DATA and not path.name.startswith(("readme", "license"))


def _has_word(name: str, words: Sequence[str]) -> bool:
    return re.search(rf"(?<![a-z])(?:{'|'.join(map(re.escape, words))})(?![a-z])", name.lower()) is not None


def _folder(name: str, words: Sequence[str]) -> str:
    """Which data set of a repository a file belongs to: its folder, without one named after the split."""
    return "/".join(part for part in PurePosixPath(name).parts[:-1] if part.lower() not in words)


def _holds_lines(path: Path, kind: str) -> bool:
    """Whether a JSON file has a row a line, whatever it is called: many a .json does, and some .jsonl hold one list."""
    with path.open("rb") as file:
        filled = (line.strip(_BLANK) for line in file if line.strip(_BLANK))
        first, second = next(filled, b""), next(filled, b"")
    if first.startswith(b"[") or kind != ".json":
        return not first.startswith(b"[")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False  # the first line of an object written over many
    return isinstance(row, dict) and (bool(second) or not any(isinstance(value, list) for value in row.values()))


def json_lines(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The rows of JSON lines. Bytes, because only a line feed ends a line. Raises UserError with name and line."""
    for number, line in enumerate(file, 1):
        if not line.strip(_BLANK):
            continue
        place = f"{name}, line {number}"
        row = _parsed(line.strip(_BLANK), place)
        if not isinstance(row, dict):
            raise UserError(f"{place}: holds {_kind(row)} where an object with fields is needed")
        yield place, row


def _json_rows(path: Path, split: str) -> Iterator[Row]:
    data = _parsed(path.read_bytes(), str(path))
    if isinstance(data, dict):
        lists = {name: value for name, value in data.items() if isinstance(value, list)}
        of_rows = {name: value for name, value in lists.items() if value and isinstance(value[0], dict)}
        if of_rows:
            wanted = [name for name in of_rows if _has_word(name, _SPLITS.get(split, (split,)))]
            name = wanted[0] if wanted else next(iter(of_rows))
            if len(of_rows) > 1 and not wanted:
                raise UserError(f"{path}: several lists ({listed(sorted(of_rows))}) and none is called `{split}`")
            data = of_rows[name]
        elif lists:  # columns
            if len({len(value) for value in lists.values()}) > 1:
                raise UserError(f"{path}: its columns differ in length; each needs a value for each row")
            columns = zip(*lists.values(), strict=True)
            data = [dict(zip(lists, values, strict=True)) for values in columns]
    if not isinstance(data, list):
        raise UserError(f"{path}: holds {_kind(data)} where a list of rows is needed")
    for number, row in enumerate(data, 1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: holds {_kind(row)} where an object with fields is needed")
        yield place, row


def _text_rows(path: Path, bare: bool) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8; convert the file") from error
            if not text:
                continue
            question, bars, answer = text.partition("||")
            if bare and not bars:
                yield place, {"question": question}
                continue
            if not bars or "####" not in answer:
                raise UserError(f"{place}: not of the form `question||chain #### answer`")
            yield place, {"question": question, "answer": answer}


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(
                        f"{place}: not as many fields as the {len(reader.fieldnames or [])} names in line 1"
                    )
                yield place, {name: value or None for name, value in row.items()}  # an empty cell holds nothing
        except (csv.Error, UnicodeDecodeError) as error:
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not CSV ({error})"
            raise UserError(f"{path}, line {reader.line_num + 1}: {what}; mend or convert the file") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install 'lgrpo[parquet]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.strip().lower() in COLUMNS]
            unread = dict.fromkeys(name for name in file.schema_arrow.names if name not in names)
            for batch in file.iter_batches(batch_size=1_000, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", unread | row  # a complaint about missing fields names them all
    except Exception as error:  # a damaged file has pyarrow raise anything from OSError to UnicodeDecodeError
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a Parquet file that can be read ({listed([why])})") from error


def _parsed(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8; convert the file") from error
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(
            f"{place}{line}: not JSON ({error.msg} at character {error.colno}); mend or remove it"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{place}: not JSON that can be read ({error})") from error
    except RecursionError as error:
        raise UserError(f"{place}: nested too deeply; it cannot be a problem") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
