"""Is there room for a run's checkpoints? Looked at before the first step, not when the disk is full hours later."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from lgrpo.errors import UserError
from lgrpo.optimizer import BLOCK, SMALL
from lgrpo.plan import Setting
from lgrpo.policy import Policy
from lgrpo.text import gigabytes

AT_A_TIME = 4  # best, latest, the one before it, and the one that is being written
BESIDE = 20e6  # tokenizer, report, metrics, samples: what does not grow with the model


def train_bytes(policy: Policy) -> float:
    """On disk at the most, for `train`: weights and optimizer states, several times."""
    return AT_A_TIME * (_weights(policy) + states_bytes(policy.trainable())) + BESIDE


def init_bytes(policy: Policy) -> float:
    """The same for `init`: of progress, which holds encoder and decoder with their states, three; of results, four.

    Labels come on top: 8 K bytes a latent step.
    """
    progress = 2 * (_weights(policy) + states_bytes(policy.model.parameters()))
    return (AT_A_TIME - 1) * progress + AT_A_TIME * _weights(policy) + BESIDE


def states_bytes(parameters: Iterable[nn.Parameter]) -> float:
    """Of an optimizer's states (optimizer.py): two averages of 8 bits with their scales, and what bfloat16 lacks."""
    total = 0.0
    for parameter in parameters:
        size = parameter.numel()
        total += 8 * size if size < SMALL else 2 * size + 8 * size / BLOCK
        total += 2 * size if parameter.element_size() == 2 else 0
    return total


def check_room(folder: Path, need: float) -> Setting:
    """The plan's row of it. Raises UserError where less is free; checkpoints that are there already count as room."""
    try:
        there = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
        held = sum(path.stat().st_size for path in folder.glob("checkpoints/*/*") if path.is_file())
    except OSError as error:
        raise UserError(f"{str(folder)[:200]} cannot be read ({error.strerror}); choose another --out") from error
    free = shutil.disk_usage(there).free + held
    if free < need:
        raise UserError(
            f"{gigabytes(need)} of disk are needed for checkpoints in {folder} and {gigabytes(free)} are free; "
            "free some space or choose another --out"
        )
    return Setting("disk", gigabytes(need), f"checkpoints of {AT_A_TIME} moments at most; {gigabytes(free)} are free")


def _weights(policy: Policy) -> float:
    return sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())
