"""Settings of Latent-SFT (`lgrpo init`): one home for each default, with its reason.

The paper (Latent-SFT, arXiv 2510.15522) spends ten epochs on each step of stage 1 and seventy on stage 2, with LoRA on
eight GPUs. `low` and `high` run the same three steps and the same stage 2, compressed to what one GPU does in hours,
and train all weights but the embeddings. What was measured for `tiny` stands beside each value.

What they need of a device's memory, and what changes where it is short: memory/latent_sft.py.
"""

from dataclasses import dataclass, fields
from typing import Any

from lgrpo.errors import UserError
from lgrpo.plan import Setting


@dataclass(frozen=True)
class Schedule:
    """Everything that decides what `init` computes."""

    recipe: str
    seed: int
    ratio: int  # chain tokens that become one latent step, r
    k: int  # tokens in a superposition
    batch: int  # examples in an optimiser step
    warm_up_steps: int  # optimiser steps of each part, in this order
    encoder_steps: int
    decoder_steps: int
    joint_steps: int
    walk_steps: int
    warm_up_lr: float  # peak learning rates
    encoder_lr: float
    decoder_lr: float
    joint_lr: float
    walk_lr: float
    lr_warm_up: float  # share of a part in which the learning rate rises; then half a cosine
    weight_decay: float
    output_scale: float  # of the encoder's hidden states, before E^T
    smoothing: float  # label smoothing of the warm start
    noise_scale: float  # of the labels in stage 2
    train_embedding: bool  # input embedding and output head too
    max_prompt: int  # positions
    max_chain: int  # tokens of the chain of thought
    max_response: int  # positions, latent and explicit together
    limit: int  # problems of the data that are used, the first ones; 0: all
    held_out: int  # problems of the training data kept for choosing the checkpoint
    eval_every: int  # steps of stage 2
    save_every: int  # steps of stage 1
    slots: int  # rollouts in flight while scoring
    micro_tokens: int  # positions in a micro-batch
    checkpointing: bool  # layers are computed again in the backward pass, to save memory

    @property
    def steps(self) -> int:
        return self.stage_1_steps + self.walk_steps

    @property
    def stage_1_steps(self) -> int:
        return self.warm_up_steps + self.encoder_steps + self.decoder_steps + self.joint_steps


_PARTS = ("warm_up_steps", "encoder_steps", "decoder_steps", "joint_steps", "walk_steps")
_PAPER = "published"
_SHARED: dict[str, tuple[Any, str]] = {
    "limit": (0, "all problems"),
    "lr_warm_up": (0.05, _PAPER),
    "weight_decay": (0.01, _PAPER),
    "output_scale": (0.4, "a prototype's mixtures saturated to single tokens without it"),
    "smoothing": (0.03, "leaves the other tokens a gradient; as in a prototype"),
    "noise_scale": (1.0, _PAPER),
}
_RECIPES: dict[str, dict[str, tuple[Any, str]]] = {
    "tiny": {
        **_SHARED,
        "ratio": (2, "as `low`"),
        "k": (3, "a pair of chain tokens and one to spare: Pass@1 .82, with 10 .78; one seed"),
        "output_scale": (1.0, "labels hold .98 of their weight on their own chain tokens; .92 at 0.4"),
        "smoothing": (0.0, "nothing to spread once the warm start works; not tested by itself"),
        "batch": (64, "2,500 positions"),
        "warm_up_steps": (120, "half a minute; .99 of the labels then have their own chain tokens on top"),
        "encoder_steps": (0, "a prototype's labels drifted to flat mixtures that no model could walk"),
        "decoder_steps": (80, "the language model learns to read mixtures"),
        "joint_steps": (0, "as the encoder's"),
        "walk_steps": (1200, "about four minutes on two cores"),
        "warm_up_lr": (2e-3, "a million parameters move faster than a billion"),
        "encoder_lr": (1e-3, "a million parameters move faster than a billion"),
        "decoder_lr": (1e-3, "a million parameters move faster than a billion"),
        "joint_lr": (1e-3, "a million parameters move faster than a billion"),
        "walk_lr": (4e-3, "Pass@1 .85, with 2e-3 .82 after a longer stage 1; one seed each"),
        "train_embedding": (True, "they are a tenth of the model, and cheap"),
        "max_chain": (128, "the arithmetic chains have fewer than 40 tokens"),
        "held_out": (256, "two seconds to score"),
        "eval_every": (200, "a tenth of stage 2"),
        "save_every": (100, "half a minute"),
        "checkpointing": (False, "a small model"),
    },
    "low": {
        **_SHARED,
        "ratio": (2, _PAPER),
        "k": (10, _PAPER),
        "batch": (64, "an eighth of the published one, for more steps on one GPU"),
        "warm_up_steps": (300, "a warm start in place of most of ten epochs"),
        "encoder_steps": (1000, "64,000 examples; published: 10 epochs"),
        "decoder_steps": (1000, "64,000 examples; published: 10 epochs"),
        "joint_steps": (500, "32,000 examples; published: 10 epochs. Longer made flat labels in a prototype"),
        "walk_steps": (6000, "384,000 examples, one epoch of GSM8K-Aug; published: 70"),
        "warm_up_lr": (2e-5, "all weights are trained, not LoRA's"),
        "encoder_lr": (2e-5, "published 1e-4 is for LoRA"),
        "decoder_lr": (2e-5, "published 1e-4 is for LoRA"),
        "joint_lr": (2e-5, "published 1e-4 is for LoRA"),
        "walk_lr": (5e-5, "published 3e-4 is for LoRA"),
        "train_embedding": (False, "they stay what they were in reinforcement, too"),
        "max_chain": (512, "the chains of GSM8K-Aug have fewer than 200 tokens"),
        "held_out": (256, "standard error of 3 points"),
        "eval_every": (500, "a dozen checkpoints to choose from"),
        "save_every": (250, "a few minutes"),
        "checkpointing": (False, "layers of 1.2 B keep 16 GB for 8,192 positions"),
    },
    "high": {
        **_SHARED,
        "ratio": (16, _PAPER),
        "k": (10, _PAPER),
        "batch": (32, "long chains"),
        "warm_up_steps": (300, "a warm start in place of most of ten epochs"),
        "encoder_steps": (1000, "32,000 examples; published: 10 epochs"),
        "decoder_steps": (1000, "32,000 examples; published: 10 epochs"),
        "joint_steps": (0, "two models of this size cannot be trained together on one GPU"),
        "walk_steps": (4000, "128,000 examples; published: 70 epochs"),
        "warm_up_lr": (1e-5, "all weights are trained, not LoRA's"),
        "encoder_lr": (1e-5, "published 1e-4 is for LoRA"),
        "decoder_lr": (1e-5, "published 1e-4 is for LoRA"),
        "joint_lr": (1e-5, "published 1e-4 is for LoRA"),
        "walk_lr": (2e-5, "published 3e-4 is for LoRA"),
        "train_embedding": (False, "they stay what they were in reinforcement, too"),
        "max_chain": (8192, "longer ones do not fit beside two models"),
        "held_out": (64, "long answers: an evaluation costs as much as two steps"),
        "eval_every": (500, "eight checkpoints to choose from"),
        "save_every": (250, "a few minutes"),
        "checkpointing": (True, "layers of 7.6 B would keep 70 GB for one row of 9,700 positions"),
    },
}


def schedule(
    recipe: str,
    *,
    max_prompt: int,
    max_response: int,
    device: str,
    seed: int = 0,
    steps: int | None = None,
    **chosen: Any,
) -> tuple[Schedule, list[Setting]]:
    """The settings of `init`, and the plan that explains them.

    max_prompt and max_response are those of the recipe's reinforcement. `steps` is the sum over all parts, which share
    it as in the recipe. `chosen` overrides single settings; None leaves one alone. Raises UserError on a value out of
    range.
    """
    table = dict(_RECIPES[recipe])
    table["recipe"] = (recipe, "from the plan")
    table["seed"] = (seed, "default" if seed == 0 else "you set it")
    table["max_prompt"] = (max_prompt, "as in `train`")
    table["max_response"] = (max_response, "as in `train`")
    cuda = device.startswith("cuda")
    table["slots"] = (256, "keeps a GPU busy") if cuda else (256, "fills two cores")
    table["micro_tokens"] = (8192, "from the device") if cuda else (2048, "fits a CPU's cache")
    if steps is not None:
        whole = sum(table[part][0] for part in _PARTS)
        for part in _PARTS:
            table[part] = (round(table[part][0] * steps / whole), f"its share of your {steps} steps")
        table["walk_steps"] = (max(1, table["walk_steps"][0]), table["walk_steps"][1])
    for name, value in chosen.items():
        if value is not None:
            table[name] = (value, "you set it")
    for name in ("batch", "ratio", "k", "walk_steps", "walk_lr", "eval_every", "save_every", "micro_tokens"):
        if not table[name][0] > 0:
            raise UserError(f"{name} must be positive, not {table[name][0]}")
    names = [field.name for field in fields(Schedule)]
    return Schedule(**{name: table[name][0] for name in names}), [Setting(name, *table[name]) for name in names]
