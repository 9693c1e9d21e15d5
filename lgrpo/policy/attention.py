"""The attention lgrpo asks of a model: PyTorch's own, but for decode steps, where a group shares its prompt's cache.

`transformers` looks attention up by name and hands on what it does not know; that is all this relies on.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lgrpo.errors import UserError
from lgrpo.policy.cache import SlotCache

NAME = "lgrpo"
UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some architectures add to plain attention


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    slot_cache: SlotCache | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`; in a decode step over a SlotCache, that cache's own."""
    if slot_cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if unknown := [name for name in UNKNOWN if kwargs.get(name) is not None]:
        raise UserError(f"this architecture's attention has {unknown[0]}, which lgrpo does not know")
    assert attention_mask is not None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return slot_cache.attend(layer, query, key, value, attention_mask, scaling), None


def install(model: Any) -> bool:
    """Let a model attend by this; False where it has attention of its own, as with a cap on its scores."""
    config = model.config.get_text_config()
    if config._attn_implementation in ("sdpa", NAME) and model._supports_attention_backend:
        config._attn_implementation = NAME
    return bool(config._attn_implementation == NAME)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
