"""A rollout in words: what the model held in superposition, step by step, and the text that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lgrpo import superposition
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Part, Rollout

_PIECE = 32  # tokens
_GARBLED = "\N{REPLACEMENT CHARACTER}"  # what a piece of a character decodes to
_FEW, _HEAVY = 4, 0.05


class Word(NamedTuple):
    """One component of a superposition."""

    token: int
    text: str  # for reading: without space around it, and visible where it has nothing else
    weight: float


def latent_steps(policy: Policy, rollout: Rollout | Part, tau: float) -> list[list[Word]]:
    """The words of each latent step, heaviest first: K a step."""
    latent = rollout.tokens == LATENT
    weights = superposition.weights_of(rollout.scores[latent], tau)
    return [
        [Word(*word) for word in zip(row, _texts(policy, row), row_weights, strict=True)]
        for row, row_weights in zip(rollout.indices[latent].tolist(), weights.tolist(), strict=True)
    ]


def heaviest(policy: Policy, rollout: Rollout, tau: float, words: dict[int, str]) -> list[list[tuple[str, float]]]:
    """The words of each latent step that carry it, heaviest first: up to 4 of at least 5 %, the first in any case.

    words: of tokens met before, kept by the caller. A long chain has thousands of steps, and few different tokens.
    """
    latent = rollout.tokens == LATENT
    weights = superposition.weights_of(rollout.scores[latent], tau)
    few = weights.topk(min(_FEW, weights.shape[-1]), dim=-1)
    tokens = rollout.indices[latent].gather(-1, few.indices)
    steps = []
    for row, row_weights in zip(tokens.tolist(), few.values.tolist(), strict=True):
        pairs = [(token, weight) for token, weight in zip(row, row_weights, strict=True) if weight >= _HEAVY]
        for token, _ in pairs or [(row[0], 0.0)]:
            if token not in words:
                words[token] = _texts(policy, [token])[0]
        steps.append([(words[token], round(weight, 3)) for token, weight in pairs or [(row[0], row_weights[0])]])
    return steps


def answer_text(policy: Policy, rollout: Rollout) -> str:
    """The ordinary tokens after the end marker; of an explicit response, all of them."""
    return policy.decode(_after_marker(policy, rollout.hard_tokens, rollout.latent_length > 0)).strip()


class Unfolding:
    """The text of an answer whose tokens are still coming: `more()` is what can be told by now, and never changes."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._latent = False
        self._hard: list[int] = []
        self._read, self._settled = 0, ""  # tokens that need not be decoded again, and their text
        self._before = ""  # the text when it was asked for last
        self._told = 0  # letters

    def add(self, tokens: Tensor) -> None:
        """The next positions, as in `Part`."""
        self._latent |= bool((tokens == LATENT).any())
        self._hard += tokens[tokens != LATENT].tolist()

    @property
    def begun(self) -> bool:
        """Whether the first token of the answer is there."""
        return bool(_after_marker(self._policy, self._hard, self._latent))

    def more(self) -> str:
        """What is certain and was not told yet: not the pieces of a character, nor space that may be the end.

        Some tokenizers take back a space once they see the next word, so a text is certain when the next one begins
        with it.
        """
        text = self._text()
        certain = _common(self._before, text).rstrip(_GARBLED).rstrip()
        self._before = text
        new, self._told = certain[self._told :], max(self._told, len(certain))
        return new

    def rest(self) -> str:
        """What is left at the end: with all that `more` told it is `answer_text`."""
        return self._text()[self._told :]

    def _text(self) -> str:
        tokens = _after_marker(self._policy, self._hard, self._latent)[self._read :]
        text = self._policy.decode(tokens)
        if (cut := len(tokens) - _PIECE) >= _PIECE:  # a long answer is not decoded from its beginning for each token
            head, tail = self._policy.decode(tokens[:cut]), self._policy.decode(tokens[cut:])
            if head + tail == text:  # not within a character, nor at a space that only stands between words
                self._read, self._settled, text = self._read + cut, self._settled + head, tail
        return (self._settled + text).strip()


def readable(policy: Policy, rollout: Rollout, tau: float) -> tuple[str, str]:
    """(chain, answer) on one line each: a step shows its words of at least a fifth of the weight."""
    steps = []
    for words in latent_steps(policy, rollout, tau):
        shown = [word.text for place, word in enumerate(words) if place == 0 or word.weight >= 0.2]
        steps.append(" ".join(shown))
    return " | ".join(steps), answer_text(policy, rollout)


def _common(one: str, other: str) -> str:
    """What both begin with."""
    if other.startswith(one):
        return one
    return one[: next(at for at, letters in enumerate(zip(one, other + "\0", strict=False)) if len({*letters}) > 1)]


def _after_marker(policy: Policy, hard: list[int], latent: bool) -> list[int]:
    """Ordinary tokens without the end marker that they begin with after a latent chain, or with what is there of it."""
    if not latent:
        return hard
    marker = policy.end_ids
    begun = len(hard) < len(marker) and hard == marker[: len(hard)]
    return [] if begun else hard[len(marker) :] if hard[: len(marker)] == marker else hard


def _texts(policy: Policy, tokens: Sequence[int]) -> list[str]:
    """Readable words; two that differ only by the space around them show it."""
    raw = [policy.piece(token) for token in tokens]
    times = Counter(text.strip() for text in raw)
    return [_word(policy, token, text, times[text.strip()] > 1) for token, text in zip(tokens, raw, strict=True)]


def _word(policy: Policy, token: int, text: str, exact: bool) -> str:
    bare = text.strip()
    if not bare:
        return repr(text)
    if _GARBLED in bare:  # one byte of several: the tokenizer's own name for it says which
        return _bytes(str(policy.tokenizer.convert_ids_to_tokens(token)))
    return text.replace(" ", "_") if exact else bare


def _bytes(name: str) -> str:
    r"""The bytes a token of a byte-level vocabulary stands for, as \xe2\x82; any other name as it is."""
    codes = [_LETTERS.get(letter) for letter in name]
    if None in codes:
        return name
    return "".join(f"\\x{code:02x}" for code in codes)


def _byte_letters() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary stands for (GPT-2's table, which all of them share)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [code for code in range(256) if code not in printable]
    return {chr(code): code for code in printable} | {chr(256 + at): code for at, code in enumerate(others)}


_LETTERS = _byte_letters()
