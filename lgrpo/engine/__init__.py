"""The rollout engine: ids in, rollouts out. It knows no text."""

from lgrpo.engine.engine import EAGER, GRAPHED, PREFILL, Engine, Pace

__all__ = ["EAGER", "GRAPHED", "PREFILL", "Engine", "Pace"]
