"""Settings of `train`, `sample` and `eval`: one home for each default, with its reason.

`low` and `high` are the two published settings (Latent-GRPO, arXiv 2604.27998; docs/method.md, 5); `tiny` is
for the embedded model on a CPU, its values chosen by the experiments in docs/log.md. Latent-SFT's own schedule
stands in latent_sft/schedule.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from lgrpo.engine.decode import TextSettings
from lgrpo.errors import UserError
from lgrpo.ranges import ROLLOUTS
from lgrpo.superposition import LatentSettings

RECIPES = ("tiny", "low", "high")
# See TrainSettings.rollout. one_sided is none of them: it moves all scores of a step alike, and no rollout.
ROLLOUT = ("max_response", "tau", "noise_scale", "noise_top_p", "temperature", "top_p", "top_k")


class Setting(NamedTuple):
    """One line of the plan a user sees."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides what a training run computes."""

    recipe: str
    explicit: bool  # ordinary GRPO: no latent chain
    seed: int
    steps: int
    batch: int  # prompts with signal in a batch
    update_batch: int  # prompts in an optimiser step
    group: int  # rollouts a prompt, G
    draws: int  # at most, in search of prompts with signal; each is of a batch at most
    max_prompt: int  # positions
    max_response: int  # positions, latent and explicit together
    k: int
    tau: float
    noise_scale: float
    one_sided: bool
    noise_top_p: float
    temperature: float
    top_p: float
    top_k: int
    surrogate: str
    mask_invalid: bool
    keep_invalid_in_statistics: bool
    first_token: bool
    clip: float
    dual_clip: float
    kl: float
    lr: float
    weight_decay: float
    max_grad_norm: float
    limit: int  # problems of the data that are used, the first ones; 0: all
    held_out: int  # problems of the training data kept for choosing the checkpoint
    eval_every: int  # steps
    slots: int  # rollouts in flight
    micro_tokens: int  # positions in a micro-batch
    keep_cache: bool  # the rollouts' cache stays on the device while the policy is updated
    checkpointing: bool  # layers are computed again in the backward pass, to save memory

    @property
    def latent_settings(self) -> LatentSettings:
        weighted = self.surrogate == "weighted"
        return LatentSettings(self.k, self.tau, self.noise_scale, self.one_sided, self.noise_top_p, weighted)

    @property
    def rollout(self) -> dict[str, float]:
        """What a checkpoint's card keeps, so that later commands ask it the way it was trained."""
        return {name: getattr(self, name) for name in ROLLOUT}

    @property
    def text_settings(self) -> TextSettings:
        return TextSettings(self.temperature, self.top_p, self.top_k)


_PAPER = "published"
_SHARED: dict[str, tuple[Any, str]] = {
    "limit": (0, "all problems"),
    "group": (8, _PAPER),
    "draws": (50, _PAPER),
    "tau": (1.0, _PAPER),
    "noise_scale": (1.0, _PAPER),
    "one_sided": (True, "published: margins stay positive"),
    "noise_top_p": (0.95, _PAPER),
    "temperature": (0.6, _PAPER),
    "top_p": (0.95, _PAPER),
    "top_k": (30, _PAPER),
    "mask_invalid": (True, "published: cut-off rollouts teach nothing"),
    "first_token": (True, "published: one first step per group"),
    "clip": (0.2, _PAPER),
    "dual_clip": (3.0, _PAPER),
    "weight_decay": (0.01, _PAPER),
    "max_grad_norm": (1.0, _PAPER),
}
_RECIPES: dict[str, dict[str, tuple[Any, str]]] = {
    "tiny": {
        **_SHARED,
        "steps": (100, "about ten minutes on two cores"),
        "noise_scale": (0.25, "what is learnt under it serves without it; under 1.0 it does not (docs/log.md)"),
        "batch": (64, "as `low`"),
        "update_batch": (16, "as `low`"),
        "max_prompt": (512, "arithmetic needs 60; the tokenizer spells other words in bytes, and GSM8K needs 460"),
        "max_response": (64, "three times an explicit chain"),
        "surrogate": ("weighted", "the published mean over K did not learn at this scale (docs/log.md)"),
        "keep_invalid_in_statistics": (True, "as `low`"),
        "kl": (0.0, "as `low`"),
        "lr": (5e-5, "twice that gains no more, six times that loses (docs/log.md)"),
        "held_out": (1024, "standard error of 1 point: fine enough to choose among ten checkpoints"),
        "eval_every": (10, "about once a minute"),
    },
    "low": {
        **_SHARED,
        "steps": (300, "19,200 prompts with signal"),
        "batch": (64, _PAPER),
        "update_batch": (16, _PAPER),
        "max_prompt": (192, _PAPER),
        "max_response": (128, _PAPER),
        "surrogate": ("published", _PAPER),
        "keep_invalid_in_statistics": (True, _PAPER),
        "kl": (0.0, _PAPER),
        "lr": (1e-6, _PAPER),
        "held_out": (256, "standard error of 3 points"),
        "eval_every": (10, "a tenth of the time at most"),
    },
    "high": {
        **_SHARED,
        "steps": (500, _PAPER),
        "batch": (32, _PAPER),
        "update_batch": (32, _PAPER),
        "max_prompt": (1024, _PAPER),
        "max_response": (4096, _PAPER),
        "surrogate": ("published", _PAPER),
        "keep_invalid_in_statistics": (False, _PAPER),
        "kl": (0.001, _PAPER),
        "lr": (1e-6, _PAPER),
        "held_out": (64, "a quarter of a batch's rollouts; standard error of 6 points"),
        "eval_every": (20, "a tenth of the time at most"),
    },
}


def choose_recipe(card_recipe: str | None, asked: str | None, parameters: int) -> Setting:
    """The recipe asked for, else the checkpoint's own, else by the model's size."""
    if asked is not None:
        return Setting("recipe", asked, "you set it")
    if card_recipe is not None:
        if card_recipe not in RECIPES:
            raise UserError(f"the checkpoint names the recipe {card_recipe!r}; give --recipe {'|'.join(RECIPES)}")
        return Setting("recipe", card_recipe, "from the checkpoint")
    size = "tiny" if parameters < 20e6 else "low" if parameters < 3e9 else "high"
    return Setting("recipe", size, f"from the model: {parameters / 1e6:,.1f} M parameters")


def train_settings(
    recipe: Setting,
    *,
    k: int,
    seed: int = 0,
    explicit: bool = False,
    without: Iterable[str] = (),
    **chosen: Any,
) -> tuple[TrainSettings, list[Setting]]:
    """Settings of a training run and the plan that explains them.

    `chosen` overrides single settings; None leaves one alone. Raises UserError on a value out of range.
    """
    table = dict(_RECIPES[recipe.value])
    table["recipe"] = (recipe.value, recipe.reason)
    table["seed"] = (seed, "default" if seed == 0 else "you set it")
    table["explicit"] = (explicit, "you set it" if explicit else "the chain is latent")
    table["k"] = (k, "from the checkpoint")
    table["slots"] = (512, "the rollouts of a whole batch")
    table.setdefault("micro_tokens", (4096, "keeps the device busy"))
    table["keep_cache"] = (True, "there is memory enough")
    table["checkpointing"] = (False, "there is memory enough")
    switches = {"masking": "mask_invalid", "one-sided": "one_sided", "first-token": "first_token"}
    for technique in without:
        table[switches[technique]] = (False, f"you set --without {technique}")
    if explicit:
        table["first_token"] = (False, "there is no latent first step")
    for name, value in chosen.items():
        if value is not None:
            table[name] = (value, "you set it")
    for name in ("steps", "lr", "batch", "group"):
        if not table[name][0] > 0:
            raise UserError(f"{name} must be positive, not {table[name][0]}")
    if table["group"][0] < 2:
        raise UserError("group must be at least 2: an advantage compares rollouts of one prompt")
    if (rollouts := table["batch"][0] * table["group"][0]) > ROLLOUTS:
        raise UserError(f"batch * group is {rollouts:,} rollouts; give fewer, {ROLLOUTS:,} at most")
    order = [field.name for field in fields(TrainSettings)]
    settings = TrainSettings(**{name: table[name][0] for name in order})
    settings = replace(settings, update_batch=min(settings.update_batch, settings.batch))
    return settings, [Setting(name, getattr(settings, name), table[name][1]) for name in order]
