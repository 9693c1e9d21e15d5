"""The embedded explicit-CoT language model: package data that `lgrpo init` starts from when no base is named."""

from pathlib import Path

MODEL: Path = Path(__file__).parent / "model"  # an ordinary Hugging Face folder; `python -m lgrpo.tiny.build` made it
