"""A GPU whose memory really runs out: PyTorch's allocator refuses, in the middle of rollouts and of an update.

What is made smaller is heard, and the result is that of a device with room. Run with `pytest -m gpu`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple, TypeVar

import models
import pytest
import torch
from models import LATENTS, TEXTS
from torch import Tensor

from lgrpo import noise
from lgrpo.engine import Engine
from lgrpo.groups import Group
from lgrpo.learner import Learner
from lgrpo.plan import Setting, train_settings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LIMIT = 96
PROMPT = 512
T = TypeVar("T")


@contextmanager
def room(size: int) -> Iterator[None]:
    """Inside, this process can have so many bytes more than it holds now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measured(work: Callable[[], T]) -> tuple[T, int]:
    """Its result, and how much more than before this process held at most."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return work(), torch.cuda.max_memory_reserved() - before


def random_policy() -> Policy:
    """Wide enough that what a row takes is more than what the device takes for itself."""
    made = models.policy("llama", torch.float32, num_hidden_layers=4, hidden_size=256, num_key_value_heads=4)
    made.eos_ids, made.end_id = [-2], 0  # responses are long
    made.model.to("cuda")
    return made


def requests(prompts: int, each: int) -> list[Request]:
    return [
        Request(models.prompt(PROMPT, place), noise.row_key(3, place, n), latent=True)
        for place in range(prompts)
        for n in range(each)
    ]


def test_rollouts_are_the_same_where_memory_allows_fewer_at_a_time() -> None:
    policy, asked = random_policy(), requests(64, 8)
    large = Engine(policy, LATENTS, TEXTS, LIMIT, 512)
    with_room, most = measured(lambda: large.generate(asked))
    large.release()
    heard: list[str] = []
    short = Engine(policy, LATENTS, TEXTS, LIMIT, 512, heard.append)
    with room(most // 2):
        rollouts = short.generate(asked)
    assert heard
    assert all("out of memory" in line for line in heard)
    assert short.slots < 512
    for ours, theirs in zip(rollouts, with_room, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)


class _Learnt(NamedTuple):
    weights: list[Tensor]
    numbers: dict[str, float]
    heard: list[tuple[str, int]]
    most: int  # bytes


def learnt(rollouts: list[Rollout], size: int | None = None) -> _Learnt:
    """One batch of two optimiser steps, in `size` bytes where given."""
    policy, heard = random_policy(), []
    groups = [Group(Problem(str(at), "1"), rollouts[at : at + 8], [1.0, 0.0] * 4) for at in range(0, 128, 8)]
    settings, _ = train_settings(
        Setting("recipe", "low", ""), k=LATENTS.k, mask_invalid=False, lr=1e-3, batch=16, update_batch=8,
    )  # fmt: skip
    settings = replace(settings, micro_tokens=1 << 20)
    learner = Learner(policy, settings, on_smaller=lambda name, value: heard.append((name, value)))
    with nullcontext() if size is None else room(size):
        numbers, most = measured(lambda: learner.learn(groups))
    return _Learnt([parameter.detach().clone() for parameter in policy.trainable()], numbers, heard, most)


def some_rollouts() -> list[Rollout]:
    return Engine(random_policy(), LATENTS, TEXTS, LIMIT, 128).generate(requests(16, 8))


def test_an_update_is_the_same_where_memory_allows_smaller_micro_batches() -> None:
    rollouts = some_rollouts()
    whole = learnt(rollouts)
    cut = learnt(rollouts, whole.most // 2)
    assert whole.heard == []
    assert {name for name, _ in cut.heard} == {"micro_tokens"}
    assert cut.numbers["loss"] == pytest.approx(whole.numbers["loss"], abs=1e-5)
    assert cut.numbers["grad_norm"] == pytest.approx(whole.numbers["grad_norm"], rel=1e-3)
    # Adam's first steps move each weight by its rate, whichever way: those next to zero may turn round.
    for ours, theirs in zip(cut.weights, whole.weights, strict=True):
        assert float(((ours - theirs).abs() > 1e-5).float().mean()) < 0.02
