"""Problems: the record every part of lgrpo shares, and where problems come from.

`fields.py` says which fields of a row are understood, `datafiles.py` which files, `hub.py` which names of the hub.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lgrpo import datafiles, fields, hub
from lgrpo.errors import UserError

GENERATED = 20_000  # problems taken from the endless generator where no limit is given


@dataclass(frozen=True)
class Problem:
    """One problem: its text, its reference answer (no box around it), and its chain of thought where one is known."""

    problem: str
    answer: str
    cot: str | None = None

    @property
    def key(self) -> int:
        """A stable 63-bit hash of the problem's text: seeds that do not depend on a problem's place in a file."""
        return _hash(self.problem) >> 1


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
        return list(itertools.islice(_generated(split, level), limit or GENERATED))
    problems = list(itertools.islice(_read(name, split), limit))
    if not problems:
        raise UserError(f"{name}: holds no problems")
    return problems


def _read(source: str, split: str) -> Iterator[Problem]:
    for path in _paths(source, split):
        for place, row in datafiles.rows(path, split):
            try:
                problem, answer, cot = fields.problem_answer_chain(row)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            # Data sets repeat problems up to a hundred times: the same text is kept once.
            yield Problem(sys.intern(problem), sys.intern(answer), sys.intern(cot) if cot is not None else None)


def _paths(source: str, split: str) -> list[Path]:
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return [path / name for name in datafiles.choose(datafiles.folder_files(path), split, source)]
        if path.exists():
            return [path]
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"{source}: cannot be read ({error.strerror or error})") from error
    if not hub.is_name(source) or path.suffix.lower() in datafiles.TYPES:
        aliases = ", ".join(hub.ALIASES)
        raise UserError(f"{source}: no such file or folder; data may also be arithmetic, {aliases}, or owner/name")
    return hub.fetch(source, split)


def _generated(split: str, level: str) -> Iterator[Problem]:
    from lgrpo import arithmetic  # it needs Problem

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


def hold_out(problems: Sequence[Problem], count: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(training problems, `count` held-out ones), both in their first order.

    The choice is by a hash of seed and normalised text, so it depends neither on the order nor on what else is in the
    data. Copies of a held-out problem are in neither list: what is held out is seen once and never trained on.
    """
    groups: dict[str, int] = {}  # normalised text -> place of its first copy
    texts = [normalised(problem.problem) for problem in problems]
    for place, text in enumerate(texts):
        groups.setdefault(text, place)
    if not 0 < count < len(groups):
        raise UserError(f"{count} of {len(groups)} different problems cannot be held out; give more problems")
    chosen = set(sorted(groups, key=lambda text: (_hash(f"{seed} {text}"), text))[:count])
    train = [problem for problem, text in zip(problems, texts, strict=True) if text not in chosen]
    return train, [problems[place] for text, place in groups.items() if text in chosen]


def overlap(a: Iterable[Problem], b: Iterable[Problem]) -> int:
    """How many different problems are in both, by normalised text."""
    return len({normalised(problem.problem) for problem in a} & {normalised(problem.problem) for problem in b})


def normalised(text: str) -> str:
    """Letters and digits in lower case; the text itself where it has neither."""
    return "".join(filter(str.isalnum, text.lower())) or text


def _hash(text: str) -> int:
    """64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
