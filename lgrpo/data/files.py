"""Rows out of data files, one at a time, each with the place it stands at, for messages.

JSON lines (.jsonl, .ndjson), JSON (.json: a list of rows, an object that holds one, an object of columns, or lines),
Parquet (.parquet), CSV with names in its first line (.csv), and plain lines `question||chain #### answer` as in
GSM8K-Aug (.txt).
"""

import csv
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lgrpo.data.fields import COLUMNS, Row, given_twice, listed
from lgrpo.data.json_rows import json_rows
from lgrpo.data.splits import has_word, words_of, words_of_others
from lgrpo.errors import UserError

# In the order of preference where a folder holds several.
TYPES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".txt")

_NO_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})
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
        else:
            yield from json_rows(path, split)
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
    words = words_of(split)
    found = [name for name in known if has_word(name, words)]
    if not found and split == "train":  # a lone data set is there to be trained on
        found = [name for name in known if not has_word(name, words_of_others(split))]
    if not found:
        raise UserError(f"{source}: no file for the split `{split}` among {listed(known)}; name the file")

    folders = {_folder(name, words) for name in found}
    if len(folders) > 1:
        usual = next((folder for folder in _USUAL_FOLDERS if folder in folders), None)
        if usual is None:
            between = "/" if Path(source).is_dir() else ":"
            those = listed(sorted(folders))
            raise UserError(f"{source}: several data sets; choose one as {source}{between}FOLDER, of {those}")
        found = [name for name in found if _folder(name, words) == usual]
    kind = next(kind for kind in TYPES if any(name.lower().endswith(kind) for name in found))
    found = [name for name in found if name.lower().endswith(kind)]
    if len({re.sub(r"[0-9]+(-of-[0-9]+)?", "", PurePosixPath(name).stem) for name in found}) > 1:
        raise UserError(f"{source}: several files for the split `{split}`: {listed(found)}; name one of them")
    return found


def folder_files(folder: Path) -> list[str]:
    """The names of all files in a folder and below, with `/`, hidden ones left out. Raises OSError."""
    next(folder.iterdir(), None)  # rglob passes over a folder that may not be read, as if it were empty
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return path.suffix in TYPES and path.name not in _NO_DATA and not path.name.startswith(("readme", "license"))


def _folder(name: str, words: Sequence[str]) -> str:
    """Which data set of a repository a file belongs to: its folder, without one named after the split."""
    return "/".join(part for part in PurePosixPath(name).parts[:-1] if part.lower() not in words)


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
            names = [name.strip().lower() for name in reader.fieldnames or []]
            if twice := sorted(name for name in COLUMNS if names.count(name) > 1):
                raise UserError(f"{path}, line 1: {given_twice(twice[0])}")
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
        raise UserError(
            f"{path}: reading Parquet needs a package that is not installed: pip install pyarrow"
        ) from error
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
