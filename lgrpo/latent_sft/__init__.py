"""Latent-SFT: how a model gets its first latent chain (docs/method.md, 6)."""

from lgrpo.latent_sft.masks import dual_track_positions, induction_mask, supervision_mask

__all__ = ["dual_track_positions", "induction_mask", "supervision_mask"]
