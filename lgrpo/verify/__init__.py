"""Grading answers against references."""

from lgrpo.verify.answers import boxed
from lgrpo.verify.verifier import Verifier

__all__ = ["Verifier", "boxed"]
