"""What every command needs first: the device, the model, the problems."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lgrpo import checkpoints, noise, tiny
from lgrpo.answers import boxed
from lgrpo.engine import Engine
from lgrpo.errors import UserError
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import CARD, Policy
from lgrpo.problems import Problem, read_problems
from lgrpo.rollout import Request

RUNS = Path("runs")
ARITHMETIC = "arithmetic"
PROBED = 16  # problems a foreign checkpoint is tried on


def pick_device(asked: str | None) -> Setting:
    """The device asked for, else the first GPU, else the CPU. Raises UserError when it is not there."""
    if asked is None:
        if torch.cuda.is_available():
            return Setting("device", "cuda", f"found {torch.cuda.get_device_name()}")
        return Setting("device", "cpu", f"no GPU found; {torch.get_num_threads()} threads")
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"device {asked!r} cannot be used ({reason}); try --device cpu") from error
    return Setting("device", asked, "you set it")


def load(source: str | None, device: str) -> Policy:
    """The policy of a run folder, a model folder or a hub name; None is the embedded tiny model."""
    if source is None:
        policy = Policy.load(tiny.MODEL, device)
        policy.name = "tiny"
        return policy
    return Policy.load(checkpoints.resolve_checkpoint(source), device)


def newest(commands: Sequence[str] = ("train", "init")) -> Path:
    """The newest run here. Raises UserError when there is none."""
    found = checkpoints.newest_run(RUNS, commands)
    if found is None:
        raise UserError(f"there is no run in {RUNS}/ yet; `lgrpo train` makes one, or name a checkpoint")
    return found


def problems_for(policy: Policy, data: str | None, split: str, limit: int | None) -> tuple[list[Problem], str]:
    """Problems and the name of their source: `data`, else what the policy was trained on.

    Raises UserError when neither is known, or when a file is to serve as its own test set.
    """
    source = data or policy.card.data or (ARITHMETIC if policy.name == "tiny" else None)
    if source is None:
        raise UserError(f"{policy.name} does not say what it was trained on; give --data FILE or a hub name")
    if split == "test" and data is None and Path(source).is_file():
        raise UserError(f"{policy.name} was trained on {source}; give --data with problems it has not seen")
    return read_problems(source, split=split, limit=limit), source


def fitting(policy: Policy, problems: Sequence[Problem], max_prompt: int, latent: bool) -> tuple[list[Problem], int]:
    """Problems whose prompt has at most `max_prompt` positions, and how many were left out."""
    fit = [one for one in problems if len(policy.prompt_ids(one.problem, latent)) <= max_prompt]
    if not fit:
        raise UserError(f"every prompt is longer than {max_prompt} positions; try --recipe high")
    return fit, len(problems) - len(fit)


def has_latent_chain(policy: Policy, source: str, problems: Sequence[Problem], settings: TrainSettings) -> bool:
    """Whether the policy reasons in latent steps already.

    `lgrpo.json` says so; a checkpoint without one is tried: it does when at least half of a few noise-free
    chains end by themselves and a boxed answer follows.
    """
    if policy.latent or (Path(source) / CARD).is_file():
        return policy.latent
    prompts = [(one, tuple(policy.prompt_ids(one.problem, latent=True))) for one in problems[:PROBED]]
    engine = Engine(policy, settings.latent_settings, settings.text_settings, settings.max_response, PROBED)
    rollouts = engine.generate([Request(ids, noise.row_key(0, one.key, 0), True, 0.0) for one, ids in prompts])
    walked = [r.valid and boxed(policy.decode(r.hard_tokens)) is not None for r in rollouts]
    return 2 * sum(walked) >= len(walked)


def identity(**options: Any) -> dict[str, Any]:
    """What makes two runs the same one, in a form JSON keeps."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
