"""Is the run well? Each number that matters has a range; outside it, what is wrong in words, and what usually helps.

Ranges are wide: what a healthy run was seen to do stays inside (docs/log.md), and what is named is worth a look, not
yet a verdict. Nothing here changes a run. The docstring of a check says its range; docs/metrics.md is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from lgrpo.history import KEPT, RECENT, History

REFERENCES = "are the reference answers well-formed? The reasons are counted when the run ends"


@dataclass(frozen=True)
class Trouble:
    """What is wrong, and what usually helps."""

    name: str  # of the range; the same trouble keeps it while its numbers change
    what: str
    help: str


def troubles(history: History) -> list[Trouble]:
    """Everything that is out of its range now, the gravest first."""
    return [trouble for check in CHECKS for trouble in check(history)]


def _reward_at_0(history: History) -> Iterator[Trouble]:
    """`reward`: above 0 in one of the last 3 steps."""
    reward = history.last("reward")
    if not reward or max(reward) > 0:
        return
    what = f"reward is stuck at 0: no rollout of the last {RECENT} steps was right"
    invalid, boxed = history.mean("invalid") or 0.0, history.mean("boxed") or 0.0
    if invalid > 0.5:
        yield Trouble("reward", f"{what}, and {invalid:.0%} were cut off", "allow more: --set max_response=N")
    elif boxed < 0.5:
        remedy = "the model must answer in \\boxed{}: start from a model that does, or give `lgrpo init` more steps"
        yield Trouble("reward", f"{what}, and {boxed:.0%} end in \\boxed{{}}", remedy)
    else:
        remedy = "compare the sample with its reference: is `answer` in the data what a box should hold? easier data?"
        yield Trouble("reward", f"{what}, though {boxed:.0%} end in \\boxed{{}}", remedy)


def _reward_at_1(history: History) -> Iterator[Trouble]:
    """`reward`: at most 98 %."""
    reward = history.mean("reward")
    if reward is not None and reward > 0.98:
        yield Trouble(
            "reward", f"{reward:.1%} of the rollouts are right: little is left to learn", "take harder --data"
        )


def _signal(history: History) -> Iterator[Trouble]:
    """`groups`: above 0 in one of the last 3 steps.

    `signal`: at least 5 %.
    """
    groups, signal = history.last("groups"), history.mean("signal")
    if groups and max(groups) == 0:
        what = f"no group of the last {RECENT} steps had signal (all its rewards were equal): nothing is learnt"
        yield Trouble("signal", what, "problems the model solves sometimes: other --data, or --set group=16")
    elif signal is not None and signal < 0.05:
        what = f"only {signal:.1%} of the groups have signal; most of the time goes into finding them"
        yield Trouble("signal", what, "problems the model solves sometimes: other --data, or --set group=16")


def _latent_share(history: History) -> Iterator[Trouble]:
    """`latent`: more than half of what it was in the first 3 steps."""
    before, now = history.early("latent"), history.mean("latent")
    if before is None or now is None or before < 1 or now > 0.5 * before:
        return
    text = f"explicit {history.early('explicit'):.1f} -> {history.mean('explicit'):.1f}"
    what = f"the latent chain is collapsing: {before:.1f} -> {now:.1f} steps, {text}"
    yield Trouble("latent", what, "a lower --lr, or go back to the best checkpoint")


def _cut_off(history: History) -> Iterator[Trouble]:
    """`invalid`: at most 20 %."""
    invalid = history.mean("invalid")
    if invalid is not None and invalid > 0.2:
        remedy = "allow more: --set max_response=N; if it grows step by step, a lower --lr"
        yield Trouble("invalid", f"{invalid:.0%} of the rollouts are cut off at the length limit", remedy)


def _divergence(history: History) -> Iterator[Trouble]:
    """`kl`: at most 0.5."""
    kl = history.mean("kl")
    if kl is not None and kl > 0.5:
        what = f"KL to the initial policy is {kl:.2f} a position: the policy is running away"
        yield Trouble("kl", what, "a lower --lr, or a higher --set kl=N")


def _clipping(history: History) -> Iterator[Trouble]:
    """`clip_fraction`: at most 30 %."""
    clipped = history.mean("clip_fraction")
    if clipped is not None and clipped > 0.3:
        what = f"{clipped:.0%} of the positions are clipped: steps are too long"
        yield Trouble("clip_fraction", what, "a lower --lr, or a larger --set update_batch=N")


def _gradient(history: History) -> Iterator[Trouble]:
    """`skipped`: 0 in all of the last 3 steps.

    `grad_norm`: the newest at most 20 times the median of those before it, from the 11th step on.
    """
    newest = history.steps[-1] if history.steps else {}
    if "reward" in newest or "text" in newest:
        lower = "a lower --lr"
    else:  # parts of `init` before the walk, which alone has that rate
        lower = "a lower rate of this part, --set warm_up_lr=N, encoder_lr=N, decoder_lr=N or joint_lr=N"
    if sum(history.last("skipped")) > 0:
        what = f"gradients were not finite in the last {RECENT} steps; those optimiser steps were left out"
        yield Trouble("skipped", what, f"{lower}; if it goes on, go back to the best checkpoint")
    norms = [step["grad_norm"] for step in history.steps[-KEPT:] if step.get("grad_norm") is not None]
    if len(norms) > 10 and norms[-1] > 20 * (usual := median(norms[:-1])) > 0:
        what = f"the gradient is {norms[-1]:.3g}, usually {usual:.3g}"
        yield Trouble("grad_norm", what, f"it is clipped; if it goes on, {lower}")


def _nothing_moves(history: History) -> Iterator[Trouble]:
    """`moved`: at least 50 %."""
    moved = history.mean("moved")
    if history.mean("reward") is None:  # Latent-SFT's rate falls to nothing by itself
        return
    if moved is not None and moved < 0.5:
        what = f"only {moved:.1%} of the weights move: the learning rate is lost in rounding"
        yield Trouble("moved", what, "a higher --lr")


def _engine(history: History) -> Iterator[Trouble]:
    """`rollout_gap`: at most 0.1.

    `broken`: 0 in all of the last 3 steps.
    """
    gap = history.mean("rollout_gap")
    if gap is not None and gap > 0.1:
        what = f"rollouts and training disagree by {gap:.2f} in a log-probability"
        yield Trouble("rollout_gap", what, "LGRPO_EAGER=1 leaves out CUDA graphs; if it stays, please report it")
    if sum(history.last("broken")) > 0:
        what = f"logits were no numbers in rollouts of the last {RECENT} steps"
        yield Trouble("broken", what, "the weights may be damaged: go back to the best checkpoint, with a lower --lr")


def _verifier(history: History) -> Iterator[Trouble]:
    """`unchecked`: at most 1 %."""
    unchecked = history.mean("unchecked")
    if unchecked is not None and unchecked > 0.01:
        what = f"{unchecked:.1%} of the answers could not be checked and count as wrong"
        yield Trouble("unchecked", what, REFERENCES)


def _held_out_unchecked(history: History) -> Iterator[Trouble]:
    """`unchecked` of the held-out answers: 0 in the newest score."""
    score = history.scores[-1] if history.scores else {}
    if count := score.get("unchecked"):
        what = f"{count} of the {score.get('problems')} held-out answers could not be checked and count as wrong"
        yield Trouble("held_out_unchecked", what, REFERENCES)


def _held_out(history: History) -> Iterator[Trouble]:
    """`pass@1`: one of the last two at most 3 standard errors below the best, from the third on."""
    scores = [score for score in history.scores if score.get("pass@1") is not None]
    if len(scores) < 3:
        return
    best = max(scores, key=lambda score: float(score["pass@1"]))
    bound = best["pass@1"] - 3 * best["pass@1_se"]
    if all(score["pass@1"] < bound for score in scores[-2:]):
        what = f"held-out Pass@1 fell from {best['pass@1']:.3f} (step {best['step']}) to {scores[-1]['pass@1']:.3f}"
        yield Trouble("held_out", what, "the best checkpoint is kept; a lower --lr")


def _walk(history: History) -> Iterator[Trouble]:
    """Of a model that learns its first latent chain, what its held-out answers look like.

    `pass@1` while the first chain is learnt: above 0 in one of the last two.

    `invalid` while the first chain is learnt: at most 20 %, from the second on.
    """
    if len(history.scores) < 2 or "reward" in (history.steps[-1] if history.steps else {}):
        return
    score = history.scores[-1]
    if all(one["pass@1"] == 0 for one in history.scores[-2:]):
        what = f"no held-out answer was right in the last two scores; {score['invalid']:.0%} were cut off"
        yield Trouble("held_out", what, "more --steps, or data closer to what the model can do")
    elif score["invalid"] > 0.2:
        what = f"{score['invalid']:.0%} of the held-out chains do not end"
        yield Trouble("invalid", what, "more --steps; or longer responses: --set max_response=N")


def _memory(history: History) -> Iterator[Trouble]:
    """`memory_free`: the newest at least 3 % of what is used and free together."""
    free, used = history.last("memory_free", 1), history.last("memory_used", 1)
    if free and used and free[0] < 0.03 * (free[0] + used[0]):
        what = f"{free[0] / 1e9:.1f} GB of memory are left"
        yield Trouble("memory", what, "nothing is lost if it runs out; other programs on the device take their share")


CHECKS: Sequence[Callable[[History], Iterator[Trouble]]] = (
    _reward_at_0,
    _engine,
    _gradient,
    _held_out,
    _latent_share,
    _divergence,
    _nothing_moves,
    _walk,
    _signal,
    _reward_at_1,
    _cut_off,
    _clipping,
    _verifier,
    _held_out_unchecked,
    _memory,
)
