"""The worst case of a run, tried once before its first step: better now than after hours (docs/method.md, 5).

Rollouts of the longest prompts in all slots, then the gradient of the largest micro-batch of the longest rows. Nothing
is stepped, no random number is drawn and nothing is kept. On a CPU, which pages memory where it runs short, the
rollouts are left out: prompts of that length would take longer than a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from lgrpo.budget import single_row_too_long
from lgrpo.chunks import embedding_table
from lgrpo.engine import Engine
from lgrpo.learner import Learner
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Request, Rollout
from lgrpo.runs import Run
from lgrpo.scoring import COLUMNS
from lgrpo.screen import Show


class Trial(NamedTuple):
    """What the worst case came to."""

    slots: int  # rollouts in flight that fit
    micro_tokens: int  # positions of a micro-batch that fit
    peak: int | None  # bytes, measured; None where the device does not count them


def trial(policy: Policy, engine: Engine, learner: Learner, settings: TrainSettings) -> Trial:
    """Run the worst case, with `engine.slots` and the learner's budget halved until it fits.

    UserError where nothing does.
    """
    cuda = policy.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(policy.device)
        fit_slots(policy, engine, settings)
    learner.rehearse(longest_rows(policy, settings))
    peak = torch.cuda.max_memory_reserved(policy.device) if cuda else None  # graphs hold what no tensor does
    torch.cuda.empty_cache()
    return Trial(engine.slots, learner.budget.positions, peak)


def announce(tried: Trial, slots: int, run: Run | None, show: Show) -> None:
    """What the trial came to, kept and said; `slots` is what the plan had."""
    if run is not None:
        run.event("trial", **tried._asdict())
    if tried.slots < slots:
        show.warn(f"{slots} rollouts at a time do not fit; slots is {tried.slots} from here on")
    if tried.peak is not None:
        show.say(f"worst case tried: {tried.peak / 1e9:.1f} GB at the peak")


def fit_slots(policy: Policy, engine: Engine, settings: TrainSettings) -> None:
    """Halve `engine.slots` until the longest rollouts fit."""
    halve_slots(engine, lambda: _roll_out(policy, engine, settings))


def halve_slots(engine: Engine, roll_out: Callable[[], None]) -> None:
    """Halve `engine.slots` until `roll_out()` fits. UserError where one rollout does not."""
    while True:
        try:
            roll_out()
        except torch.OutOfMemoryError:
            pass  # what the attempt holds is freed at the end of this block
        else:
            return
        engine.release()
        if engine.slots == 1:
            raise single_row_too_long()
        engine.slots //= 2


def _roll_out(policy: Policy, engine: Engine, settings: TrainSettings) -> None:
    """All slots at the end of the longest response: one by one, as held-out problems are asked, and in groups.

    The cache of the groups is the one that stands beside an update.
    """
    for prompts, group in ((settings.held_out, 1), (settings.batch, settings.group)):
        rows = min(engine.slots, prompts * group)
        asked = [longest_prompt(policy, settings.max_prompt, number) for number in range(-(-rows // group))]
        engine.rehearse(
            [
                Request(asked[row // group], row, not settings.explicit, settings.noise_scale, settings.temperature)
                for row in range(rows)
            ]
        )
    if not settings.keep_cache:
        engine.release()


def longest_rows(policy: Policy, settings: TrainSettings) -> list[Rollout]:
    """Rollouts that fill a micro-batch with the longest rows; half of each response is latent."""
    length, k = settings.max_response, settings.k
    tokens = torch.full((length,), policy.pad_id)
    tokens[: 0 if settings.explicit else length // 2] = LATENT
    latent = (tokens == LATENT)[:, None]
    indices = torch.arange(k).expand(length, k) * latent
    scores = -torch.arange(k).float().expand(length, k) * latent
    columns = min(COLUMNS, settings.micro_tokens)
    together = min(settings.group, max(1, (columns - settings.max_prompt) // length))  # behind one copy of the prompt
    rows = max(1, settings.micro_tokens // (settings.max_prompt + together * length))
    prompts = [longest_prompt(policy, settings.max_prompt, number) for number in range(rows)]
    return [
        Rollout(prompt, tokens, indices, scores, torch.zeros(length), True)
        for prompt in prompts
        for _ in range(together)
    ]


def longest_prompt(policy: Policy, length: int, number: int) -> tuple[int, ...]:
    """A prompt of its own for each number."""
    return (number % len(embedding_table(policy)), *[policy.pad_id] * (length - 1))
