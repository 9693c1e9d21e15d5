"""`lgrpo.json`, which lies beside the weights of a checkpoint: what its chain is, and how it was trained to answer."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lgrpo.errors import UserError
from lgrpo.policy import files
from lgrpo.ranges import TEMPERATURE, range_of

CARD = "lgrpo.json"
MARK = "lgrpo"  # entry of config.json, the mode: whoever has the configuration knows that there is a card
_WHOLE = ("max_response", "top_k")  # settings of `rollout` that are whole numbers


@dataclass(frozen=True)
class Card:
    """What `lgrpo.json` holds."""

    mode: str  # "latent" or "explicit"
    recipe: str | None = None  # None: chosen from the model's size
    k: int = 10  # tokens in a superposition
    data: str | None = None  # what it was trained on: the default of later commands
    rollout: dict[str, float] = field(default_factory=dict)  # settings it was trained to answer under, by their names


def read_card(source: str | Path, mark: Any = None) -> Card:
    """`lgrpo.json` of a folder or a hub repository; an explicit model without a recipe where there is none.

    mark: of its configuration, None where it has none. Raises UserError where a card must be there and was not fetched.
    """
    path, certain = Path(source) / CARD, True
    if not Path(source).exists():
        fetched, certain = files.look_for(source, CARD)
        path = fetched or path
    if not path.exists():
        if mark is None or certain:
            return Card("explicit")
        raise never_fetched(source)
    try:
        card = Card(**json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a card lgrpo wrote; delete it to start from the plain model") from error
    if card.mode not in ("latent", "explicit") or type(card.k) is not int or card.k < 1:
        raise UserError(f"{path}: mode must be latent or explicit and k a positive number")
    for name in ("recipe", "data"):
        if not isinstance(getattr(card, name), str | None):
            raise UserError(f"{path}: {name} must be a text or null")
    if not isinstance(card.rollout, dict):
        raise UserError(f"{path}: rollout must hold settings by name")
    rollout: dict[str, float] = {}
    for name, value in card.rollout.items():
        whole = name in _WHOLE
        numbers = TEMPERATURE if name == "temperature" else range_of(name, whole)
        if type(value) not in ((int,) if whole else (int, float)) or not numbers.holds(value):
            kind = "a whole number" if whole else "a number"
            raise UserError(f"{path}: {name[:60]} of rollout must be {kind}, {numbers}")
        rollout[name] = value if whole else float(value)  # somebody may have written 1 for 1.0
    return replace(card, rollout=rollout)


def never_fetched(source: str | Path) -> UserError:
    """Of a checkpoint that would be asked in another way than it was trained."""
    return UserError(
        f"{source}: its {CARD}, which says how it is to be asked, was never fetched, and the hub cannot be asked now; "
        f"`hf download {source} --local-dir FOLDER` where there is a network, and name that folder"
    )
