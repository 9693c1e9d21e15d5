"""A decode step of Llama-shaped models, and nothing else: one position a row, a norm in one kernel, no bookkeeping.

The same weights and the same cache as the model's own forward pass, which prefill and training use; equal to it up to
rounding. A general implementation spends a third of a decode step on what a single position does not need.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from lgrpo.policy.cache import SlotCache
from lgrpo.policy.products import Linear, linear

KINDS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")  # norm, attention, norm, gated feed-forward


class LeanDecoder:
    """Decode steps of one model."""

    def __init__(self, model: Any):
        self.model = model

    @classmethod
    def of(cls, model: Any) -> "LeanDecoder | None":
        """For a causal language model of one of the KINDS with ordinary layers; None for any other."""
        base = model.base_model
        if type(base).__name__ not in KINDS:
            return None
        projections = [m for name, m in base.layers.named_modules() if name.endswith("_proj")]
        return cls(base) if all(type(m) in (nn.Linear, Linear) for m in projections) else None

    def __call__(self, embeds: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        """Final hidden states [N, 1, D].

        embeds [N, 1, D]; positions int64 [N, 1]; mask additive [N, 1, 1, S] over the S columns that `cache` sees.
        """
        x = embeds[:, 0]
        rows = len(x)
        cos, sin = self.model.rotary_emb(embeds, positions)  # [N, 1, d]
        half = cos.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # the minus of the rotation
        for index, layer in enumerate(self.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            y = _norm(x, layer.input_layernorm)
            query, key, value = (_project(y, p, rows, attention.head_dim) for p in (
                attention.q_proj, attention.k_proj, attention.v_proj
            ))  # fmt: skip
            if hasattr(attention, "q_norm"):
                query, key = _norm(query, attention.q_norm), _norm(key, attention.k_norm)
            heads = query.shape[1]
            both = torch.cat([query, key], 1)
            both = torch.addcmul(both * cos, both.roll(half, -1), sin)
            keys, values = cache.update(both[:, heads:, None], value[:, :, None], index)
            seen = cache.attend(index, both[:, :heads, None], keys, values, mask, attention.scaling)
            x = linear(seen.reshape(rows, -1), attention.o_proj.weight, attention.o_proj.bias).add_(x)
            y = _norm(x, layer.post_attention_layernorm)
            inner = mlp.act_fn(linear(y, mlp.gate_proj.weight, mlp.gate_proj.bias))
            inner *= linear(y, mlp.up_proj.weight, mlp.up_proj.bias)
            x = linear(inner, mlp.down_proj.weight, mlp.down_proj.bias).add_(x)
        return _norm(x, self.model.norm)[:, None]


def _project(x: Tensor, projection: nn.Linear, rows: int, depth: int) -> Tensor:
    """[N, D] to [N, heads, depth]."""
    return linear(x, projection.weight, projection.bias).view(rows, -1, depth)


def _norm(x: Tensor, module: Any) -> Tensor:
    size, epsilon = x.shape[-1], module.variance_epsilon
    if x.device.type != "cpu" or x.dtype.itemsize < 4:
        return rms_norm(x, (size,), module.weight, epsilon)
    # On a CPU torch's own writes the squares of x down before it adds them up.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * (length.square_() / size + epsilon).rsqrt_()).mul_(module.weight)
