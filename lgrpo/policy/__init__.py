"""A causal language model whose chain of thought can be latent, its cache and its attention."""

from lgrpo.policy.card import CARD, Card
from lgrpo.policy.policy import BEGIN, END, INSTRUCTION, Policy

__all__ = ["BEGIN", "CARD", "END", "INSTRUCTION", "Card", "Policy"]
