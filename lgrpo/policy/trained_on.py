"""Which problems a checkpoint was trained on: beside its weights, so that a copied or published one still knows.

    trained_on.safetensors    {"texts": int64 [M]}, sorted: a hash of the normalised text of each

Eight bytes a problem. That one of a thousand new problems is taken for one of a million known ones by chance has a
probability of 5e-11.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lgrpo.errors import UserError
from lgrpo.policy import files
from lgrpo.problems import Problem, text_hash
from lgrpo.runs.contents import compare

FILE, _NAME = "trained_on.safetensors", "texts"
_OLDER = "problems"  # of letters and digits alone: not to be compared with


def nothing() -> Tensor:
    """int64 [0]: of a model that does not say, or was trained on no problem."""
    return torch.zeros(0, dtype=torch.int64)


def joined(before: Tensor, problems: Sequence[Problem]) -> Tensor:
    """int64 [M]: those known before and these, each once."""
    return torch.cat([before, _hashes(problems)]).unique()


def count(known: Tensor, problems: Sequence[Problem]) -> int:
    """How many of `problems` are among the known ones, in whatever case and punctuation."""
    return int(torch.isin(_hashes(problems), known).sum())


def _hashes(problems: Sequence[Problem]) -> Tensor:
    return torch.tensor([text_hash(problem) for problem in problems], dtype=torch.int64)


def write(folder: Path, known: Tensor) -> None:
    """Into an existing folder, nothing where nothing is known. Raises OSError where they read back as others."""
    from safetensors.torch import save_file

    if len(known):
        save_file({_NAME: known}, folder / FILE)
        compare([folder / FILE], {_NAME: known})


def read(source: str | Path) -> tuple[Tensor, bool]:
    """(int64 [M] of a folder or a hub name, nothing where it does not say; whether that is certain).

    A file of an older form says nothing for certain. Raises UserError where it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, certain = files.look_for(source, FILE)
    if path is None:
        return nothing(), certain
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path) from error
    if tensors.keys() == {_OLDER}:
        return nothing(), False
    known = tensors.get(_NAME)
    if known is None or known.dtype != torch.int64 or known.dim() != 1:
        raise _damaged(path)
    return known, True


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; copy it again, or delete it and lose the check for known problems")
