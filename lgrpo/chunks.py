"""The output head at chosen positions only, a chunk at a time: never a T x V tensor.

A chunk's logits are computed again in the backward pass instead of being kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lgrpo.policy import Policy

# Logits alive at a time: 16 bytes each at the peak of their backward pass, so a quarter of a gigabyte. Of 128,256 words
# that is 130 positions to one reading of the head's weights: where an H200's arithmetic and its memory take as long.
LOGITS_PER_CHUNK = 1 << 24


def by_chunks(function: Callable[..., Tensor], vocabulary: int, *rows: Tensor) -> Tensor:
    """`function(*rows)` over pieces of at most LOGITS_PER_CHUNK logits, joined along the first axis."""
    pieces = list(zip(*(tensor.split(max(1, LOGITS_PER_CHUNK // vocabulary)) for tensor in rows), strict=True))
    if len(pieces) == 1:
        return function(*pieces[0])
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([function(*piece) for piece in pieces])


def log_probs_at(policy: Policy, states: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities, over the whole vocabulary, of `tokens` [R, K] given hidden states [R, D]: [R, K]."""

    def chunk(states: Tensor, tokens: Tensor) -> Tensor:
        logits = policy.head(states)
        return logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True)

    return by_chunks(chunk, len(embedding_table(policy)), states, tokens)


def embedding_table(policy: Policy) -> Tensor:
    """E, the input embeddings [V, D] as they are stored: some architectures scale what they look up."""
    table = policy.embedding.weight
    assert isinstance(table, Tensor)
    return table
