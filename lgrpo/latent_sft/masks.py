"""Who may attend to whom while a chain is compressed into latents, and at which positions (docs/method.md, 6).

Latent-SFT (arXiv 2510.15522) trains an encoder under the *induction* mask and the language model, as decoder of
the latents, under the *supervision* mask with *dual-track* positions. All three are functions of token ids, in which a
latent and a compress token have an id of their own that no real token has.

Padding is what stands at either end of a row with the id `pad_id`; the same id between other tokens is a token like any
other, because many tokenizers pad with the token that ends a turn. Nobody attends to padding. What padding itself
attends to means nothing, but it is never nothing: a row without a single True would make NaN of a softmax.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def induction_mask(ids: Tensor, compress_id: int, pad_id: int) -> Tensor:
    """The encoder's mask: causal, and no later position sees an earlier compress token.

    ids int64 [B, T]. Returns bool [B, T, T], True where the query (second axis) may attend to the key (third).
    """
    hidden = (ids == compress_id)[:, None, :] & ~_diagonal(ids)
    return _finish(_causal(ids) & ~hidden, ids, pad_id)


def supervision_mask(ids: Tensor, latent_id: int, end_ids: Sequence[int], pad_id: int) -> Tensor:
    """The decoder's mask over `prompt z t t z t t z </think> answer`.

    ids int64 [B, T]; a row is a prompt up to its first latent, then latents, each followed by its text segment, then
    the end marker `end_ids`, sought after the last latent, and the answer. Returns bool [B, T, T], True = may attend.

    The prompt sees itself; a latent the prompt and the latents; a segment the latent it follows and itself; end marker
    and answer the prompt, the latents and themselves; all of it causally. A row without latents is all prompt.
    """
    latent = ids == latent_id
    ordinal = latent.cumsum(1)  # latents up to and including this position: a segment shares its latent's number
    prompt = ordinal == 0
    answer = _after_chain(ids, latent, end_ids)
    segment = ~(prompt | latent | answer)

    def key(kind: Tensor) -> Tensor:
        return kind[:, None, :]

    def query(kind: Tensor) -> Tensor:
        return kind[:, :, None]

    same = ordinal[:, :, None] == ordinal[:, None, :]
    allowed = query(prompt) & key(prompt)
    allowed |= query(latent | answer) & key(prompt | latent)
    allowed |= query(answer) & key(answer)
    allowed |= query(segment) & key(latent | segment) & same
    return _finish(allowed & _causal(ids), ids, pad_id)


def dual_track_positions(ids: Tensor, latent_id: int) -> Tensor:
    """Positions int64 [T] of a decoder row ids [T] (or [B, T] row by row).

    Latents count on from one another as if there were no text between them; each segment counts on from its latent;
    end marker and answer count on from the last latent, which has no segment.
    """
    latent = ids == latent_id
    place = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    ordinal = latent.cumsum(-1)
    last = torch.where(latent, place, -1).cummax(-1).values  # place of the latest latent so far
    first = (ordinal == 0).sum(-1, keepdim=True)  # length of the prompt
    return torch.where(ordinal == 0, place, first + ordinal - 1 + place - last)


def _after_chain(ids: Tensor, latent: Tensor, end_ids: Sequence[int]) -> Tensor:
    """bool [B, T]: from the first whole `end_ids` after the last latent onwards."""
    marker = torch.tensor(list(end_ids), device=ids.device)
    width = ids.shape[1]
    starts = torch.zeros_like(latent)
    if 0 < len(marker) <= width:
        starts[:, : width - len(marker) + 1] = (ids.unfold(1, len(marker), 1) == marker).all(-1)
    ordinal = latent.cumsum(1)
    past_latents = (ordinal == ordinal[:, -1:]) & (ordinal > 0)
    return (starts & past_latents).cumsum(1) > 0


def _finish(allowed: Tensor, ids: Tensor, pad_id: int) -> Tensor:
    """Hide padding from everybody, and let a row that is left with nothing see itself."""
    pad = ids == pad_id
    leading, trailing = pad.long().cumprod(1), pad.flip(1).long().cumprod(1).flip(1)
    allowed = allowed & ~((leading + trailing) > 0)[:, None, :]
    return allowed | (_diagonal(ids) & ~allowed.any(-1, keepdim=True))


def _causal(ids: Tensor) -> Tensor:
    size = ids.shape[1]
    return torch.ones(size, size, dtype=torch.bool, device=ids.device).tril()[None]


def _diagonal(ids: Tensor) -> Tensor:
    return torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)[None]
