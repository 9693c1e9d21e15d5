"""Gradient checkpointing: a layer keeps its input alone, and computes the rest again in the backward pass.

`transformers` would do it in training mode only, and the model stays in evaluation mode: dropout would make the first
ratio of an update differ from 1. Its own switch also asks for the gradient of the frozen input embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(on: bool, *models: nn.Module) -> Iterator[None]:
    """Inside, where `on`, the transformer layers of `models` are checkpointed."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = [module for model in models for module in model.modules()]
    layers = [module for module in modules if on and isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:  # no layer draws random numbers in evaluation mode
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's; that of its class is found again
