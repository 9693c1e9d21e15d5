"""Checkpointed layers against plain ones, in every architecture."""

from typing import Any

import models
import pytest
import torch
from torch import Tensor

from lgrpo import scoring
from lgrpo.policy import Policy
from lgrpo.policy.checkpointing import checkpointed
from lgrpo.rollout import Rollout


def gradient(policy: Policy, rollouts: list[Rollout], on: bool) -> tuple[Tensor, list[Tensor], int]:
    """(log-probabilities, gradient of their sum of squares, bytes that the forward pass kept for it)."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with checkpointed(on, policy.model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        components, hard = scoring.component_logprobs(policy, scoring.collate(policy, rollouts, 1.0), 0.6)
        bytes_kept = sum(kept.values())
        loss = components.square().sum() + hard.square().sum()
        gradients = list(torch.autograd.grad(loss, policy.trainable()))
    return torch.cat([components.detach(), hard[..., None].detach()], -1), gradients, bytes_kept


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_checkpointed_model_has_the_same_values_and_gradients(architecture: str) -> None:
    policy = models.policy(architecture, torch.float32)
    rollouts = models.engine(policy).generate(models.mixed_requests())
    (values, gradients, kept), (again, recomputed, fewer) = (gradient(policy, rollouts, on) for on in (False, True))
    assert torch.equal(values, again)
    assert all(torch.equal(plain, twice) for plain, twice in zip(gradients, recomputed, strict=True))
    assert fewer < 0.5 * kept


def test_layers_run_again_in_the_backward_pass_and_only_where_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = models.policy("llama", torch.float32)
    rollouts = models.engine(policy).generate(models.mixed_requests(4))
    kind, calls = type(policy.model.model.layers[0]), [0]
    forward = kind.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(kind, "forward", spy)
    counts = []
    for on in (True, False):
        calls[0] = 0
        gradient(policy, rollouts, on)
        counts.append(calls[0])
    assert counts == [4, 2]
    assert not any(module.training for module in policy.model.modules())


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = models.model()
    with pytest.raises(torch.OutOfMemoryError), checkpointed(True, model):
        raise torch.OutOfMemoryError
    assert not any("forward" in vars(module) for module in model.modules())
