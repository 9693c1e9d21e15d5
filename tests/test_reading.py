"""Rollouts in words: what a step held, and an answer's text while its tokens still come."""

import models
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from lgrpo.policy import Card, Policy
from lgrpo.reading import Unfolding, answer_text, latent_steps, readable
from lgrpo.rollout import LATENT, Part, Rollout


@pytest.fixture(scope="module")
def bytewise() -> Policy:
    """A byte a token; `<think>` and `</think>` are tokens."""
    tokens = models.tokenizer()
    return Policy(models.model("llama", len(tokens)), tokens, Card("latent"), "bytes")


def ids(policy: Policy, text: str) -> list[int]:
    return list(policy.tokenizer.encode(text, add_special_tokens=False))


def rollout(policy: Policy, tokens: list[int]) -> Rollout:
    blank = torch.zeros(len(tokens), 3)
    return Rollout((), torch.tensor(tokens), blank.long(), blank, blank[:, 0], valid=True)


def unfold(policy: Policy, tokens: list[int], at_once: int = 1) -> list[str]:
    """What is told after every `at_once` tokens, and at the end."""
    text, told = Unfolding(policy), []
    for start in range(0, len(tokens), at_once):
        text.add(torch.tensor(tokens[start : start + at_once]))
        told.append(text.more())
    return [*told, text.rest()]


TEXT = "  5 €, 日本語,\tand 👩‍🔬!\n\n \\boxed{29} \n"


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 100])
def test_characters_of_several_tokens_are_told_whole(bytewise: Policy, at_once: int) -> None:
    tokens = [LATENT, LATENT, *bytewise.end_ids, *ids(bytewise, TEXT), *bytewise.eos_ids]
    told = unfold(bytewise, tokens, at_once)
    assert "".join(told) == answer_text(bytewise, rollout(bytewise, tokens)) == TEXT.strip()
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(told)
    if at_once == 1:
        assert "本" in told
        assert told[-1] == ""  # the end marker of the response has confirmed it all


def test_bytes_that_are_no_character_are_told_as_such(bytewise: Policy) -> None:
    byte = ids(bytewise, "é")[0]
    tokens = [*ids(bytewise, "a"), byte, *ids(bytewise, "b"), byte]
    told = "".join(unfold(bytewise, tokens))
    assert told == answer_text(bytewise, rollout(bytewise, tokens)) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("piece", [1, 2, 5, 32])
def test_a_long_answer_is_read_in_pieces_and_told_the_same(
    bytewise: Policy, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("lgrpo.reading._PIECE", piece)
    decoded: list[int] = []
    decode = bytewise.decode
    monkeypatch.setattr(bytewise, "decode", lambda tokens: decoded.append(len(tokens)) or decode(tokens))
    assert "".join(unfold(bytewise, ids(bytewise, TEXT * 9))) == (TEXT * 9).strip()
    assert max(decoded) <= 2 * piece + 14  # the emoji is eleven bytes


def test_a_space_that_the_next_word_takes_back_is_not_told() -> None:
    """Some tokenizers clean up: `it ' s` becomes `it's` once the s is there."""
    words = ["[UNK]", "it", "'", "s", "done", ".", "<think>", "</think>", "<|end|>"]
    inner = Tokenizer(WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece(cleanup=False)
    tokens = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", clean_up_tokenization_spaces=True)
    policy = Policy(models.model("llama", len(words)), tokens, Card("explicit"), "words")
    told = unfold(policy, [1, 2, 3, 4, 5])
    assert "".join(told) == policy.decode([1, 2, 3, 4, 5]) == "it's done."
    assert told[1] == "it"
    assert policy.decode([1, 2]) == "it '"  # the control: telling this at once would have been wrong


def test_the_end_marker_is_no_part_of_the_answer_however_many_tokens_it_is() -> None:
    tokens = models.tokenizer(think=False)
    policy = Policy(models.model("llama", len(tokens)), tokens, Card("latent"), "bytes")
    assert len(policy.end_ids) == 8
    text, begun = Unfolding(policy), []
    for token in [LATENT, *policy.end_ids, *ids(policy, "29")]:
        text.add(torch.tensor([token]))
        begun.append(text.begun)
        assert text.more() in ("", "2")
    assert begun == [False] * 9 + [True] * 2
    assert text.rest() == "9"
    # A marker that turns out to be none is text.
    told = unfold(policy, [LATENT, *policy.end_ids[:3], *ids(policy, "x")])
    assert "".join(told) == "</tx"
    # An explicit response is text from the beginning.
    assert "".join(unfold(policy, [*policy.end_ids, *ids(policy, "x")])) == "</think>x"


def test_words_can_be_read_whatever_the_token_is(bytewise: Policy) -> None:
    """Weights by hand: softmax of (0, ln 1/2, ln 1/4) is 4/7, 2/7, 1/7."""
    line_feed, euro, letter = ids(bytewise, "\n")[0], ids(bytewise, "€")[1], ids(bytewise, "x")[0]
    scores = torch.tensor([[1.0, 0.5, 0.25]]).log()
    part = Part(torch.tensor([LATENT]), torch.tensor([[line_feed, euro, letter]]), scores)
    (step,) = latent_steps(bytewise, part, tau=1.0)
    assert [(word.token, word.text) for word in step] == [(line_feed, "'\\n'"), (euro, "\\x82"), (letter, "x")]
    assert [word.weight for word in step] == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=1e-6)
    (colder,) = latent_steps(bytewise, part, tau=0.5)
    assert [word.weight for word in colder] == pytest.approx([16 / 21, 4 / 21, 1 / 21], abs=1e-6)


def test_words_that_differ_by_a_space_only_show_it() -> None:
    from lgrpo import tiny

    policy = Policy.load(tiny.MODEL)
    spaced, bare, pens = (ids(policy, text)[0] for text in (" 12", "12", " pens"))
    part = Part(torch.tensor([LATENT]), torch.tensor([[spaced, bare, pens]]), torch.zeros(1, 3))
    (step,) = latent_steps(policy, part, 1.0)
    assert [word.text for word in step] == ["_12", "12", "pens"]


def test_readable_shows_words_of_a_fifth_of_the_weight(bytewise: Policy) -> None:
    a, b, c = ids(bytewise, "abc")
    tokens = torch.tensor([LATENT, LATENT, *bytewise.end_ids, a])
    scores = torch.tensor([[0.7, 0.25, 0.05], [0.9, 0.05, 0.05], [1, 1, 1], [1, 1, 1]]).log()
    indices = torch.tensor([[a, b, c], [b, a, c], [0, 0, 0], [0, 0, 0]])
    made = Rollout((), tokens, indices, scores, torch.zeros(4), valid=True)
    assert readable(bytewise, made, 1.0) == ("a b | b", "a")
