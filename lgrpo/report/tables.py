"""What a run recorded, arranged as the tables of its report. Reads files alone; whatever is missing is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from lgrpo import compare, forms
from lgrpo.history import History, read_lines
from lgrpo.metrics import METRICS, shown
from lgrpo.report.evaluated import evaluated
from lgrpo.runs.provenance import place
from lgrpo.text import duration, gigabytes, setting

Table = Sequence[Sequence[str]]  # rows of words; the first is the head
RECORD = {  # of run.json, what is looked into
    "argv": forms.list_of(forms.text),
    "identity": forms.object_of(forms.anything),
    "settings": forms.object_of(forms.object_of(forms.anything)),
    "versions": forms.object_of(forms.anything),
    "resumed": forms.list_of(forms.object_of(forms.anything)),
}


@dataclass(frozen=True)
class Recorded:
    """The parts of a report."""

    title: str
    state: str  # finished, or how far
    headline: str  # the result in a sentence
    facts: Table  # without a head
    scores: Table
    numbers: Table
    time: Table
    samples: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]]  # at the start, and at the best score
    events: Table
    plan: Table

    @classmethod
    def read(cls, run: Path, record: Mapping[str, Any], history: History) -> Recorded:
        """Of a run folder."""
        record = forms.kept(record, RECORD)
        events = list(read_lines(run / "events.jsonl"))
        first, best = _first_and_best(history)
        return cls(
            title=run.resolve().name,
            state=_state(record, history),
            headline=_headline(first, best),
            facts=_facts(record, history),
            scores=[*_held_out(first, best, history), *(_score_row(*row) for row in evaluated(run, record))],
            numbers=_numbers(history),
            time=_time(record, history),
            samples=_samples(first, best),
            events=_events(events),
            plan=_plan(record),
        )


def _first_and_best(history: History) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    if not history.scores:
        return None, None
    return history.scores[0], max(history.scores, key=lambda score: (score["pass@1"], -score["step"]))


def _state(record: Mapping[str, Any], history: History) -> str:
    done = history.steps[-1]["step"] if history.steps else 0
    wanted = _value(record, "steps")
    if record.get("finished"):
        return f"finished {_when(record['finished'])}"
    return f"not finished: step {done}" + (f" of {wanted}" if wanted else "")


def _headline(first: Mapping[str, Any] | None, best: Mapping[str, Any] | None) -> str:
    if first is None or best is None:
        return "No score yet."
    if best is first:
        return f"Held-out Pass@1 {first['pass@1']:.3f}; no later score was higher."
    text = f"Held-out Pass@1 {first['pass@1']:.3f} → {best['pass@1']:.3f} (step {best['step']})"
    before, after = first.get("shares"), best.get("shares")
    if not before or not after or len(before) != len(after):
        return text + "."
    change = compare.paired(before, after)
    low, high = change.interval
    counts = f"{len(change.won)} problems won, {len(change.lost)} lost"
    return f"{text}: {change.mean:+.3f}, 95 % {low:+.3f} to {high:+.3f}, paired by problem; {counts}."


def _held_out(first: Mapping[str, Any] | None, best: Mapping[str, Any] | None, history: History) -> Iterator[list[str]]:
    yield ["", "problems", "Pass@1", "95 %", "latent", "explicit", "length", "cut off"]
    last = history.scores[-1] if history.scores else None
    rows = {"first": first, "best": best, "last": last}
    for name, score in rows.items():
        if score is not None and not (name == "last" and score is best):
            yield _score_row(f"held-out, {name} (step {score['step']})", score)


def _score_row(name: str, score: Mapping[str, Any]) -> list[str]:
    interval = score.get("pass@1_interval") or _interval(score)
    lengths = [shown("latent", score.get(f"{part}length")) for part in ("latent_", "explicit_", "")]
    low, high = (f"{edge:.3f}" for edge in interval)
    rate, invalid = f"{score['pass@1']:.3f}", shown("invalid", score.get("invalid"))
    return [name, str(score.get("problems", "")), rate, f"{low} to {high}", *lengths, invalid]


def _interval(score: Mapping[str, Any]) -> tuple[float, float]:
    if shares := score.get("shares"):
        return compare.interval(shares, 1)
    half = compare.Z * score["pass@1_se"]
    return max(0.0, score["pass@1"] - half), min(1.0, score["pass@1"] + half)


def _facts(record: Mapping[str, Any], history: History) -> Table:
    versions = record.get("versions") or {}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    start = record.get("identity") or {}
    facts = [
        ("command", " ".join(map(str, ["lgrpo", *record.get("argv", [])[1:]]))),
        ("started from", str(start.get("checkpoint") or start.get("base") or "")),
        ("data", str(start.get("data", ""))),
        ("hash of the data", str(start.get("data_hash", ""))),
        ("seed", str(start.get("seed", ""))),
        ("device", _devices(record)),
        ("began", _when(record.get("started"))),
        ("resumed", ", ".join(_when(one.get("started")) for one in record.get("resumed", [])) or "never"),
        ("versions", packages),
        ("commit", str(record.get("git") or "none")),
        ("machine", str(record.get("platform", ""))),
    ]
    return [[name, value] for name, value in facts if value]


def _devices(record: Mapping[str, Any]) -> str:
    """Where the processes that worked on the run did, one after the other."""
    known = filter(None, map(place, (record, *record.get("resumed", []))))
    return ", then ".join(name for name, _ in groupby(known))


def _numbers(history: History) -> Table:
    """First, middle and last steps of each number that has a meaning of its own."""
    steps = history.steps
    if not steps:
        return []
    count = max(1, min(10, len(steps) // 3))
    middle = (len(steps) - count) // 2
    parts = {"first": steps[:count], "middle": steps[middle : middle + count], "last": steps[-count:]}
    head = [f"{name} {count}" if count > 1 else name for name in parts]
    rows = [["mean of the steps", *head, "what it is"]]
    for name, metric in METRICS.items():
        means = [_mean(part, name) for part in parts.values()]
        if metric.group != "time" and any(value is not None for value in means):
            rows.append([metric.label, *("-" if v is None else metric.write(v) for v in means), metric.meaning])
    return rows


def _mean(steps: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(step[name]) for step in steps if step.get(name) is not None]
    return fmean(values) if values else None


def _time(record: Mapping[str, Any], history: History) -> Table:
    """Where the time of all steps went, and the most memory."""
    rows: list[list[str]] = [["part", "time", "share"]]
    sums = {
        name: sum(step.get(name) or 0.0 for step in history.steps) for name in ("rollout_s", "verify_s", "update_s")
    }
    whole = sum(sums.values())
    for name, seconds in sums.items():
        if whole:
            rows.append([METRICS[name].label, duration(seconds), f"{seconds / whole:.0%}"])
    if whole:
        rows.append(["steps together", duration(whole), ""])
    if (wall := _wall(record)) is not None:
        rows.append(["from start to finish, pauses included", duration(wall), ""])
    memory = [step["memory_used"] for step in history.steps if step.get("memory_used") is not None]
    if memory:
        rows.append(["memory used at most", gigabytes(max(memory)), ""])
    return rows if len(rows) > 1 else []


def _wall(record: Mapping[str, Any]) -> float | None:
    try:
        start, end = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
        return (end - start).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _samples(
    first: Mapping[str, Any] | None, best: Mapping[str, Any] | None
) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """The same problems at the first and at the best score."""
    before = (first or {}).get("samples") or []
    after = {one["problem"]: one for one in (best or {}).get("samples") or []} if best is not first else {}
    return [(one, after.get(one["problem"])) for one in before]


def _events(events: Sequence[Mapping[str, Any]]) -> Table:
    rows = [["when", "what", ""]]
    for event in events:
        kind = str(event.get("event"))
        if kind in {"held_out"}:
            continue
        if kind == "health":
            detail = f"step {event.get('step')}: {event.get('what')}. Usually helps: {event.get('helps')}."
        else:
            facts = {name: value for name, value in event.items() if name not in ("time", "event")}
            detail = ", ".join(f"{name} {setting(value)}" for name, value in facts.items())
        rows.append([_when(event.get("time")), kind.replace("_", " "), detail])
    return rows if len(rows) > 1 else []


def _plan(record: Mapping[str, Any]) -> Table:
    rows = [["setting", "value", "why"]]
    for name, entry in (record.get("settings") or {}).items():
        if isinstance(entry, Mapping):
            rows.append([name, setting(entry.get("value")), str(entry.get("reason", ""))])
    return rows if len(rows) > 1 else []


def _value(record: Mapping[str, Any], name: str) -> Any:
    return ((record.get("settings") or {}).get(name) or {}).get("value")


def _when(time: Any) -> str:
    """A recorded moment to the minute."""
    return str(time or "")[:16].replace("T", " ")
