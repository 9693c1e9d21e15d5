"""What splits are called: in names of files and folders, and of the lists in a JSON file."""

import re
from collections.abc import Sequence

_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def words_of(split: str) -> Sequence[str]:
    """What a split may be called."""
    return _WORDS.get(split, (split,))


def words_of_others(split: str) -> list[str]:
    """What the other known splits may be called."""
    return [word for other, words in _WORDS.items() if other != split for word in words]


def has_word(name: str, words: Sequence[str]) -> bool:
    """Whether one of these words stands in a name, apart from other letters."""
    return re.search(rf"(?<![a-z])(?:{'|'.join(map(re.escape, words))})(?![a-z])", name.lower()) is not None
