"""Masks and positions of Latent-SFT against matrices drawn by hand (docs/method.md, 6)."""

import pytest
import torch
from torch import Tensor

from lgrpo.latent_sft import dual_track_positions, induction_mask, supervision_mask

PAD, C, Z = 0, 90, 91  # padding, compress token, latent
OPEN, THINK, CLOSE = 70, 71, 72  # the end marker, in three tokens


def drawn(text: str) -> Tensor:
    """A mask from a drawing: a line a query, `x` where it may attend."""
    return torch.tensor([[mark == "x" for mark in line.split()[1:]] for line in text.strip().splitlines()])


def test_induction_mask_hides_a_compress_token_from_all_later_positions() -> None:
    ids = torch.tensor([[5, 6, 11, 12, C, 13, 14, C, 15, C]])
    expected = drawn("""
        p  x . . . . . . . . .
        p  x x . . . . . . . .
        t  x x x . . . . . . .
        t  x x x x . . . . . .
        C  x x x x x . . . . .
        t  x x x x . x . . . .
        t  x x x x . x x . . .
        C  x x x x . x x x . .
        t  x x x x . x x . x .
        C  x x x x . x x . x x
    """)
    assert torch.equal(induction_mask(ids, C, PAD)[0], expected)


def test_padding_on_the_right_is_seen_by_nobody_and_sees_something() -> None:
    ids = torch.tensor([[5, 11, C, PAD, PAD], [5, 11, 12, C, 13]])
    mask = induction_mask(ids, C, PAD)
    assert torch.equal(
        mask[0],
        drawn("""
        p  x . . . .
        t  x x . . .
        C  x x x . .
        _  x x . . .
        _  x x . . .
        """),
    )
    assert mask[1, 4].tolist() == [True, True, True, False, True]
    assert mask.any(-1).all()


def test_a_pad_id_between_other_tokens_is_an_ordinary_token() -> None:
    """Llama pads with <|eot_id|>, which also ends every turn of the prompt."""
    ids = torch.tensor([[5, PAD, 11, C, PAD]])
    mask = induction_mask(ids, C, PAD)[0]
    assert mask[2].tolist() == [True, True, True, False, False]
    assert not mask[:, 4].any()


def test_padding_on_the_left_leaves_no_empty_row() -> None:
    ids = torch.tensor([[PAD, PAD, 5, 11, C]])
    expected = drawn("""
        _  x . . . .
        _  . x . . .
        p  . . x . .
        t  . . x x .
        C  . . x x x
    """)
    assert torch.equal(induction_mask(ids, C, PAD)[0], expected)


def test_supervision_mask_of_a_whole_row() -> None:
    # prompt prompt | z1 t t | z2 t t | z3 | </ think > answer | padding
    ids = torch.tensor([[5, 6, Z, 11, 12, Z, 13, 14, Z, OPEN, THINK, CLOSE, 20, PAD]])
    expected = drawn("""
        p  x . . . . . . . . . . . . .
        p  x x . . . . . . . . . . . .
        z  x x x . . . . . . . . . . .
        t  . . x x . . . . . . . . . .
        t  . . x x x . . . . . . . . .
        z  x x x . . x . . . . . . . .
        t  . . . . . x x . . . . . . .
        t  . . . . . x x x . . . . . .
        z  x x x . . x . . x . . . . .
        </ x x x . . x . . x x . . . .
        th x x x . . x . . x x x . . .
        >  x x x . . x . . x x x x . .
        a  x x x . . x . . x x x x x .
        _  x x x . . x . . x x x x x .
    """)
    assert torch.equal(supervision_mask(ids, Z, [OPEN, THINK, CLOSE], PAD)[0], expected)


def test_a_piece_of_the_end_marker_within_the_chain_does_not_end_it() -> None:
    """With a marker of several tokens, `</` alone is ordinary text: a chain about HTML has many."""
    ids = torch.tensor([[5, Z, OPEN, THINK, Z, OPEN, THINK, CLOSE, Z, OPEN, THINK, CLOSE, 20]])
    mask = supervision_mask(ids, Z, [OPEN, THINK, CLOSE], PAD)[0]
    expected = drawn("""
        p  x . . . . . . . . . . . .
        z  x x . . . . . . . . . . .
        </ . x x . . . . . . . . . .
        th . x x x . . . . . . . . .
        z  x x . . x . . . . . . . .
        </ . . . . x x . . . . . . .
        th . . . . x x x . . . . . .
        >  . . . . x x x x . . . . .
        z  x x . . x . . . x . . . .
        </ x x . . x . . . x x . . .
        th x x . . x . . . x x x . .
        >  x x . . x . . . x x x x .
        a  x x . . x . . . x x x x x
    """)
    assert torch.equal(mask, expected)


def test_an_end_marker_of_one_token_and_ragged_rows() -> None:
    ids = torch.tensor([[5, Z, 11, Z, 70, 20], [5, 6, Z, 70, 20, PAD]])
    mask = supervision_mask(ids, Z, [70], PAD)
    first = drawn("""
        p  x . . . . .
        z  x x . . . .
        t  . x x . . .
        z  x x . x . .
        >  x x . x x .
        a  x x . x x x
    """)
    second = drawn("""
        p  x . . . . .
        p  x x . . . .
        z  x x x . . .
        >  x x x x . .
        a  x x x x x .
        _  x x x x x .
    """)
    assert torch.equal(mask[0], first)
    assert torch.equal(mask[1], second)


def test_text_after_the_last_latent_and_before_the_marker_is_a_segment() -> None:
    ids = torch.tensor([[5, Z, 11, OPEN, 12, OPEN, THINK, 20]])
    mask = supervision_mask(ids, Z, [OPEN, THINK], PAD)[0]
    assert mask[4].tolist() == [False, True, True, True, True, False, False, False]
    assert mask[6].tolist() == [True, True, False, False, False, True, True, False]


def test_a_row_without_latents_is_plainly_causal() -> None:
    """Also one in which the prompt itself holds the end marker."""
    ids = torch.tensor([[5, OPEN, 6, 7]])
    assert torch.equal(supervision_mask(ids, Z, [OPEN], PAD)[0], torch.ones(4, 4, dtype=torch.bool).tril())


def test_an_end_marker_in_the_prompt_does_not_start_the_answer() -> None:
    ids = torch.tensor([[5, OPEN, 6, Z, 11, Z, OPEN, 20]])
    mask = supervision_mask(ids, Z, [OPEN], PAD)[0]
    assert mask[4].tolist() == [False, False, False, True, True, False, False, False]
    assert mask[7].tolist() == [True, True, True, True, False, True, True, True]


def test_dual_track_positions_by_hand() -> None:
    # prompt: 0 1 | z1: 2, its text 3 4 | z2: 3, its text 4 5 | z3: 4 | </think>: 5 6 7, answer 8
    ids = torch.tensor([5, 6, Z, 11, 12, Z, 13, 14, Z, OPEN, THINK, CLOSE, 20])
    assert dual_track_positions(ids, Z).tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 4, 5, 6, 7, 8]


def test_dual_track_positions_with_one_latent_none_and_many_rows() -> None:
    assert dual_track_positions(torch.tensor([5, 6, Z, 70, 20]), Z).tolist() == [0, 1, 2, 3, 4]
    assert dual_track_positions(torch.tensor([5, 6, 7]), Z).tolist() == [0, 1, 2]
    rows = torch.tensor([[5, Z, 11, Z, 70, 20], [5, 6, 7, Z, 70, PAD]])
    assert dual_track_positions(rows, Z).tolist() == [[0, 1, 2, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("seed", range(20))
def test_every_mask_is_causal_and_without_empty_rows(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (3, 12), generator=generator)  # 0 padding, 1 latent, 2 compress, 3 end marker
    for mask in (induction_mask(ids, 2, 0), supervision_mask(ids, 1, [3], 0)):
        assert mask.shape == (3, 12, 12)
        assert mask.dtype == torch.bool
        assert mask.any(-1).all()
        assert not mask.triu(1).any()
