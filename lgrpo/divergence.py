"""Steps whose loss or gradient is not finite: each is left out, and three in a row end the run with a diagnosis."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lgrpo.errors import UserError

IN_A_ROW = 3  # a single bad batch is bad luck; three are weights that every batch breaks


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of those that hold a number which is not finite."""
    return [name for name, tensor in weights if not bool(torch.isfinite(tensor).all())]


def diverged(where: str, broken: Sequence[str], remedy: str) -> UserError:
    """What to raise: `where` the run stands, which of its weights are `broken` (`not_finite`), and what to do."""
    state = f"{len(broken)} tensors hold numbers that are not finite ({broken[0]} first)" if broken else ""
    return UserError(
        f"{where}: {IN_A_ROW} optimiser steps in a row had a loss or gradient that is not finite; "
        f"{state or 'the weights are finite'}; {remedy}"
    )
