"""The scores that `lgrpo eval` left in a run folder, a row each: of which checkpoint, and under which settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from lgrpo import forms
from lgrpo.runs.contents import short_hash
from lgrpo.runs.durable import read_json
from lgrpo.text import checkpoint_name, setting

Entry = Mapping[str, Any]


class Found(NamedTuple):
    """One score."""

    name: str  # benchmark, runs, and what was asked
    time: str
    entry: Entry
    decided: Entry  # what else decides it: the model's hash, settings, seed, the data's hash


def evaluated(run: Path, record: Mapping[str, Any]) -> list[tuple[str, Entry]]:
    """(name, score) of the newest evaluation of everything that was asked, by name; none of a run before this one.

    Where two would have the same name, it says in what they differ. A damaged summary is passed over.
    """
    newest: dict[str, Found] = {}
    for found in _found(run, record):
        key = short_hash([found.name, found.entry.get("problems"), found.decided])
        newest[key] = max(newest.get(key, found), found, key=lambda one: one.time)
    alike: dict[tuple[str, int], list[Found]] = {}
    for found in newest.values():
        alike.setdefault((found.name, found.entry.get("problems", 0)), []).append(found)
    return [row for _, ones in sorted(alike.items()) for row in _told_apart(ones)]


def _found(run: Path, record: Mapping[str, Any]) -> Iterator[Found]:
    for path in sorted((run / "eval").glob("summary-*.json")):
        summary = read_json(path) or {}
        results, time = summary.get("results"), str(summary.get("time"))
        if not _of_this(summary.get("run_id"), time, record):
            continue
        for entry in filter(forms.SCORE, results if isinstance(results, list) else []):
            entry = forms.kept(entry, forms.BESIDE_SCORE)
            runs = entry.get("runs", 0)
            asked = _asked(summary, run)
            name = f"{entry.get('benchmark')}, {runs} run{'s' * (runs != 1)} a problem{f' ({asked})' * bool(asked)}"
            yield Found(name, time, entry, _decided(summary))


def _of_this(run: Any, time: str, record: Mapping[str, Any]) -> bool:
    """By the run's id; by the clock, which may have been set back, only where one of the two has none."""
    ours = record.get("id")
    return bool(run == ours) if run and ours else time >= str(record.get("started"))


def _asked(summary: Entry, run: Path) -> str:
    """The checkpoint in this run's words: `step 100`; of anything else, all that is known of where it stood."""
    model = str(summary.get("model") or summary.get("checkpoint") or "")
    ours = PurePath(model).parent.parent.name == run.resolve().name
    return (checkpoint_name(model) if ours else None) or model


def _decided(summary: Entry) -> Entry:
    identity = summary.get("identity")
    flat: dict[str, Any] = {}
    for name, value in identity.items() if isinstance(identity, dict) else ():
        flat |= value if isinstance(value, dict) else {name: value}
    return {**flat, "hash of the data": summary.get("data_hash")}


def _told_apart(ones: Iterable[Found]) -> list[tuple[str, Entry]]:
    """Of the same name: the oldest first, with what is not the same in all of them."""
    ones = sorted(ones, key=lambda one: one.time)
    names = dict.fromkeys(name for one in ones for name in one.decided)
    differ = [name for name in names if len({setting(one.decided.get(name)) for one in ones}) > 1]
    return [
        (", ".join([one.name, *(f"{name} {setting(one.decided.get(name))}" for name in differ)]), one.entry)
        for one in ones
    ]
