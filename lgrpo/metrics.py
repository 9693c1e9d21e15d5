"""The numbers of a run: what each is called, how it is written, and what it means.

`metrics.jsonl` has them by `name`, one object a step; the screen, the report and the trackers show the same ones.
"""

from dataclasses import dataclass
from typing import Any

from lgrpo.text import gigabytes, number


@dataclass(frozen=True)
class Metric:
    """One number of a step."""

    name: str
    label: str
    kind: str  # "number", "share" of 1, "score" of 1, "count", "rate", "seconds", "bytes" or "length" in positions
    group: str
    meaning: str

    def write(self, value: Any) -> str:
        """The value for people."""
        return write(self.kind, value)


def write(kind: str, value: Any) -> str:
    """A number of a kind (see `Metric`) for people; what is no number, as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == float("inf"):
        return number(value)
    if kind == "share":
        return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"
    if kind == "score":
        return f"{value:.3f}"
    if kind == "length":
        return f"{value:.1f}"
    if kind in ("count", "rate"):
        return f"{value:,.0f}"
    if kind == "seconds":
        return f"{value:.1f} s" if value < 99.95 else f"{value:,.0f} s"
    if kind == "bytes":
        return gigabytes(value)
    return number(float(value))


_TRAIN = (
    Metric("reward", "reward", "score", "batch", "mean reward of all rollouts of the step, noise on"),
    Metric("signal", "signal", "share", "batch", "groups, of those drawn, whose rewards differ and leave an advantage"),
    Metric("groups", "groups", "count", "batch", "groups that are learnt from"),
    Metric("drawn", "drawn", "count", "batch", "groups that were rolled out to find them"),
    Metric("latent", "latent", "length", "chain", "latent steps of a response"),
    Metric("explicit", "explicit", "length", "chain", "ordinary tokens of a response"),
    Metric("invalid", "invalid", "share", "chain", "rollouts cut off at the length limit, and broken ones"),
    Metric("boxed", "boxed", "share", "chain", "responses with an answer in \\boxed{}"),
    Metric("loss", "loss", "number", "update", "clipped policy loss, and KL where it is on; in `init`, cross-entropy"),
    Metric("kl", "KL", "number", "update", "to the initial policy, a position (k3); 0 where it is off"),
    Metric("clip_fraction", "clipped", "share", "update", "positions whose ratio is outside 1 ± clip"),
    Metric("grad_norm", "grad norm", "number", "update", "before clipping"),
    Metric("moved", "moved", "share", "update", "weights whose exact value changed, in a sample of each tensor"),
    Metric("rollout_gap", "gap", "number", "update", "mean |log-probability of rollout - of training|"),
    Metric("broken", "broken", "count", "chain", "rollouts that ended where the logits were no numbers"),
    Metric("unchecked", "unchecked", "share", "batch", "answers that could not be checked, and count as wrong"),
    Metric("skipped", "skipped", "count", "update", "optimiser steps left out: loss or gradient was not finite"),
    Metric("padding", "padding", "share", "update", "positions of micro-batches that hold nothing"),
    Metric("rollout_s", "rollout", "seconds", "time", "rolling out"),
    Metric("verify_s", "verify", "seconds", "time", "checking answers"),
    Metric("update_s", "update", "seconds", "time", "learning"),
    Metric("tokens_per_s", "tokens/s", "rate", "device", "positions rolled out, by the time it took"),
    Metric("positions", "positions", "count", "time", "rolled out in the step"),
    Metric("memory_used", "memory", "bytes", "device", "reserved on a GPU at the peak; resident on a CPU"),
    Metric("memory_free", "free", "bytes", "device", "left on the device"),
)
_INIT = (
    Metric("text", "text loss", "number", "update", "cross-entropy of end marker and answer"),
    Metric("chain", "chain KL", "number", "update", "from the soft labels, a latent step"),
    Metric("entropy", "entropy", "number", "update", "of the soft labels, in nats; in the event `labels` alone"),
)
METRICS = {metric.name: metric for metric in (*_TRAIN, *_INIT)}


def label(name: str) -> str:
    """What a number is called on a screen."""
    return METRICS[name].label if name in METRICS else name


def group(name: str) -> str:
    """The group a number belongs to; none where it is no metric."""
    return METRICS[name].group if name in METRICS else ""


def shown(name: str, value: Any) -> str:
    """A number of that name for people."""
    return METRICS[name].write(value) if name in METRICS else number(value)
