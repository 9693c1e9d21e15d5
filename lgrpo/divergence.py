"""Steps whose loss or gradient is not finite: each is left out, and three in a row end the run with a diagnosis."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lgrpo.errors import UserError

IN_A_ROW = 3  # a single bad batch is bad luck; three are weights that every batch breaks


def diverged(where: str, weights: Iterable[tuple[str, Tensor]], remedy: str) -> UserError:
    """What to raise: `where` the run stands, whether its `weights` are numbers still, and what to do."""
    bad = [name for name, tensor in weights if not bool(torch.isfinite(tensor).all())]
    state = f"{len(bad)} tensors hold numbers that are not finite ({bad[0]} first)" if bad else "the weights are finite"
    return UserError(
        f"{where}: {IN_A_ROW} optimiser steps in a row had a loss or gradient that is not finite; {state}; {remedy}"
    )
