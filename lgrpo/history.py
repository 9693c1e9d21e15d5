"""What a run has shown so far: the numbers of its steps and its held-out scores, read back from its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lgrpo import forms
from lgrpo.metrics import METRICS
from lgrpo.runs.durable import from_json

RECENT = 3  # steps that are looked at together: one odd batch is no trouble
KEPT = 200  # newest steps that a run which goes on remembers, beside its first ones


def _word(value: Any) -> bool:
    """[text, weight] of a superposition."""
    return isinstance(value, list) and len(value) == 2 and forms.number(value[1])


NUMBERS = {"step": forms.count, **dict.fromkeys(METRICS, forms.number)}
SAMPLE = forms.object_with(
    {"problem": forms.text, "reference": forms.text, "answer": forms.text, "right": forms.anything,
     "latent_length": forms.count, "chain": forms.list_of(forms.list_of(_word))}
)  # fmt: skip
SCORED = forms.object_with({"step": forms.count})
BESIDE_SCORE = {**forms.BESIDE_SCORE, "samples": forms.list_of(SAMPLE)}


@dataclass
class History:
    """`steps`: metrics of each, oldest first, `step` among them. `scores`: the run's held-out events, by step."""

    steps: list[Mapping[str, Any]] = field(default_factory=list)
    scores: list[Mapping[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path) -> History:
        """Of a run folder. Lines that are no JSON object, such as a torn last one, and numbers that are none are
        passed over."""
        lines = (forms.kept(entry, NUMBERS) for entry in read_lines(run / "metrics.jsonl"))
        steps: list[Mapping[str, Any]] = [entry for entry in lines if entry.get("step") is not None]
        newest: dict[int, Mapping[str, Any]] = {}  # a step that was scored again after a resume counts once
        for event in read_lines(run / "events.jsonl"):
            if event.get("event") == "held_out" and SCORED(event) and forms.SCORE(event):
                newest[event["step"]] = forms.kept(event, BESIDE_SCORE)
        return cls(steps, [newest[step] for step in sorted(newest)])

    def add(self, step: Mapping[str, Any]) -> None:
        """Another step; of a long run the middle is forgotten, so that it takes no more memory than a short one."""
        self.steps.append(step)
        if len(self.steps) > 2 * KEPT:
            del self.steps[RECENT:-KEPT]

    def until(self, step: int) -> History:
        """The part of it up to a step, where a run goes on."""
        return History(*([one for one in some if one["step"] <= step] for some in (self.steps, self.scores)))

    def last(self, name: str, count: int = RECENT) -> list[float]:
        """The newest values of a metric, oldest first; empty where not all of the last `count` steps have it."""
        values = [float(step[name]) for step in self.steps[-count:] if step.get(name) is not None]
        return values if len(values) == count else []

    def mean(self, name: str) -> float | None:
        """Of the newest steps; None before there are enough."""
        values = self.last(name)
        return fmean(values) if values else None

    def early(self, name: str) -> float | None:
        """Mean of the first steps; None before there are as many again."""
        values = [step[name] for step in self.steps[:RECENT] if step.get(name) is not None]
        return fmean(values) if len(values) == RECENT and len(self.steps) >= 2 * RECENT else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; empty where there is none. A damaged line is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            entry = from_json(line)
            if entry is not None:
                yield entry
