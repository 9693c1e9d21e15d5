"""A causal language model whose chain of thought can be latent, its cache and its attention."""

from lgrpo.policy.card import CARD, Card
from lgrpo.policy.policy import Policy
from lgrpo.policy.prompt import BEGIN, END, INSTRUCTION

__all__ = ["BEGIN", "CARD", "END", "INSTRUCTION", "Card", "Policy"]
