"""The sides of the rollout benchmark: functions from the number of a repeat to a timed `Run`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import shapes
import side_by_side
import torch
import transformers
import trl_side

from lgrpo import plan
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request
from lgrpo.verify import Verifier


@dataclass(frozen=True)
class Run:
    """One side in one repeat."""

    seconds: side_by_side.Seconds
    responses: list[list[int]]  # hard tokens
    lengths: list[int]  # positions, latent ones among them

    @property
    def speed(self) -> float:
        return sum(self.lengths) / self.seconds.wall

    @property
    def cpu_speed(self) -> float:
        return sum(self.lengths) / self.seconds.cpu


Side = Callable[[int], Run]


def ours(policy: Policy, settings: plan.TrainSettings, make: Callable[[int], list[Request]]) -> Side:
    """`make(seed)` gives the requests of a repeat."""
    engine = side_by_side.engine_of(policy, settings)

    def side(repeat: int) -> Run:
        asked = make(repeat + 1)
        rollouts, seconds = side_by_side.timed(policy.device, lambda: engine.generate(asked))
        return Run(seconds, [r.hard_tokens for r in rollouts], [r.length for r in rollouts])

    return side


def generate(
    policy: Policy, settings: plan.TrainSettings, prompts: list[tuple[int, ...]], batch: int, model: Any
) -> Side:
    """transformers.generate of `model` over all prompts, `batch` rows at a time, left-padded."""
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_new_tokens=settings.max_response,
        pad_token_id=policy.pad_id,
        eos_token_id=None if policy.eos_ids == [shapes.NEVER] else list(policy.eos_ids),
    )
    ends = set(policy.eos_ids)

    def all_rows() -> list[list[int]]:
        responses: list[list[int]] = []
        for at in range(0, len(prompts), batch):
            part = prompts[at : at + batch]
            width = max(map(len, part))
            ids = torch.tensor([[policy.pad_id] * (width - len(p)) + list(p) for p in part], device=policy.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=policy.device)
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            responses += [until(row, ends) for row in out[:, width:].tolist()]
        return responses

    return side_of(policy, all_rows)


def side_of(policy: Policy, make: Callable[[], list[list[int]]]) -> Side:
    def side(repeat: int) -> Run:
        torch.manual_seed(repeat + 1)
        responses, seconds = side_by_side.timed(policy.device, make)
        return Run(seconds, responses, list(map(len, responses)))

    return side


def trl(
    policy: Policy, settings: plan.TrainSettings, asked: list[Problem], prompts: list[tuple[int, ...]], model: Any
) -> Side:
    """The generation of TRL's GRPOTrainer, without vLLM."""
    rows = settings.update_batch * settings.group
    trainer = trl_side.Trainer(policy, model, settings, asked, Verifier(), rows)
    return side_of(policy, lambda: trainer.roll_out(prompts))


def until(row: list[int], ends: set[int]) -> list[int]:
    """A response up to and including its end."""
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


def equally_long(policy: Policy, settings: plan.TrainSettings, asked: list[Problem], cap: int, latent: bool) -> Side:
    """Rows that all have `cap` positions, all latent or all explicit, behind the same prompts."""
    settings = replace(settings, max_response=cap)

    def make(seed: int) -> list[Request]:
        return [replace(one, latent=latent) for one in side_by_side.requests(policy, settings, asked, seed)]

    return ours(shapes.endless(policy), settings, make)
