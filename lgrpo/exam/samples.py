"""Every sample of an evaluation, kept as JSON lines, so that an interrupted evaluation goes on where it stopped.

    <folder>/<benchmark>-<hash>.jsonl           one object a sample, in the order in which they ended
    <folder>/summary-<benchmark>-<hash>.json    what `eval --json` prints of it, and each problem's share of right runs

A response depends on the checkpoint, the settings, the seed, the problem and its number alone. The first three are in
the file's name, as a hash; the other two are in its lines. So more problems, runs or samples go on from fewer, changed
problems are asked anew, and nothing of another checkpoint or setting is ever mixed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from lgrpo import forms
from lgrpo.errors import UserError
from lgrpo.evaluate import Asked
from lgrpo.problems import Problem
from lgrpo.runs.checkpoints import safe_name
from lgrpo.runs.contents import short_hash
from lgrpo.runs.durable import from_json, lock, to_json
from lgrpo.runs.guard import refuse_links, writing

FORMAT = 3  # raise it when what is drawn, graded or written changes: older files are then left alone
KINDS = PASS_AT_1, EXPLORED = ("pass@1", "explore")  # noise off, noise on
SAMPLE = forms.object_with(  # a line that is not of this form is passed over, and made again
    {
        "key": forms.text, "reference": forms.text, "kind": lambda value: value in KINDS, "run": forms.count,
        "right": forms.truth, "valid": forms.truth, "latent_length": forms.count, "explicit_length": forms.count,
        "unchecked": lambda value: value is None or forms.text(value),
    }
)  # fmt: skip


class Outcome(NamedTuple):
    """What a score needs of one sample: `evaluate.Graded`."""

    problem: int  # index
    run: int
    right: bool
    valid: bool
    latent_length: int
    explicit_length: int
    unchecked: str | None = None  # why the answer could not be checked, and counts as wrong


class Samples:
    """The samples of one evaluation: those that were there, and those added. A context manager.

    Texts and chains are on disk alone: of a sample some 200 bytes stay in memory, its `Outcome`.

    Nothing is written before the first sample is added. Raises UserError where the file is a link, cannot be written,
    or is being written by another process.
    """

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self._outcomes: dict[str, dict[Asked, Outcome]] = {kind: {} for kind in KINDS}
        self._places: dict[tuple[str, str], list[int]] = {}  # a benchmark may hold a problem twice
        for place, problem in enumerate(problems):
            self._places.setdefault((_key(problem), problem.answer), []).append(place)
        self._problems = problems
        self._file: IO[bytes] | None = None
        refuse_links(path.parent, [path.name])
        if path.exists():
            self._open()

    def missing(self, kind: str, runs: int) -> list[Asked]:
        """The samples that `runs` runs of each problem still lack, by problem, then run."""
        there = self._outcomes[kind]
        wanted = (Asked(place, run) for place in range(len(self._problems)) for run in range(runs))
        return [asked for asked in wanted if asked not in there]

    def of(self, kind: str, runs: int) -> list[Outcome]:
        """The first `runs` samples of each problem, as far as they are there."""
        return [outcome for asked, outcome in self._outcomes[kind].items() if asked.run < runs]

    def add(self, kind: str, outcomes: Sequence[Outcome], details: Sequence[Mapping[str, Any]]) -> None:
        """Keep samples, on disk as soon as the system writes it. details: more to be kept of each."""
        lines = []
        for outcome, more in zip(outcomes, details, strict=True):
            problem = self._problems[outcome.problem]
            row = {"key": _key(problem), "kind": kind, **outcome._asdict(), "reference": problem.answer, **more}
            lines.append(to_json({**row, "problem": problem.problem}) + "\n")
            self._take(row)
        if self._file is None:
            self._open()
        assert self._file is not None
        with writing(self.path.parent):
            self._file.write("".join(lines).encode("utf-8", "replace"))
            self._file.flush()

    def _open(self) -> None:
        """Read what is there, up to the last whole line: what a crash left behind it is cut off."""
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            try:
                lock(self._file)
            except (BlockingIOError, PermissionError):
                self._file.close()
                raise UserError(
                    f"{self.path} is being written by another `lgrpo eval`; wait for it to end, or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            self._file.seek(0)
            end = 0
            for line in self._file:
                if line.endswith(b"\n"):
                    end += len(line)
                    row = from_json(line)
                    if row is not None and SAMPLE(row):
                        self._take(row)
            self._file.truncate(end)

    def _take(self, row: Mapping[str, Any]) -> None:
        """Remember a sample if it is one of these problems'."""
        for place in self._places.get((row["key"], row["reference"]), []):
            rest = (row[name] for name in Outcome._fields[2:])
            self._outcomes[row["kind"]][Asked(place, row["run"])] = Outcome(place, row["run"], *rest)

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take, which `add` said
                self._file.close()
            self._file = None


def path_of(folder: Path, benchmark: str, identity: Mapping[str, Any]) -> Path:
    """The file of the samples of a benchmark under an identity: all that decides what a sample is, but the problem."""
    return folder / f"{safe_name(benchmark)}-{short_hash({'format': FORMAT, **identity})}.jsonl"


def _key(problem: Problem) -> str:
    return f"{problem.key:016x}"
