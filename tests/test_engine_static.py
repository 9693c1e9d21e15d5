"""Steps that wait for nothing, as a CUDA graph takes them; memory that runs out; logits that are no numbers."""

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from models import LATENTS, LIMIT, TEXTS, engine, mixed_requests, prompt

from lgrpo import noise, superposition
from lgrpo.engine import EAGER, GRAPHED, Engine, Pace, decode
from lgrpo.engine.graphs import NoGraphError
from lgrpo.engine.seats import Arrival, Size
from lgrpo.engine.slots import Slots
from lgrpo.errors import UserError
from lgrpo.policy import Policy
from lgrpo.policy.attention import attention
from lgrpo.policy.lean import LeanDecoder
from lgrpo.rollout import Request, Rollout

STATIC = Pace(look=3, halvings=2, columns=8)


@pytest.fixture
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    models.compute_in_float64(monkeypatch)


def assert_same(ours: Sequence[Rollout], theirs: Sequence[Rollout], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.indices.tolist() == other.indices.tolist()
        assert torch.allclose(one.scores, other.scores, rtol=0, atol=tolerance)
        assert torch.allclose(one.logprob, other.logprob, rtol=0, atol=tolerance)
        assert (one.prompt, one.valid, one.broken) == (other.prompt, other.valid, other.broken)


# --- static steps --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_static_steps_equal_eager_ones(architecture: str) -> None:
    """Sizes in steps, looks every third step: rows that ended and empty slots run along and change nothing."""
    policy, requests = models.policy(architecture), mixed_requests(20)
    static = engine(policy, slots=7)
    static.pace = STATIC
    assert_same(static.generate(requests), engine(policy, slots=7).generate(requests), 1e-9)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("pace", [STATIC, GRAPHED, Pace(look=2), Pace(look=LIMIT + 5, halvings=9, columns=64)])
def test_rows_that_need_the_whole_vocabulary_wait_for_it(pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a short list of three tokens hardly any step is proven, and a static step cannot look further."""
    policy, requests = models.policy(), mixed_requests()
    static, wholes = engine(policy, slots=5, shortlist=3), []
    static.pace = pace
    step = Slots.step

    def spy(self: Slots, *args: Any, whole: bool, **rest: Any) -> None:
        wholes.append(whole)
        step(self, *args, whole=whole, **rest)

    monkeypatch.setattr(Slots, "step", spy)
    rollouts = static.generate(requests)
    assert {True, False} == set(wholes)
    assert_same(rollouts, engine(policy).generate(requests), 1e-9)


@pytest.mark.usefixtures("_float64")
def test_a_longer_list_comes_before_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens, then nine, then all: some rows stop at each."""
    policy, requests = models.policy(), mixed_requests()
    perturb, sizes = superposition.perturb, set()

    def spy(values: torch.Tensor, *rest: Any) -> superposition.Choice:
        sizes.add(values.shape[-1])
        return perturb(values, *rest)

    monkeypatch.setattr(superposition, "LONGER", 9)
    monkeypatch.setattr(superposition, "perturb", spy)
    settings = replace(LATENTS, shortlist=3)
    # No explicit token is looked for beyond the first three either: top_k is 1.
    texts = replace(TEXTS, top_k=1)
    rollouts = Engine(policy, settings, texts, LIMIT, 5).generate([replace(one, temperature=0.0) for one in requests])
    assert sizes == {3, 9, len(policy.embedding.weight)}
    greedy = Engine(policy, replace(LATENTS, shortlist=24), texts, LIMIT, 5)
    assert_same(rollouts, greedy.generate([replace(one, temperature=0.0) for one in requests]), 1e-9)


def on_meta(policy: Policy) -> Policy:
    return Policy(copy.deepcopy(policy.model).to("meta"), policy.tokenizer, policy.card, policy.name)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_static_step_asks_the_device_nothing(architecture: str) -> None:
    """On the meta device there is nothing to ask: reading a value raises."""
    policy = on_meta(models.policy(architecture))
    slots = waiting_rows(policy)
    slots.step(4, 8, chains=True, whole=False)
    slots.step(2, 8, chains=False, whole=False)
    # The control: a step that may look at the whole vocabulary reads which rows need it, and PyTorch refuses that here.
    with pytest.raises(NotImplementedError, match=r"nonzero.*meta"):
        slots.step(4, 8, chains=True, whole=True)


def test_a_model_that_cannot_be_captured_is_run_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is taken for that: any other error comes through."""
    policy, requests = models.policy(), mixed_requests()
    said: list[str] = []
    eager = Engine(policy, LATENTS, TEXTS, LIMIT, 5, said.append)
    eager.pace = STATIC

    def refused(*args: Any) -> None:
        raise NoGraphError("it waits")

    monkeypatch.setattr(Engine, "_static", refused)
    assert_same(eager.generate(requests), engine(policy, slots=5).generate(requests), 0.0)
    assert said == ["no CUDA graphs with this model (it waits): its steps run one by one"]

    def wrong(*args: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Engine, "_static", wrong)
    eager.pace = STATIC
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        eager.generate(requests)


def test_attention_that_is_not_known_is_refused() -> None:
    policy = models.policy()
    cache = Slots(policy, LATENTS, TEXTS, Size(slots=1, prompts=1, members=1, longest_prompt=2), LIMIT).cache
    anything = torch.zeros(1, 1, 1, 1)
    with pytest.raises(UserError, match="attention has softcap, which lgrpo does not know"):
        attention(policy.model, anything, anything, anything, anything, slot_cache=cache, softcap=30.0)


def waiting_rows(policy: Policy) -> Slots:
    """Four rows of one prompt, their prompt read."""
    requests = [Request(prompt(9), noise.row_key(0, 0, n)) for n in range(4)]
    slots = Slots(policy, LATENTS, TEXTS, Size(slots=4, prompts=1, members=4, longest_prompt=9), LIMIT)
    slots.expect({prompt(9): 4})
    slots.admit(deque(Arrival(number, request, 0) for number, request in enumerate(requests)), at_once=1)
    return slots


LEAN = {"llama", "smollm", "qwen2", "qwen3", "mistral"}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_lean_steps_equal_the_models_own(architecture: str) -> None:
    """The tests above run lean steps where there are such; here both are run."""
    policy, requests = models.policy(architecture), mixed_requests()
    used = policy.lean is not None and "sliding" not in architecture  # a window in some layers: the model's own steps
    assert used == (architecture in LEAN)
    lean = engine(policy).generate(requests)
    policy.lean = None
    assert_same(engine(policy).generate(requests), lean, 1e-9)


def test_a_model_with_other_layers_takes_its_own_steps() -> None:
    policy = models.policy()

    class Adapter(torch.nn.Linear):
        pass

    policy.model.model.layers[0].mlp.up_proj = Adapter(4, 4)
    assert LeanDecoder.of(policy.model) is None


def test_a_paused_step_changes_nothing_that_a_row_will_see() -> None:
    """What a capture runs before it records: the steps after it are those of an undisturbed run."""
    policy = models.policy()

    def walk(disturbed: bool) -> list[tuple[int, Rollout]]:
        slots = waiting_rows(policy)
        for _ in range(6):
            if disturbed:
                active = slots.pause()
                slots.step(4, LIMIT, chains=True, whole=False)
                slots.resume(active)
            slots.step(4, LIMIT, chains=True, whole=True)
        return slots.take(range(4))

    with torch.inference_mode():
        undisturbed, disturbed = walk(False), walk(True)
    assert_same([r for _, r in undisturbed], [r for _, r in disturbed], 0.0)
    assert any(rollout.length > 3 for _, rollout in undisturbed)


def test_an_interrupted_engine_begins_with_empty_slots() -> None:
    policy, requests = models.policy(), mixed_requests()
    interrupted = engine(policy, slots=5)

    def stop(number: int, rollout: Rollout) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.generate(requests, stop)
    assert_same(interrupted.generate(requests), engine(policy, slots=5).generate(requests), 0.0)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("common", [0, 4, 6])
def test_what_prompts_have_in_common_is_read_once(common: int) -> None:
    """Six positions are all of the shortest prompt: its last one is read for itself."""
    policy = models.policy("mistral")
    prompts = [(*prompt(common), *prompt(length, length)) for length in (3, 5, 9)] + [prompt(6)[:common]] * (common > 4)
    requests = [Request(ids, noise.row_key(0, n, 0)) for n, ids in enumerate(prompts)]
    alone = [engine(policy).generate([request])[0] for request in requests]
    assert_same(engine(policy).generate(requests), alone, 1e-9)


def test_rollouts_of_scattered_prompts_come_back_in_order_of_the_requests() -> None:
    """More rows of a prompt than places beside it, and prompts that return: each is still read once."""
    policy = models.policy()
    requests = [Request(prompt(7 + n % 3), noise.row_key(0, n, 0)) for n in range(11)]
    requests += [Request(prompt(12), noise.row_key(1, n, 0)) for n in range(9)]
    few = engine(policy, slots=4)
    assert_same(few.generate(requests), [engine(policy).generate([one])[0] for one in requests], 1e-6)


# --- the best tokens of a large vocabulary -------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [40, 1000, 128 * 40, 128 * 40 + 77, 33_000])
def test_the_best_tokens_are_those_of_topk(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(5, vocabulary, generator=generator)
    logits[1, -10:] += 9  # behind the last block
    logits[2, : min(vocabulary, 64)] += 9  # all in one block
    logits[3] = torch.arange(vocabulary).flip(0)
    values, tokens = decode.best(logits, 10)
    expected = logits.topk(10)
    assert torch.equal(values, expected.values)
    assert torch.equal(tokens, expected.indices)


def test_the_best_of_equal_logits_are_different_tokens() -> None:
    values, tokens = decode.best(torch.zeros(2, 128 * 60), 12)
    assert values.tolist() == [[0.0] * 12] * 2
    assert all(len(set(row)) == 12 for row in tokens.tolist())


# --- memory --------------------------------------------------------------------------------------------------------


def short_of_memory(policy: Policy, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps of more than `rows` rows do not fit."""
    hidden = policy.hidden

    def limited(embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        if embeds.shape[0] > rows and embeds.shape[1] == 1:
            raise torch.OutOfMemoryError("injected")
        return hidden(embeds, *rest)

    monkeypatch.setattr(policy, "hidden", limited)


def test_out_of_memory_halves_the_rows_and_changes_no_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, requests = models.policy("smollm"), mixed_requests()
    expected = engine(policy).generate(requests)
    short_of_memory(policy, 4, monkeypatch)
    said: list[str] = []
    heard: list[int] = []
    halved = Engine(policy, LATENTS, TEXTS, LIMIT, 16, said.append)
    assert_same(halved.generate(requests, lambda number, _: heard.append(number)), expected, 1e-6)
    assert said == [f"out of memory: {rows} rollouts at a time from now on" for rows in (6, 3)]
    assert sorted(heard) == list(range(len(requests)))
    halved.generate(requests)
    assert len(said) == 2  # it remembers


def test_rows_that_memory_had_no_room_for_do_not_cost_new_buffers_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, requests = models.policy(), mixed_requests()
    monkeypatch.setattr("lgrpo.engine.engine.columns_that_fit", lambda model: 120)
    small = engine(policy)
    rollouts = small.generate(requests)
    state = small._state
    assert state is not None
    assert state.size.slots < len(requests)
    assert_same(small.generate(requests), rollouts, 1e-6)
    assert small._state is state
    assert_same(rollouts, engine(policy, slots=1).generate(requests), 1e-6)


@pytest.mark.parametrize("pace", [EAGER, GRAPHED])
def test_graphs_outlive_a_call_of_another_shape(pace: Pace) -> None:
    """A batch, the held-out problems, a batch: new buffers would cost new graphs each time. Without graphs they pay."""
    policy = models.policy()
    batch = [Request(prompt(9, seed=n), noise.row_key(0, n, g)) for n in range(4) for g in range(4)]
    held_out = [Request(prompt(7 + n % 3, seed=9 + n), noise.row_key(1, n, 0), noise_scale=0.0) for n in range(14)]
    kept = engine(policy, slots=16)
    kept.pace = pace
    kept.generate(batch)
    state = kept._state
    assert_same(kept.generate(held_out), engine(policy, slots=16).generate(held_out), 1e-6)
    assert (kept._state is state) is (pace is GRAPHED)


def test_a_batch_after_the_held_out_problems_takes_as_many_steps_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers with a place for one row of each prompt would make a group's rows follow one another, and others wait."""
    policy, steps = models.policy(), []
    batch = [Request(prompt(9, seed=n), noise.row_key(0, n, g)) for n in range(4) for g in range(4)]
    held_out = [Request(prompt(7 + n % 3, seed=9 + n), noise.row_key(1, n, 0), noise_scale=0.0) for n in range(40)]
    step = Slots.step

    def spy(self: Slots, *args: Any, **rest: Any) -> None:
        steps.append(args)
        step(self, *args, **rest)

    monkeypatch.setattr(Slots, "step", spy)
    counts = []
    for before in ([], held_out):
        used = engine(policy, slots=16)
        used.pace = GRAPHED
        monkeypatch.setattr(used, "_static", lambda state, *args: state.step(*args, whole=True))
        used.generate(before)
        steps.clear()
        used.generate(batch)
        counts.append(len(steps))
    assert counts[1] == counts[0]


@pytest.mark.parametrize(("longest", "rows", "serve"), [(9, 20, True), (10, 20, False), (9, 24, True), (9, 25, False)])
def test_buffers_do_with_a_quarter_of_the_rows_and_no_fewer(longest: int, rows: int, serve: bool) -> None:
    """Three prompts of at most two rows at a time: six."""
    size = Size(slots=16, prompts=3, members=4, longest_prompt=9)
    assert size.copes(Size(slots=rows, prompts=rows, members=2, longest_prompt=longest)) is serve


@pytest.mark.parametrize(("members", "serve"), [(4, True), (5, False)])
def test_a_prompt_with_more_rows_than_places_keeps_back_what_comes_after_it(members: int, serve: bool) -> None:
    """Four of sixteen rows at a time, whatever the places of the other prompts."""
    size = Size(slots=16, prompts=16, members=4, longest_prompt=9)
    assert size.copes(Size(slots=17, prompts=4, members=members, longest_prompt=9)) is serve


def test_running_out_of_memory_late_does_not_make_the_next_batch_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rows there was room for, not of those that were left."""
    policy = models.policy()
    requests = [Request(prompt(9), noise.row_key(0, 0, n)) for n in range(16)]
    late, step, calls = engine(policy, slots=16), Slots.step, [0]

    def fail_once(self: Slots, rows: int, *args: Any, **rest: Any) -> None:
        calls[0] += rows < 16
        if calls[0] == 1:
            raise torch.OutOfMemoryError("injected")
        step(self, rows, *args, **rest)

    monkeypatch.setattr(Slots, "step", fail_once)
    late.generate(requests)
    assert calls[0] > 1
    assert late.slots == 8


@pytest.mark.parametrize("limit", [1, 2, 30])
def test_a_rehearsal_leaves_nothing_behind(limit: int) -> None:
    policy, requests = models.policy(), mixed_requests()
    rehearsed = engine(policy, slots=5, limit=limit)
    rehearsed.pace = GRAPHED
    rehearsed.rehearse(requests)
    assert_same(rehearsed.generate(requests), engine(policy, slots=5, limit=limit).generate(requests), 1e-6)


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = models.policy()
    short_of_memory(policy, 0, monkeypatch)
    with pytest.raises(UserError, match="single rollout"):
        engine(policy, slots=2).generate(mixed_requests())


# --- no numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [True, False])
def test_logits_that_are_no_numbers_break_their_own_rollout_only(latent: bool) -> None:
    policy = models.policy()
    with torch.no_grad():
        policy.embedding.weight[21] = torch.nan  # no other prompt has it
    head = policy.head
    policy.head = lambda hidden: head(hidden).index_fill(1, torch.tensor([21]), -1e4)  # type: ignore[method-assign]
    requests = [replace(one, latent=latent) for one in mixed_requests(10)]
    poisoned = [Request((21, *prompt(20)), key, latent=latent) for key in range(3)]
    expected = engine(policy, slots=3).generate(requests)
    poisonous = engine(policy, slots=3)
    rollouts = poisonous.generate([poisoned[0], *requests])
    assert (rollouts[0].broken, rollouts[0].valid, rollouts[0].length) == (True, False, 1)
    assert bool(rollouts[0].logprob.isfinite().all())
    assert_same(rollouts[1:], expected, 1e-6)
    assert not any(rollout.broken for rollout in rollouts[1:])
    poisonous.generate(poisoned)  # fills the slots with NaN, which the next call uses
    assert_same(poisonous.generate(requests), expected, 1e-6)


def test_what_an_interrupted_call_left_in_the_slots_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before the rows that came to a NaN are taken out: they ran on over columns to come."""
    policy, requests = models.policy(), mixed_requests(10)
    poison, head = policy.embedding.weight, policy.head
    with torch.no_grad():
        poison[21] = torch.nan
    policy.head = lambda hidden: head(hidden).index_fill(1, torch.tensor([21]), -1e4)  # type: ignore[method-assign]
    spoilt, look = engine(policy, slots=3), Slots.look
    spoilt.pace = STATIC

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Slots, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spoilt.generate([*(Request((21, *prompt(20)), key) for key in range(3)), *requests])
    state = spoilt._state
    monkeypatch.setattr(Slots, "look", look)
    assert spoilt._state is state
    assert not any(rollout.broken for rollout in spoilt.generate(requests))
