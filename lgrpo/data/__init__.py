"""Where problems come from: the generator, files, folders and the hub.

`fields.py` says which fields of a row are understood, `files.py` which files, `hub.py` which names of the hub.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lgrpo import arithmetic, stdin
from lgrpo.data import fields, files, hub
from lgrpo.data.json_rows import json_lines
from lgrpo.errors import UserError
from lgrpo.problems import Problem

GENERATED = 20_000  # problems taken from the endless generator where no limit is given
MADE = 1_000_000  # at most: a minute or two, and the same few kinds of problems long before


def read_problems(source: str | Path, split: str = "train", limit: int | None = None) -> list[Problem]:
    """The problems of a source, in its order, at the most `limit` of them.

    source: `arithmetic` or `arithmetic:LEVEL` (the generator), a file, a folder (its files for `split`), an alias
    (`gsm8k-aug`, `gsm8k`, `math`, ...), or a data set of the hub as `owner/name` or `owner/name:FOLDER`. Only a name of
    the hub that is no file or folder here touches the network. A single file is read whole, whatever `split` says.

    Raises UserError, naming file and line, for anything that cannot be read: no row is left out in silence.
    """
    if limit is not None and limit < 1:
        raise UserError(f"at least one problem must be read, not {limit}")
    name = str(source)
    generator, _, level = name.partition(":")
    if generator == "arithmetic":
        if limit is not None and limit > MADE:
            raise UserError(f"arithmetic: at most {MADE:,} problems are made; give a smaller limit")
        return list(itertools.islice(_generated(split, level), limit or GENERATED))
    problems = list(itertools.islice(_read(name, split), limit))
    if not problems:
        raise UserError(f"{name}: holds no problems")
    return problems


def _read(source: str, split: str) -> Iterator[Problem]:
    for path in _paths(source, split):
        for place, row in files.rows(path, split):
            try:
                problem, answer, cot = fields.problem_answer_chain(row)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            # Data sets repeat problems up to a hundred times: the same text is kept once.
            yield Problem(sys.intern(problem), sys.intern(answer), sys.intern(cot) if cot is not None else None)


def read_to_ask(source: str, split: str = "test") -> Iterator[tuple[str, Problem]]:
    """Where each problem stands, and the problem, one at a time; its answer is empty where none is known.

    source: a file, a folder or a data set of the hub as in `read_problems`; a .txt file may hold a problem a line. `-`
    is JSON lines on stdin. Raises UserError, naming file and line.
    """
    if source == "-":
        rows: Iterator[fields.Row] = json_lines(stdin.lines(), "stdin")
    else:
        rows = (row for path in _paths(source, split) for row in files.rows(path, split, bare=True))
    for place, row in rows:
        try:
            problem, answer = fields.problem_to_ask(row)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        yield place, Problem(problem, answer or "")


def _paths(source: str, split: str) -> list[Path]:
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return [path / name for name in files.choose(files.folder_files(path), split, source)]
        if path.is_file():
            return [path]
        if path.exists():  # a pipe can be read once, and a problem file is read twice
            raise UserError(f"{source}: is no regular file; save the problems in one")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"{source[:100]}: cannot be read ({error.strerror or error})") from error
    if not hub.is_name(source) or path.suffix.lower() in files.TYPES:
        aliases = ", ".join(hub.ALIASES)
        raise UserError(
            f"{source[:100]}: no such file or folder; data may also be arithmetic, {aliases}, or owner/name"
        )
    return hub.fetch(source, split)


def _generated(split: str, level: str) -> Iterator[Problem]:
    if level and level not in arithmetic.LEVELS:
        raise UserError(f"arithmetic has no level {level!r}; it has {', '.join(arithmetic.LEVELS)}")
    if split not in ("train", "test"):
        raise UserError(f"arithmetic has no split {split!r}; it has train and test")
    return arithmetic.draw(split, level=arithmetic.LEVELS[level] if level else arithmetic.DEFAULT)


def need_chain(problems: Sequence[Problem]) -> tuple[list[Problem], int]:
    """(the problems that have a chain of thought, how many have none). Raises UserError where none has one."""
    with_chain = [problem for problem in problems if problem.cot]
    if not with_chain:
        raise UserError(
            f"none of the {len(problems)} problems has a chain of thought, and init learns from chains; give data with "
            f"one of the fields {', '.join(fields.CHAIN)}, or answers of the form `chain #### answer`"
        )
    return with_chain, len(problems) - len(with_chain)
