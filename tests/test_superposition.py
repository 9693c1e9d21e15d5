"""The latent step and its noise against hand-worked numbers and the plain reference."""

import math
from collections.abc import Callable

import pytest
import reference
import torch
from torch import Tensor

from lgrpo import noise
from lgrpo.superposition import LatentSettings, embed, explore, mixture, step_logprob, surrogate_logprob, weights_of

NOWHERE = -1  # an end marker no token has
NoiseTable = Callable[[list[float]], None]


def keys_of(count: int) -> Tensor:
    return torch.tensor([noise.row_key(7, problem, 0) for problem in range(count)])


def run(
    log_probs: Tensor, settings: LatentSettings, end_id: int = NOWHERE, scale: float | Tensor = 1.0, step: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(log_probs)
    scales = torch.full((rows,), scale) if isinstance(scale, float) else scale
    return explore(log_probs, keys_of(rows), torch.full((rows,), step), scales, end_id, settings)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> NoiseTable:
    """Replace the hash by a table: the Gumbel noise of token i is table[i]."""

    def use(table: list[float]) -> None:
        monkeypatch.setattr(noise, "gumbel", lambda keys, steps, tokens: torch.tensor(table)[tokens])

    return use


# --- mixture -------------------------------------------------------------------------------------------------------


def test_mixture_is_the_softmax_over_the_k_best_alone() -> None:
    logits = torch.tensor([math.log(1.0), math.log(6.0), math.log(3.0), math.log(2.0)])
    indices, weights = mixture(logits, 2)
    assert indices.tolist() == [1, 2]
    assert weights.tolist() == pytest.approx([6 / 9, 3 / 9], abs=1e-6)  # not 6/12 and 3/12


@pytest.mark.parametrize("k", [1, 4, 30])
def test_mixture_equals_the_reference_in_float64(k: int) -> None:
    logits = torch.randn(3, 2, 30, dtype=torch.float64) * 4
    indices, weights = mixture(logits, k)
    assert indices.shape == weights.shape == (3, 2, k)
    for place in [(0, 0), (2, 1)]:
        expected = reference.mixture(logits[place].tolist(), k)
        assert indices[place].tolist() == expected[0]
        assert weights[place].tolist() == pytest.approx(expected[1], abs=1e-14)


def test_mixture_of_bfloat16_logits_has_float32_weights() -> None:
    _, weights = mixture(torch.randn(5, 40).bfloat16(), 10)
    assert weights.dtype == torch.float32
    assert weights.sum(-1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_embeddings_are_summed_in_float32() -> None:
    """Ten terms of 1/10 added in bfloat16 drift off the exact sum by several units in the last place."""
    table = torch.nn.Embedding(50, 64, dtype=torch.bfloat16)
    indices = torch.stack([torch.randperm(50)[:10] for _ in range(20)])
    weights = torch.rand(20, 10).softmax(-1)
    mixed = embed(indices, weights, table)
    exact = torch.einsum("nk,nkd->nd", weights.double(), table(indices).double())
    assert mixed.dtype == torch.bfloat16
    bound = 2.0**-8 * exact.abs() + 1e-6  # one rounding to bfloat16, and no more
    assert bool(((mixed.double() - exact).abs() <= bound).all())


# --- exploration ---------------------------------------------------------------------------------------------------


def test_exploration_by_hand(drawn: NoiseTable) -> None:
    """Nucleus {0, 1, 2, 3} of six tokens; noise clipped at both ends and made one-sided."""
    log_probs = torch.tensor([[0.40, 0.30, 0.20, 0.06, 0.03, 0.01]]).log()
    drawn([-4.0, 0.0, -1.5, 5.0, 9.0, 9.0])  # tokens 4 and 5 would win, but are no candidates
    indices, scores, hard = run(log_probs, LatentSettings(k=2))
    assert not hard
    assert indices.tolist() == [[3, 1]]
    assert scores[0].tolist() == pytest.approx([math.log(0.06) + 4.5, math.log(0.30) + 1.5], abs=1e-6)

    indices, scores, _ = run(log_probs, LatentSettings(k=4))
    assert indices.tolist() == [[3, 1, 0, 2]]
    # Clipped to -1.5 below, so exactly the log-probability: one-sided noise never takes away.
    assert scores[0, 2:].tolist() == pytest.approx([math.log(0.40), math.log(0.20)], abs=1e-6)


def test_two_sided_noise_is_not_shifted(drawn: NoiseTable) -> None:
    log_probs = torch.tensor([[0.40, 0.30, 0.20, 0.06, 0.03, 0.01]]).log()
    drawn([-4.0, 0.0, -1.5, 5.0, 9.0, 9.0])
    _, scores, _ = run(log_probs, LatentSettings(k=4, one_sided=False))
    expected = [math.log(0.06) + 3, math.log(0.30), math.log(0.40) - 1.5, math.log(0.20) - 1.5]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_k_most_probable_are_candidates_outside_the_nucleus(drawn: NoiseTable) -> None:
    """The nucleus is token 0 alone; with K = 3 a mixture still has three members, and never token 3."""
    log_probs = torch.tensor([[0.97, 0.02, 0.006, 0.004]]).log()
    drawn([-1.5, -1.5, 3.0, 3.0])
    indices, scores, _ = run(log_probs, LatentSettings(k=3))
    assert indices.tolist() == [[0, 2, 1]]
    assert scores[0, 1].item() == pytest.approx(math.log(0.006) + 4.5, abs=1e-6)


def test_a_probable_end_marker_ends_the_chain_whatever_the_noise(drawn: NoiseTable) -> None:
    log_probs = torch.tensor([[0.4, 0.35, 0.25]]).log()
    drawn([-1.5, 3.0, 3.0])  # under noise the end marker would come last
    assert run(log_probs, LatentSettings(k=2), end_id=0)[2].tolist() == [True]


def test_an_end_marker_first_under_noise_ends_the_chain(drawn: NoiseTable) -> None:
    log_probs = torch.tensor([[0.4, 0.35, 0.25]]).log()
    drawn([-1.5, -1.5, 3.0])
    assert run(log_probs, LatentSettings(k=2), end_id=2)[2].tolist() == [True]


def test_an_end_marker_further_down_is_mixed_in(drawn: NoiseTable) -> None:
    log_probs = torch.tensor([[0.4, 0.35, 0.25]]).log()
    drawn([3.0, -1.5, 1.0])
    indices, _, hard = run(log_probs, LatentSettings(k=2), end_id=2)
    assert hard.tolist() == [False]
    assert indices.tolist() == [[0, 2]]


@pytest.mark.parametrize("one_sided", [True, False])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("shortlist", [8, 40, 200])
def test_exploration_equals_the_reference(sharpness: float, one_sided: bool, shortlist: int) -> None:
    """Every row with its own noise scale, short list or whole vocabulary, against loops over all tokens."""
    rows, vocabulary, end_id = 12, 200, 5
    logits = torch.randn(rows, vocabulary, dtype=torch.float64) * sharpness
    logits[:6, end_id] = logits[:6].amax(-1) - 0.3  # likely, but not the most probable
    logits[:3, end_id] += 1
    scales = torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(3)
    settings = LatentSettings(k=4, tau=1.3, one_sided=one_sided, shortlist=shortlist)
    indices, scores, hard = run(logits.log_softmax(-1), settings, end_id, scales)
    raw = noise.gumbel(keys_of(rows), torch.full((rows,), 3), torch.arange(vocabulary).expand(rows, -1))
    assert 0 < int(hard.sum()) < rows
    for row in range(rows):
        expected = reference.explore(
            logits[row].tolist(), raw[row].tolist(), end_id, 4, 1.3, float(scales[row]), one_sided
        )
        assert bool(hard[row]) == expected.hard
        if not expected.hard:
            assert indices[row].tolist() == expected.indices
            assert scores[row].tolist() == pytest.approx(expected.scores, abs=1e-6)


def test_a_flat_distribution_falls_back_to_the_whole_vocabulary() -> None:
    """The winners under noise lie far outside the short list; every fourth row is sharp and needs no fallback."""
    logits = torch.randn(16, 500) * 0.1
    logits[::4] *= 100
    log_probs = logits.log_softmax(-1)
    short, full = (run(log_probs, LatentSettings(k=4, shortlist=size)) for size in (16, 500))
    assert torch.equal(short[0], full[0])
    assert torch.equal(short[1], full[1])
    rank = log_probs.argsort(descending=True).argsort()
    assert int(rank.gather(1, short[0])[1::4].max()) >= 16


def test_a_token_just_within_reach_of_the_noise_is_found(drawn: NoiseTable) -> None:
    """Token 3 is 4.49 nats below the best: 4.5 of noise lifts it to the top. A list of three misses it."""
    probabilities = torch.tensor([0.9, 0.03, 0.03, 0.9 * math.exp(-4.49)])
    drawn([-1.5, -1.5, -1.5, 3.0])
    settings = LatentSettings(k=1, shortlist=3, top_p=0.9999)
    indices, _, _ = run((probabilities / probabilities.sum()).log()[None], settings)
    assert indices.tolist() == [[3]]


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_noise_scale_zero_is_the_mixture_whatever_tau(tau: float) -> None:
    logits = torch.randn(9, 300) * 3
    settings = LatentSettings(k=10, tau=tau)
    indices, scores, _ = run(logits.log_softmax(-1), settings, scale=0.0)
    expected = mixture(logits, 10)
    assert torch.equal(indices, expected[0])
    assert torch.allclose(weights_of(scores, tau), expected[1], atol=1e-6)


def test_tau_flattens_the_weights_of_explored_steps() -> None:
    scores = torch.tensor([math.log(9.0), 0.0])
    assert weights_of(scores, 1.0).tolist() == pytest.approx([0.9, 0.1])
    assert weights_of(scores, 2.0).tolist() == pytest.approx([0.75, 0.25])


def test_one_sided_margins_are_never_negative() -> None:
    log_probs = (torch.randn(200, 100) * 2).log_softmax(-1)
    indices, scores, _ = run(log_probs, LatentSettings())
    margins = scores - log_probs.gather(1, indices)
    assert 0 <= float(margins.min()) < 0.5
    assert 4.0 < float(margins.max()) <= 4.5 + 1e-5
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    _, two_sided, _ = run(log_probs, LatentSettings(one_sided=False))
    assert float((two_sided[:, -1] - scores[:, -1]).max()) < 0


# --- noise ---------------------------------------------------------------------------------------------------------


def test_noise_is_a_pure_function_of_row_step_and_token() -> None:
    keys, steps = keys_of(6), torch.arange(6)
    tokens = torch.randint(0, 150_000, (6, 12))
    drawn = noise.gumbel(keys, steps, tokens)
    rows, columns = torch.randperm(6)[:4], torch.randperm(12)
    assert torch.equal(noise.gumbel(keys[rows], steps[rows], tokens[rows][:, columns]), drawn[rows][:, columns])
    for changed in [(keys + 1, steps, tokens), (keys, steps + 1, tokens), (keys, steps, tokens + 1)]:
        assert not bool((noise.gumbel(*changed) == drawn).any())


def test_row_keys_differ_by_seed_problem_and_sample() -> None:
    keys = {noise.row_key(s, p, g) for s in range(10) for p in [0, 1, 11, 2**62] for g in range(12)}
    assert len(keys) == 10 * 4 * 12
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert noise.row_key(0, 1, 2) == 7324074409984376592  # runs of earlier versions stay reproducible


def test_noise_equals_the_hash_in_unbounded_integers() -> None:
    """int64 has neither an unsigned multiply nor a logical shift; the sign must not leak into the hash."""
    keys, steps = torch.tensor([5, -5, 2**63 - 1, -(2**63)]), torch.tensor([0, 1, 4095, 9])
    tokens = torch.tensor([[0, 151_642], [1, 7], [3, 128_000], [255, 2]])
    drawn = noise.uniform(keys, steps, tokens)
    for row in range(4):
        expected = [reference.splitmix_uniform(int(keys[row]), int(steps[row]), int(t)) for t in tokens[row]]
        assert drawn[row].tolist() == expected


def test_the_ends_of_the_hash_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bits set once rounded to 1.0, infinite noise, and a token outside the nucleus."""
    for bits in (-1, 0):
        monkeypatch.setattr(noise, "_mix", lambda z, bits=bits: torch.full_like(z, bits))
        drawn = noise.uniform(torch.zeros(1).long(), torch.zeros(1).long(), torch.zeros(1, 1).long())
        assert 0 < float(drawn) < 1
        assert math.isfinite(float(-torch.log(-torch.log(drawn))))


def test_noise_is_uniform_and_uncorrelated() -> None:
    keys, steps, tokens = keys_of(100), torch.arange(50), torch.arange(100)
    drawn = (
        noise.uniform(keys.repeat_interleave(50), steps.repeat(100), tokens.expand(5000, -1))
        .double()
        .view(100, 50, 100)
    )  # key, step, token
    n = drawn.numel()
    assert float(drawn.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / n))
    share = torch.histc(drawn, 64, 0, 1) / n
    assert float((share - 1 / 64).abs().max()) < 4.5 * math.sqrt(1 / 64 / n)
    centred = (drawn - 0.5) * math.sqrt(12)
    for dimension in range(3):
        for lag in (1, 2):
            pairs = centred * centred.roll(lag, dimension)
            assert abs(float(pairs.mean())) < 4 / math.sqrt(n), (dimension, lag)
    assert abs(float((centred[1:, 1:] * centred[:-1, :-1]).mean())) < 4 / math.sqrt(n)
    assert abs(float((centred[:, 1:, :-1] * centred[:, :-1, 1:]).mean())) < 4 / math.sqrt(n)


def test_gumbel_noise_has_the_gumbel_mean_and_variance() -> None:
    drawn = noise.gumbel(keys_of(200), torch.zeros(200).long(), torch.arange(1000).expand(200, -1)).double()
    n = drawn.numel()
    assert float(drawn.mean()) == pytest.approx(0.5772156649, abs=4 * math.pi / math.sqrt(6 * n))
    assert float(drawn.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)


# --- surrogate -----------------------------------------------------------------------------------------------------


def gradient(margins: list[float], advantage: float | None, weights: Tensor | None = None) -> tuple[float, list[float]]:
    """Value and d/dlogp of one step whose components have these margins."""
    log_p = torch.linspace(-1.0, -3.0, len(margins), dtype=torch.float64, requires_grad=True)
    scores = log_p.detach() + torch.tensor(margins, dtype=torch.float64)
    given = None if advantage is None else torch.tensor(advantage, dtype=torch.float64)
    value = surrogate_logprob(log_p, scores, given, weights)
    (slope,) = torch.autograd.grad(value, log_p)
    return float(value.detach()), slope.tolist()


def test_surrogate_value_by_hand() -> None:
    """Margins 1 and 0: (-1 - 1/e + 0 - 1) / 2."""
    for advantage in (None, 1.0, -1.0):
        value, _ = gradient([1.0, 0.0], advantage)
        assert value == pytest.approx((-1 - math.exp(-1) - 1) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("margin", "advantage", "expected"),
    [
        (+1.0, +1.0, +(1 - math.exp(-1)) / 2),  # good: more probable
        (+1.0, -1.0, +(1 - math.exp(-1)) / 2),  # bad: the advantage makes it less probable
        (-1.0, +1.0, (1 - math.exp(1)) / 2),  # good, but grown past where it was sampled: pulled back
        (-1.0, -1.0, +(1 - math.exp(-1)) / 2),  # bad: mirrored, so that it loses probability too
    ],
)
def test_surrogate_gradient_in_all_four_quadrants(margin: float, advantage: float, expected: float) -> None:
    """The release leaves the last sign as it was, which raises a bad sample's components."""
    value, slope = gradient([margin, margin], advantage)
    assert slope == pytest.approx([expected, expected], abs=1e-12)
    assert value == pytest.approx(-margin - math.exp(-margin), abs=1e-12)  # the value is never mirrored


def test_ascent_under_a_negative_advantage_lowers_a_component_with_a_negative_margin() -> None:
    """The number the release gets wrong: +0.63 there, -0.63 here."""
    _, slope = gradient([-1.0], -1.0)
    assert -1.0 * slope[0] == pytest.approx(-0.632, abs=5e-4)


def test_the_mirrored_gradient_is_bounded() -> None:
    _, slope = gradient([-30.0], -1.0)
    assert slope[0] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
def test_surrogate_equals_the_reference_component_by_component(advantage: float) -> None:
    margins = [2.5, -0.7, 0.0, 0.3, -2.0]
    value, slope = gradient(margins, advantage)
    log_p = torch.linspace(-1.0, -3.0, 5, dtype=torch.float64).tolist()
    scores = [p + m for p, m in zip(log_p, margins, strict=True)]
    assert value == pytest.approx(reference.surrogate(log_p, scores), abs=1e-12)
    assert slope == pytest.approx(reference.surrogate_gradient(log_p, scores, advantage), abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("advantage", [None, 1.0])
def test_surrogate_gradient_is_the_derivative_where_nothing_is_mirrored(
    weighted: bool, advantage: float | None
) -> None:
    log_p = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scores = log_p.detach() + torch.randn(4, 3, dtype=torch.float64)
    weights = torch.rand(4, 3, dtype=torch.float64).softmax(-1) if weighted else None
    given = None if advantage is None else torch.full((4,), advantage, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: surrogate_logprob(p, scores, given, weights), log_p)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mirrored_gradient_is_the_derivative_of_the_mirrored_density(weighted: bool) -> None:
    """Conditional straight-through by finite differences, each component moved by itself.

    Where advantage and margin are negative the slope is that of exp(margin) - margin; elsewhere that of the value.
    """
    log_p = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    scores = log_p.detach() + torch.randn(6, 4, dtype=torch.float64)
    advantage = torch.tensor([-1.0, -0.5, -2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    weights = torch.rand(6, 4, dtype=torch.float64).softmax(-1) if weighted else torch.full((6, 4), 0.25).double()
    surrogate_logprob(log_p, scores, advantage, weights if weighted else None).sum().backward()

    def differentiated(row: int, column: int, moved: float) -> float:
        margin = float(scores[row, column] - log_p.detach()[row, column]) - moved
        if margin < 0 and advantage[row] < 0:
            return float(weights[row, column]) * (math.exp(margin) - margin)
        return float(weights[row, column]) * (-margin - math.exp(-margin))

    step, turned = 1e-6, 0
    assert log_p.grad is not None
    for row in range(6):
        for column in range(4):
            sides = [differentiated(row, column, sign * step) for sign in (1, -1)]
            assert float(log_p.grad[row, column]) == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-7)
            turned += float(scores[row, column] - log_p.detach()[row, column]) < 0 and float(advantage[row]) < 0
    assert 3 < turned < 12


def test_each_row_is_mirrored_by_its_own_advantage() -> None:
    log_p = torch.zeros(2, 3, 1, dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]], dtype=torch.float64)
    surrogate_logprob(log_p, torch.full_like(log_p, -1.0), advantage).sum().backward()
    assert log_p.grad is not None
    mirrored = (advantage < 0).double()
    expected = mirrored * (1 - math.exp(-1)) + (1 - mirrored) * (1 - math.exp(1))
    assert torch.allclose(log_p.grad[..., 0], expected, atol=1e-12)


def test_one_hot_weights_are_the_published_form_at_k_1() -> None:
    for advantage in (1.0, -1.0):
        for margins in ([0.4, -0.9, 2.0], [0.4, 1.0, 2.0]):
            weights = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
            value, slope = gradient(margins, advantage, weights)
            alone, slope_alone = gradient([margins[1]], advantage)
            assert value == pytest.approx(alone, abs=1e-12)
            assert slope == pytest.approx([0.0, slope_alone[0], 0.0], abs=1e-12)


def test_weights_by_hand_and_without_gradient() -> None:
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64, requires_grad=True)
    value, slope = gradient([1.0, -1.0], -1.0, weights)
    assert value == pytest.approx(0.75 * (-1 - math.exp(-1)) + 0.25 * (1 - math.exp(1)), abs=1e-12)
    assert slope == pytest.approx([0.75 * (1 - math.exp(-1)), 0.25 * (1 - math.exp(-1))], abs=1e-12)
    assert weights.grad is None
    log_p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    surrogate_logprob(log_p, torch.ones(2, dtype=torch.float64), None, weights).backward()
    assert weights.grad is None


@pytest.mark.parametrize(("noise_scale", "unit"), [(0.5, 0.5), (1.0, 1.0), (0.0, 1.0)])
def test_margins_are_measured_in_units_of_the_noise(noise_scale: float, unit: float) -> None:
    """The margin of a component is the Gumbel number it was drawn with, at any scale; without noise, as it is."""
    log_p = torch.tensor([-0.5, -1.5], dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([2.0, 0.25], dtype=torch.float64)
    settings = LatentSettings(k=2, noise_scale=noise_scale)
    value = step_logprob(log_p, log_p.detach() + unit * drawn, settings)
    assert float(value) == pytest.approx(float((-drawn - torch.exp(-drawn)).mean()), abs=1e-12)
    value.backward()
    assert log_p.grad is not None
    assert log_p.grad.tolist() == pytest.approx(((1 - torch.exp(-drawn)) / 2 / unit).tolist(), abs=1e-12)


def test_the_weighted_step_uses_the_recorded_mixture_at_its_temperature() -> None:
    log_p, scores = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.0])
    settings = LatentSettings(k=2, tau=2.0, weighted=True)
    expected = surrogate_logprob(log_p, scores, None, torch.tensor([0.5, 0.0]).softmax(-1))
    assert torch.equal(step_logprob(log_p, scores, settings), expected)
