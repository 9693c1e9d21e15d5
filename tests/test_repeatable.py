"""The same update twice is the same to the bit, also where several threads add up; what has no such form is told."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from models import LATENTS, LIMIT, TEXTS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lgrpo.budget import Budget
from lgrpo.engine import Engine
from lgrpo.engine.decode import TextSettings
from lgrpo.groups import Group
from lgrpo.latent_sft.schedule import schedule
from lgrpo.learner import Learner
from lgrpo.memory.latent_sft_trial import trial
from lgrpo.plan import Setting, train_settings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.repeatable import repeating
from lgrpo.rollout import Request, Rollout
from lgrpo.superposition import LatentSettings, running_sum

# By the documentation of torch.use_deterministic_algorithms: what a GPU has no kernel for that repeats.
REFUSED = {
    "put", "put_", "histc", "bincount", "median", "kthvalue", "cumsum", "cumprod", "scatter_reduce", "resize_",
    "nll_loss2d_forward", "_ctc_loss_backward", "_embedding_bag_backward", "grid_sampler_2d_backward",
}  # fmt: skip


@pytest.fixture
def threads() -> Iterator[None]:
    """Several, also on a machine of one core: they share it, and come in any order."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def mode() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def update(policy: Policy, rollouts: list[Rollout], **changes: Any) -> list[Tensor]:
    """Weights after one batch of two optimiser steps, in groups of eight."""
    groups = [Group(Problem("p", "1"), rollouts[at : at + 8], [1.0, 0.0] * 4) for at in range(0, len(rollouts), 8)]
    settings, _ = train_settings(Setting("recipe", "low", ""), k=LATENTS.k, mask_invalid=False, lr=1e-3)
    changes = {"micro_tokens": 1 << 20, "update_batch": len(groups) // 2, **changes}
    Learner(policy, replace(settings, **changes)).learn(groups)
    return [parameter.detach() for parameter in policy.trainable()]


@pytest.mark.usefixtures("threads")
def test_the_same_update_is_the_same_to_the_bit_with_several_threads() -> None:
    """Rollouts of a group share the last position of their prompt: its gradient is a sum of theirs."""

    def fresh() -> Policy:
        return models.policy(dtype=torch.float32, hidden_size=128)

    asked = [Request(models.prompt(20), number, latent=True) for number in range(64)]
    rollouts = Engine(fresh(), LATENTS, TEXTS, LIMIT, 64).generate(asked)
    first, *others = [update(fresh(), rollouts) for _ in range(6)]
    assert all(torch.equal(ours, theirs) for other in others for ours, theirs in zip(first, other, strict=True))


def test_the_mode_is_that_of_before_again_whatever_happens() -> None:
    before, inside = mode(), []

    def fail() -> None:
        with repeating(strict=True):
            inside.append(mode())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with repeating(strict=False):
        inside.append(mode())
    assert inside == [(True, False, False), (True, True, False)]
    assert mode() == before == (False, False, True)


def test_an_operation_that_cannot_repeat_is_told_once_and_the_work_done_as_it_can() -> None:
    """`put_` has no form that repeats on any device."""
    told: list[object] = []
    modes: list[tuple[bool, bool, bool]] = []
    budget = Budget(2, lambda *said: told.append(said), told.append)
    gathered = torch.zeros(3)

    def work(parts: list[list[int]]) -> float:
        modes.append(mode())
        for part in parts:
            gathered.add_(torch.zeros(3).put_(torch.tensor(part), torch.ones(len(part))))
        return float(gathered.sum())

    def before_it() -> float:
        gathered.add_(1.0)  # of the attempt that is dropped
        return 0.0

    def spend() -> float:
        return budget.spend(lambda positions: [[0, 1], [2]], lambda parts: before_it() + work(parts), undo)

    def undo() -> None:
        gathered.zero_()

    assert spend() == 3.0 + 3.0
    assert told == ["put_"]
    assert modes == [(True, False, False), (True, True, False)]
    undo()
    assert spend() == 6.0
    assert told == ["put_"]
    assert modes[2:] == [(True, True, False)]


def test_another_error_is_not_taken_for_one() -> None:
    def work(parts: list[list[int]]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Budget(2).spend(lambda positions: [[0]], work, lambda: None)
    assert mode() == (False, False, True)


class Operations(TorchDispatchMode):
    """Names of all operations inside, those of backward passes too, and the shapes of running sums.

    Of integers there are none: they come to the same in any order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.running: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        running = name in ("cumsum", "cumprod")
        if not running or args[0].is_floating_point():
            self.names.add(name)
        if running and args[0].is_floating_point():
            self.running.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_no_gradient_needs_an_operation_that_a_gpu_cannot_repeat(architecture: str) -> None:
    policy = models.policy(architecture, torch.float32)
    rollouts = Engine(policy, LATENTS, TEXTS, LIMIT, 16).generate(models.mixed_requests(16))
    chosen, _ = schedule(
        "tiny", device="cpu", warm_up_steps=1, encoder_steps=1, decoder_steps=1, joint_steps=1, walk_steps=1,
        max_prompt=20, max_chain=12, ratio=2, max_response=10, micro_tokens=120, slots=4, held_out=4,
    )  # fmt: skip
    with Operations() as seen:
        update(policy, rollouts, kl=0.1, checkpointing=True)
        trial(policy, Engine(policy, LATENTS, TEXTS, 10, 4), chosen, Budget(120), 0, full=False)
    assert {"index_put", "scatter_add", "index_add"} <= seen.names  # those that do have a second form
    assert seen.names & REFUSED == set()


def test_a_single_rollout_adds_up_no_row_alone() -> None:
    """PyTorch takes a scan of several blocks for a tensor of one row, whose sums depend on which block comes first."""
    policy, short = models.policy("llama", torch.float32), LATENTS.k
    engine = Engine(policy, LatentSettings(short, shortlist=short), TextSettings(top_k=short), LIMIT, 1)
    with Operations() as seen:
        engine.generate([Request(models.prompt(6), 5, latent=True)])
    assert {width for _, width in seen.running} == {short, 24}  # a short list, and the whole vocabulary
    assert min(rows for rows, _ in seen.running) == 2


def test_the_running_sum_of_one_row_is_that_of_the_row_in_a_batch() -> None:
    values = torch.rand(3, 700)
    assert torch.equal(running_sum(values), values.cumsum(-1))
    assert running_sum(values[:0]).shape == (0, 700)
    assert torch.equal(running_sum(values[1:2]), values.cumsum(-1)[1:2])
