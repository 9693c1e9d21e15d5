"""The engine against a plain loop without a cache, in float64, and against itself in other batches."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import models
import pytest
import reference
import torch
from models import LATENTS, LIMIT, TEXTS, engine, mixed_requests, prompt
from transformers.cache_utils import DynamicCache

from lgrpo import noise
from lgrpo.engine import EAGER, Engine, Pace
from lgrpo.engine.decode import TextSettings
from lgrpo.engine.slots import Slots
from lgrpo.policy import Card, Policy
from lgrpo.policy.cache import SlotCache, bytes_per_column
from lgrpo.rollout import LATENT, Part, Request, Rollout
from lgrpo.superposition import LatentSettings, mixture, weights_of


@pytest.fixture
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    models.compute_in_float64(monkeypatch)


def assert_same(ours: Rollout, theirs: Rollout, tolerance: float = 1e-9) -> None:
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert torch.allclose(ours.scores, theirs.scores, rtol=0, atol=tolerance)
    assert torch.allclose(ours.logprob, theirs.logprob, rtol=0, atol=tolerance)
    assert (ours.prompt, ours.valid) == (theirs.prompt, theirs.valid)


def assert_equals_reference(
    policy: Policy,
    requests: Sequence[Request],
    rollouts: Sequence[Rollout],
    settings: LatentSettings,
    limit: int = LIMIT,
) -> None:
    for request, rollout in zip(requests, rollouts, strict=True):
        with torch.no_grad():
            expected = reference.generate(policy, request, settings, TEXTS, limit)
        assert rollout.tokens.tolist() == expected.tokens
        assert rollout.valid == expected.valid
        assert rollout.logprob.tolist() == pytest.approx(expected.logprob, abs=1e-9)
        for at, (indices, scores) in enumerate(zip(expected.indices, expected.scores, strict=True)):
            blank = [0] * settings.k  # hard positions hold nothing, whatever the other rows did
            assert rollout.indices[at].tolist() == (indices or blank)
            assert rollout.scores[at].tolist() == pytest.approx(scores or blank, abs=1e-9)


# --- against the plain loop ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_engine_equals_a_plain_loop_without_cache(architecture: str) -> None:
    """Five slots for twelve requests: prompts wait, rows end, gaps are closed. Sliding windows are 5 wide."""
    policy = models.policy(architecture)
    requests = mixed_requests()
    rollouts = engine(policy, slots=5).generate(requests)
    assert_equals_reference(policy, requests, rollouts, LATENTS)
    assert {rollout.valid for rollout in rollouts} == {True, False}
    assert any(rollout.latent_length > 1 for rollout in rollouts)


@pytest.mark.usefixtures("_float64")
def test_the_plain_loop_sees_every_way_to_end() -> None:
    """Guards the test above: chains that end and do not, responses that end and do not, tails after a chain."""
    rollouts = engine(models.policy("smollm")).generate(mixed_requests())
    kinds = {(r.latent_length == 0, r.latent_length == r.length, r.valid) for r in rollouts}
    chain_only, tail, no_chain = (False, True), (False, False), (True, False)
    assert kinds == {(*chain_only, False), (*tail, True), (*tail, False), (*no_chain, True), (*no_chain, False)}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    "changes",
    [
        {"one_sided": False},
        {"tau": 0.5},
        {"k": 1},
        {"k": 8, "top_p": 0.5},
        {"shortlist": 3},
        {"noise_scale": 9.0},  # the row's own scale is that of its noise, this one that of the margins
        {"weighted": True, "tau": 0.5},
    ],
)
def test_engine_equals_a_plain_loop_under_other_settings(changes: dict[str, Any]) -> None:
    policy, requests = models.policy(), mixed_requests(8)
    settings = replace(LATENTS, **changes)
    assert_equals_reference(policy, requests, engine(policy, **changes).generate(requests), settings)


@pytest.mark.usefixtures("_float64")
def test_only_the_first_token_of_an_end_marker_switches_the_mode() -> None:
    """`</think>` is eight tokens here: the chain ends with the first, the others are ordinary tokens to be sampled."""
    tokens = models.tokenizer(think=False)
    policy = Policy(models.model("llama", len(tokens), sharpness=1.5), tokens, Card("latent"), "bytes")
    assert len(policy.end_ids) == 8
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[policy.end_id] *= 3
    requests = mixed_requests(6)
    rollouts = engine(policy).generate(requests)
    assert_equals_reference(policy, requests, rollouts, LATENTS)
    ended = [r for r in rollouts if 0 < r.latent_length < r.length - 1]
    assert ended
    for rollout in ended:
        assert rollout.hard_tokens[0] == policy.end_id
        assert LATENT not in rollout.tokens[rollout.latent_length :].tolist()
        assert rollout.hard_tokens[:8] != policy.end_ids


def test_the_noise_free_chain_is_the_mixture_and_draws_nothing() -> None:
    """Pass@1: the chain is the same for every sample; only the tail is sampled."""
    policy = models.policy("smollm")
    keys = [noise.row_key(0, 0, sample) for sample in range(8)]
    tails = set()
    for problem in range(6):
        requests = [Request(prompt(9, problem), key, noise_scale=0.0, temperature=1.0) for key in keys]
        rollouts = engine(policy).generate(requests)
        assert len({str(r.indices[: r.latent_length].tolist()) for r in rollouts}) == 1
        tails.add(len({tuple(r.hard_tokens) for r in rollouts}))
        if rollouts[0].latent_length:
            logits = policy.model(input_ids=torch.tensor([prompt(9, problem)])).logits[0, -1]
            indices, weights = mixture(logits, 3)
            assert rollouts[0].indices[0].tolist() == indices.tolist()
            assert torch.allclose(weights_of(rollouts[0].scores[0], 1.0), weights, atol=1e-6)
    assert max(tails) > 4


# --- against itself ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_batched_equals_alone(architecture: str) -> None:
    """Different prompts, lengths, modes and settings share a batch, and none of them notices."""
    policy, requests = models.policy(architecture, seed=2), mixed_requests()
    together = engine(policy).generate(requests)
    for request, rollout in zip(requests, together, strict=True):
        assert_same(engine(policy).generate([request])[0], rollout)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_few_slots_equal_many(slots: int) -> None:
    policy, requests = models.policy("qwen2"), mixed_requests()
    for few, many in zip(engine(policy, slots).generate(requests), engine(policy).generate(requests), strict=True):
        assert_same(few, many)


@pytest.mark.usefixtures("_float64")
def test_seeds_do_not_depend_on_the_order_of_the_batch() -> None:
    policy, requests = models.policy(), mixed_requests()
    order = torch.randperm(len(requests)).tolist()
    shuffled = engine(policy, 4).generate([requests[place] for place in order])
    straight = engine(policy).generate(requests)
    for place, rollout in zip(order, shuffled, strict=True):
        assert_same(rollout, straight[place])


def test_samples_of_one_problem_differ() -> None:
    rollouts = engine(models.policy()).generate([Request(prompt(8), noise.row_key(0, 0, n)) for n in range(6)])
    assert len({str((r.indices.tolist(), r.tokens.tolist())) for r in rollouts}) == 6


def test_an_engine_can_be_used_again() -> None:
    policy, requests = models.policy(), mixed_requests(5)
    reused = engine(policy)
    first = reused.generate(requests)
    for before, after in zip(first, reused.generate(requests), strict=True):
        assert_same(before, after, 0.0)


# --- limits and records --------------------------------------------------------------------------------------------


def test_reaching_the_limit_without_an_end_is_invalid() -> None:
    """A response of exactly the limit that does end is valid; cut one position shorter, it is not."""
    policy, requests = models.policy("smollm"), mixed_requests()
    free = engine(policy, limit=30).generate(requests)
    place = next(n for n, r in enumerate(free) if r.valid and r.length > 3)
    length = free[place].length
    assert int(free[place].tokens[-1]) in policy.eos_ids
    exact = engine(policy, limit=length).generate(requests)[place]
    assert (exact.valid, exact.length) == (True, length)
    cut = engine(policy, limit=length - 1).generate(requests)[place]
    assert (cut.valid, cut.length) == (False, length - 1)
    assert cut.tokens.tolist() == free[place].tokens[:-1].tolist()


def test_lengths_count_both_kinds_and_tell_them_apart() -> None:
    for rollout in engine(models.policy("smollm")).generate(mixed_requests()):
        latent = sum(token == LATENT for token in rollout.tokens.tolist())
        assert (rollout.latent_length, rollout.explicit_length) == (latent, rollout.length - latent)
        assert rollout.hard_tokens == rollout.tokens[latent:].tolist()
        assert rollout.length == len(rollout.logprob) == len(rollout.scores) == len(rollout.indices) <= LIMIT


def test_explicit_rows_hold_no_superposition() -> None:
    requests = [Request(prompt(8, n), noise.row_key(0, n, 0), latent=False) for n in range(4)]
    for rollout in engine(models.policy()).generate(requests):
        assert rollout.latent_length == 0
        assert not bool(rollout.indices.any())


def test_every_rollout_is_announced_once_and_returned_in_order() -> None:
    heard: dict[int, Rollout] = {}
    requests = mixed_requests()
    rollouts = engine(models.policy("smollm"), 3).generate(requests, lambda n, r: heard.__setitem__(n, r))
    assert sorted(heard) == list(range(len(requests)))
    assert all(heard[number] is rollout for number, rollout in enumerate(rollouts))
    assert [rollout.prompt for rollout in rollouts] == [request.prompt for request in requests]


@pytest.mark.parametrize("pace", [EAGER, Pace(look=3, halvings=2, columns=8), Pace(look=LIMIT + 5)])
@pytest.mark.parametrize("slots", [2, 64])
def test_steps_are_heard_as_they_come_and_are_the_rollout(pace: Pace, slots: int) -> None:
    """Looked at after each step, every third, or at the end: rows are moved, slots change hands, nothing is lost."""
    policy, requests = models.policy("smollm"), mixed_requests(7)
    plain, heard_of = engine(policy, slots), engine(policy, slots)
    plain.pace = heard_of.pace = pace
    parts: dict[int, list[Part]] = {number: [] for number in range(len(requests))}
    ended: set[int] = set()

    def hear(number: int, part: Part) -> None:
        assert number not in ended
        assert 1 <= len(part.tokens) <= pace.look
        parts[number].append(part)

    rollouts = heard_of.generate(requests, lambda number, _: ended.add(number), hear)
    for number, (rollout, untold) in enumerate(zip(rollouts, plain.generate(requests), strict=True)):
        assert_same(rollout, untold, 0.0)
        for name in Part._fields:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts[number]]), getattr(rollout, name))
        assert pace.look > 1 or len(parts[number]) == rollout.length


def test_steps_are_heard_once_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half way through all rows begin again, two at a time: what was told before is not told again."""
    policy, requests = models.policy("smollm"), mixed_requests()
    small, step, calls = engine(policy, 5), Slots.step, []

    def runs_out(self: Slots, *args: Any, **rest: Any) -> None:
        calls.append(self.size.slots)
        if len(calls) == 4:
            raise torch.OutOfMemoryError
        step(self, *args, **rest)

    monkeypatch.setattr(Slots, "step", runs_out)
    heard: dict[int, list[int]] = {}
    rollouts = small.generate(requests, on_steps=lambda n, part: heard.setdefault(n, []).extend(part.tokens.tolist()))
    assert {5, 2} == set(calls)
    assert [heard[number] for number in range(len(requests))] == [rollout.tokens.tolist() for rollout in rollouts]


def test_no_requests_no_rollouts() -> None:
    assert engine(models.policy()).generate([]) == []


def test_a_prompt_is_prefilled_once_for_its_group_and_ended_rows_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = models.policy("smollm")
    shapes: list[tuple[int, int]] = []
    hidden = policy.hidden

    def spy(embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append((embeds.shape[0], embeds.shape[1]))
        return hidden(embeds, *rest)

    monkeypatch.setattr(policy, "hidden", spy)
    requests = [Request(prompt(9, n // 6), noise.row_key(0, n // 6, n % 6)) for n in range(12)]
    rollouts = engine(policy).generate(requests)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 9)]
    assert sum(rows for rows, width in shapes if width == 1) == sum(rollout.length for rollout in rollouts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_models_are_recorded_in_float32(dtype: torch.dtype) -> None:
    for rollout in engine(models.policy(dtype=dtype)).generate(mixed_requests(6)):
        assert rollout.scores.dtype == rollout.logprob.dtype == torch.float32
        assert bool(rollout.logprob.isfinite().all())


# --- explicit tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.6, 30, 0.95), (1.0, 5, 1.0), (1.5, 24, 0.6), (0.6, 4, 0.7)]
)
def test_explicit_tokens_follow_their_distribution(temperature: float, top_k: int, top_p: float) -> None:
    policy, draws = models.policy(dtype=torch.float32, sharpness=1.0), 4000
    requests = [Request(prompt(8), noise.row_key(0, 0, n), latent=False, temperature=temperature) for n in range(draws)]
    settings = TextSettings(temperature, top_p, top_k)
    rollouts = Engine(policy, LATENTS, settings, 1, draws).generate(requests)
    logits = policy.model(input_ids=torch.tensor([prompt(8)])).logits[0, -1].tolist()
    expected = reference.explicit_distribution(logits, temperature, top_k, top_p)
    drawn = [0] * len(logits)
    for rollout in rollouts:
        drawn[int(rollout.tokens[0])] += 1
    possible = [(count, p) for count, p in zip(drawn, expected, strict=True) if p > 0]
    assert sum(count for count, _ in possible) == draws  # nothing from outside the nucleus
    assert len(possible) < len(logits) or top_k >= len(logits)
    statistic = sum((count - draws * p) ** 2 / (draws * p) for count, p in possible)
    freedom = len(possible) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    policy = models.policy()
    requests = [Request(prompt(8), noise.row_key(n, 0, n), latent=False, temperature=0.0) for n in range(5)]
    rollouts = engine(policy).generate(requests)
    ids = list(prompt(8))
    for token in rollouts[0].tokens.tolist():
        assert token == int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    assert len({tuple(r.tokens.tolist()) for r in rollouts}) == 1


def test_a_hard_token_is_scored_at_the_training_temperature() -> None:
    """log_softmax(z / 0.6) of the whole vocabulary, neither cut to the nucleus nor at the row's own temperature."""
    policy = models.policy()
    request = Request(prompt(8), 5, latent=False, temperature=1.3)
    rollout = engine(policy, limit=1).generate([request])[0]
    logits = policy.model(input_ids=torch.tensor([prompt(8)])).logits[0, -1]
    expected = (logits / 0.6).log_softmax(-1)[rollout.tokens[0]].detach()
    assert float(rollout.logprob[0]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "smollm", "qwen3", "gemma", "gpt-neox"])
def test_the_memory_of_a_cache_is_foreseen(architecture: str) -> None:
    """What the plan for a GPU counts with is what the cache allocates."""
    policy = models.policy(architecture)
    cache = SlotCache(prompts=2, members=2, prompt_columns=7, slots=3, columns=20, shared=True)
    prefill = DynamicCache()
    ids = torch.tensor([prompt(5)])
    causal = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    policy.hidden(policy.embedding(ids), causal, torch.arange(5)[None], prefill)
    cache.hold(prefill, torch.tensor([1]))
    tensors = (*cache.keys, *cache.values, *cache.prompt_keys, *cache.prompt_values)
    taken = sum(t.numel() * t.element_size() for t in tensors)
    assert taken == (3 * 20 + (2 + 1) * 7) * bytes_per_column(policy.model)


def test_prompts_that_are_prefilled_in_pieces_give_the_same_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, requests = models.policy("llama", torch.float32), mixed_requests()
    whole = engine(policy).generate(requests)
    monkeypatch.setattr("lgrpo.engine.engine.PREFILL", 25)
    for ours, theirs in zip(engine(policy).generate(requests), whole, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
