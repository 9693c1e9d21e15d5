"""Latent reasoning for causal language models, learnt on one GPU with one command."""

__version__ = "0.1.0"
