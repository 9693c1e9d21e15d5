"""Run folders, and the checkpoints in them."""

from lgrpo.runs.run import Run

__all__ = ["Run"]
