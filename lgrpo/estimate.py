"""How long a run will take, roughly, before it begins: a moment's work is timed on the device, and multiplied.

Timed are a pass forward and backward, and a few real rollouts. The estimate is of the first steps' kind: what changes
later (shorter chains, more draws for a batch with signal, other programs on the machine) is in the dashboard's ETA.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from lgrpo import chunks, noise
from lgrpo.engine import EAGER, Engine
from lgrpo.latent_sft.examples import encode
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy
from lgrpo.policy.checkpointing import checkpointed
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout
from lgrpo.text import duration

ENOUGH = 0.1  # seconds of work that are worth timing
TRIES = 3  # the quickest counts: others wait for other programs
LENGTH = 128  # positions of a row of it
MOST = 32  # rows of it
PROBED = 8  # rollouts
SOME = 64  # problems whose lengths stand for all
RESPONSE = 256  # positions of them at most: longer ones take too long to wait for, and count as the longest


UNKNOWN = Setting("time", "unknown", "no memory to time a moment's work with")


@dataclass(frozen=True)
class Speed:
    """What was timed, in seconds."""

    position: float  # forward and backward, without the output head
    step: float  # a decode step of `PROBED` rows
    rows: float  # how many times that a step takes for the rollouts in flight
    head: float  # the output head's work for a position, over the rest of the model's


def train_time(policy: Policy, settings: TrainSettings, problems: Sequence[Problem]) -> Setting:
    """The line of the plan for `train`."""
    try:
        return _train_time(policy, settings, problems)
    except torch.OutOfMemoryError:  # the worst case, tried soon, finds out what fits
        return UNKNOWN


def init_time(policy: Policy, schedule: Schedule, problems: Sequence[Problem]) -> Setting:
    """The line of the plan for `init`: the passes of all its parts."""
    try:
        return _init_time(policy, schedule, problems)
    except torch.OutOfMemoryError:
        return UNKNOWN


def _train_time(policy: Policy, settings: TrainSettings, problems: Sequence[Problem]) -> Setting:
    in_flight = min(settings.slots, settings.batch * settings.group)
    speed, response = _measure(policy, settings, problems, in_flight)
    prompt = _prompt(policy, problems, latent=not settings.explicit)
    step = _step(speed, settings, prompt, response, in_flight)
    scores = settings.steps // settings.eval_every + 1
    score = _rollout(speed, settings.held_out, settings.held_out, prompt, response, settings.slots)
    whole = settings.steps * step + scores * score
    how = f"{settings.steps} batches of {duration(step) if step >= 1 else f'{step:.1f} s'} and {scores} scores, "
    how += "measured" if response < settings.max_response else "measured, every response at its longest"
    return Setting("time", f"about {duration(whole)}", f"{how}; more where few groups have signal")


def _init_time(policy: Policy, schedule: Schedule, problems: Sequence[Problem]) -> Setting:
    position = _position(policy, schedule.checkpointing, schedule.micro_tokens)
    limits = schedule.max_prompt, schedule.max_chain, schedule.max_response
    some = encode(policy, problems[:SOME], schedule.ratio, *limits).examples
    if not some:
        return Setting("time", "unknown", f"none of the first {SOME} problems can be learnt from")
    prompt, chain, answer = (
        fmean(map(len, part)) for part in zip(*((e.prompt, e.chain, e.response) for e in some), strict=True)
    )
    latents = chain / schedule.ratio
    compress, read, walk = prompt + chain + latents, prompt + chain + latents + answer, prompt + latents + answer
    forward = 1 / 3  # of forward and backward together
    passes = {  # positions a row that go forward and backward
        "warm_up_steps": compress,
        "encoder_steps": compress + read,
        "decoder_steps": forward * compress + read,
        "joint_steps": compress + read,
        "walk_steps": walk,
    }
    work = sum(getattr(schedule, name) * positions for name, positions in passes.items()) * schedule.batch
    labelled = min(len(problems), schedule.walk_steps * schedule.batch)
    work += forward * compress * labelled
    return Setting(
        "time", f"about {duration(work * position)}", f"{schedule.steps} steps and {labelled} labels, measured"
    )


def _step(speed: Speed, settings: TrainSettings, prompt: float, response: float, in_flight: int) -> float:
    """Seconds of one batch: its rollouts, then the passes that learn from it."""
    rollouts = settings.batch * settings.group
    roll = _rollout(speed, rollouts, settings.batch, prompt, response, in_flight)
    minis = max(1, settings.batch // settings.update_batch)
    passes = 1 + (minis - 1) / minis / 3 + (1 / 3 if settings.kl else 0)  # learning, old policy, initial policy
    positions = settings.batch * prompt + rollouts * response * (1 + speed.head)
    return roll + passes * positions * speed.position


def _rollout(speed: Speed, rollouts: int, prompts: int, prompt: float, response: float, in_flight: int) -> float:
    """Seconds to prefill and decode so many."""
    waves = max(1.0, rollouts / in_flight)
    return prompts * prompt * speed.position / 3 + waves * response * speed.step * speed.rows


def _measure(policy: Policy, settings: TrainSettings, problems: Sequence[Problem], rows: int) -> tuple[Speed, float]:
    """(speeds, mean positions of a response)."""
    hidden = policy.model.config.get_text_config().hidden_size
    table = len(chunks.embedding_table(policy))
    rest = max(1, sum(parameter.numel() for parameter in policy.trainable()))
    position = _position(policy, settings.checkpointing, settings.micro_tokens)
    rollouts, seconds = _probe(policy, settings, problems)
    longest = max(rollout.length for rollout in rollouts)
    cut = sum(not rollout.valid for rollout in rollouts)
    mean = fmean(rollout.length for rollout in rollouts)
    response = settings.max_response if 2 * cut > len(rollouts) else mean
    more = _forward(policy, rows, 1) / max(_forward(policy, PROBED, 1), 1e-9)
    return Speed(position, seconds / longest, max(1.0, more), table * hidden / rest), response


def _probe(policy: Policy, settings: TrainSettings, problems: Sequence[Problem]) -> tuple[list[Rollout], float]:
    """A few rollouts of real problems, and how long they took."""
    limit = min(RESPONSE, settings.max_response)
    engine = Engine(policy, settings.latent_settings, settings.text_settings, limit, PROBED)
    engine.pace = EAGER  # graphs pay for longer work
    requests = []
    for one in problems[:PROBED]:
        prompt = tuple(policy.prompt_ids(one.problem, latent=not settings.explicit))
        key = noise.row_key(settings.seed, one.key, 0)
        requests.append(Request(prompt, key, not settings.explicit, settings.noise_scale, settings.temperature))
    began = time.monotonic()
    rollouts = engine.generate(requests)
    took = time.monotonic() - began
    engine.release()
    return rollouts, took


def _position(policy: Policy, checkpointing: bool, micro_tokens: int) -> float:
    """Seconds that a position takes forward and backward, in as much work as is worth timing and fits a micro-batch."""
    rows, most = 1, min(MOST, micro_tokens // LENGTH)
    with checkpointed(checkpointing, policy.model):
        _pass(policy, rows, LENGTH)  # the first one of a process is none to judge by
        while True:
            took = min(_pass(policy, rows, LENGTH) for _ in range(TRIES))
            if took >= ENOUGH or 2 * rows > most:
                return took / (rows * LENGTH)
            rows *= 2


def _pass(policy: Policy, rows: int, length: int) -> float:
    """Seconds of forward and backward of `rows` rows of `length` positions; leaves no gradient."""
    parameters = list(policy.model.parameters())
    kept = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    trained = {id(parameter) for parameter in policy.trainable()}
    for parameter in parameters:
        parameter.requires_grad_(id(parameter) in trained)
    began = time.monotonic()
    with torch.enable_grad():
        _hidden(policy, rows, length).float().square().mean().backward()
    _wait(policy.device)
    took = time.monotonic() - began
    for parameter, gradient, requires in kept:
        parameter.grad = gradient
        parameter.requires_grad_(requires)
    return took


@torch.no_grad()
def _forward(policy: Policy, rows: int, length: int) -> float:
    """Seconds of a forward pass, the second of two."""
    for _ in range(2):
        began = time.monotonic()
        _hidden(policy, rows, length)
        _wait(policy.device)
    return time.monotonic() - began


def _hidden(policy: Policy, rows: int, length: int) -> torch.Tensor:
    size, device = policy.model.config.get_text_config().hidden_size, policy.device
    embeds = torch.zeros(rows, length, size, dtype=policy.dtype, device=device)
    causal = torch.ones(1, length, length, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)
    # All at position 0, which takes as long: the model may have fewer positions than are timed.
    return policy.hidden(embeds, causal, torch.zeros(rows, length, dtype=torch.int64, device=device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _prompt(policy: Policy, problems: Sequence[Problem], latent: bool) -> float:
    """Mean positions of a prompt."""
    return fmean(len(policy.prompt_ids(one.problem, latent)) for one in problems[:SOME])
