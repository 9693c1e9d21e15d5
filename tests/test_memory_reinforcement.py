"""The plan of memory by hand, and at the shapes it was made for, without their weights."""

from dataclasses import replace
from typing import Any

import models
import pytest
import torch
import transformers

from lgrpo import session
from lgrpo.errors import UserError
from lgrpo.memory import device
from lgrpo.memory.reinforcement import Shape, Use, fit, plan_rows, room_on, shape_of, use
from lgrpo.plan import Setting, TrainSettings, train_settings
from lgrpo.policy import Card, Policy

SMALL = Shape(
    parameters=1000, trained=800, largest=100, layers=2, hidden=10, inner=40, vocabulary=50, itemsize=2, column=6,
    kept=200.0, square=0.0,
)  # fmt: skip


def settings(recipe: str = "tiny", **changes: Any) -> TrainSettings:
    made, _ = train_settings(Setting("recipe", recipe, ""), k=10)
    return replace(made, **changes)


def few(**changes: Any) -> TrainSettings:
    """2 x 4 rollouts of 6 + 4 positions, micro-batches of 100."""
    sizes = {"max_prompt": 6, "max_response": 4, "batch": 2, "group": 4, "held_out": 1, "micro_tokens": 100}
    return settings(**{**sizes, "slots": 64, **changes})


def test_every_part_by_hand() -> None:
    """A layer at work has 2 * (2 * 40 + 4 * 10) = 240 bytes a position on their way; prefills take 8,192 positions.

    The cache has 8 responses of 4 + 1 columns, two prompts of 6 and one for rows without an owner: 58 columns.
    """
    parts = {
        "weights": 2000, "exact": 1600, "states": 800 * (2 + 8 / 256), "gradients": 1600,
        "activations": 100 * (2 * 200 + 240) + 2 * 100, "logits": 16 * 100 * 50,
        "kept_cache": 58 * 6 + 8 * 50 * 16, "cache": 58 * 6,
        "decoding": 8 * 50 * 16 + 8192 * (2 * (3 * 40 + 8 * 10) + 6),
    }  # fmt: skip
    assert use(SMALL, few()) == Use(**parts)
    # Checkpointed: two inputs of 10 numbers and one whole layer. A row that is longer than a micro-batch is not cut.
    assert use(SMALL, few(checkpointing=True)).activations == 100 * (200 + 2 * 10 * 2 + 240) + 200
    assert use(SMALL, few(micro_tokens=4)).activations == 10 * (2 * 200 + 240) + 200
    assert use(SMALL, few(slots=3)).cache == (3 * 6 + 3 * 5) * 6
    # Ten held-out problems, each with a prompt of its own, need more than two groups.
    assert use(SMALL, few(held_out=10)).cache == (11 * 6 + 10 * 5) * 6
    assert use(SMALL, few(keep_cache=False)).kept_cache == 0
    exact = use(replace(SMALL, itemsize=4), few())
    assert (exact.weights, exact.exact, exact.gradients) == (4000, 0, 3200)
    # Attention that is not fused keeps 3 bytes for each other position of a row of 100.
    assert use(replace(SMALL, square=3.0), few()).activations == 100 * (2 * 500 + 240) + 200


def test_each_phase_holds_its_own_parts() -> None:
    one = Use(1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    assert (one.update, one.rollouts) == (1_111_111, 110_000_111)


def shaped(kind: str, **config: Any) -> Policy:
    """A policy of this shape without its weights."""
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, kind)(**config, eos_token_id=None, bos_token_id=None), dtype=torch.bfloat16
        ).eval()
    return Policy(made, models.small_tokenizer(), Card("latent"), kind)


@pytest.fixture(scope="module")
def one_b() -> Shape:
    """Llama-3.2-1B. Attention is not fused on the device `meta`; on a GPU it is."""
    policy = shaped(
        "LlamaConfig", hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, vocab_size=128256, tie_word_embeddings=True,
    )  # fmt: skip
    return replace(shape_of(policy), square=0.0)


@pytest.fixture(scope="module")
def seven_b() -> Shape:
    """Qwen2.5-7B."""
    policy = shaped(
        "Qwen2Config", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False,
    )  # fmt: skip
    return replace(shape_of(policy), square=0.0)


def test_shapes_by_hand(one_b: Shape, seven_b: Shape) -> None:
    """1.236 B weights of which 128,256 * 2,048 are the tied embedding; 7.616 B of which twice 152,064 * 3,584 are."""
    assert one_b.parameters == 1_235_814_400
    assert one_b.trained == one_b.parameters - 128256 * 2048
    assert one_b.column == 2 * 16 * 8 * 64 * 2
    assert seven_b.parameters == 7_615_616_512
    assert seven_b.trained == seven_b.parameters - 2 * 152064 * 3584
    assert seven_b.column == 2 * 28 * 4 * 128 * 2


def test_low_at_1b_fits_20_gb_and_takes_little_more_where_there_is_more(one_b: Shape) -> None:
    """With 20 GB the cache goes before an update; with more, cache and graphs stay."""
    for free, keeps, most in ((20e9, False, 20e9), (24e9, True, 21e9), (80e9, True, 21e9), (140e9, True, 21e9)):
        chosen = fit(one_b, settings("low"), free)
        needed = use(one_b, chosen)
        assert max(needed.update, needed.rollouts) <= most
        assert (chosen.micro_tokens, chosen.checkpointing, chosen.slots) == (4096, False, 512)
        assert chosen.keep_cache == keeps
    assert fit(one_b, settings("low"), 15e9).checkpointing


def test_high_at_7b_fits_80_gb_with_its_kl(seven_b: Shape) -> None:
    chosen = fit(seven_b, settings("high"), 80e9)
    needed = use(seven_b, chosen)
    assert chosen.kl > 0
    assert (chosen.micro_tokens, chosen.checkpointing) == (4096, True)
    assert 64 <= chosen.slots < 512
    assert max(needed.update, needed.rollouts) <= 80e9
    assert needed.weights + needed.exact + needed.states + needed.gradients == pytest.approx(54.6e9, rel=0.01)
    assert not fit(seven_b, settings("high"), 140e9).checkpointing


def test_less_room_is_met_step_by_step(one_b: Shape) -> None:
    """Checkpointing first, for it costs less than an idle device; then smaller micro-batches and fewer rollouts."""
    found = [fit(one_b, settings("low"), free) for free in (17.6e9, 15e9, 9.5e9, 9.12e9)]
    assert [(one.micro_tokens, one.checkpointing) for one in found] == [
        (4096, False), (4096, True), (2048, True), (1024, True),
    ]  # fmt: skip
    assert [one.slots for one in found] == sorted([one.slots for one in found], reverse=True)
    for free, one in zip((17.6e9, 15e9, 9.5e9, 9.12e9), found, strict=True):
        needed = use(one_b, one)
        assert max(needed.update, needed.rollouts) <= free


def test_what_the_user_set_stays(one_b: Shape) -> None:
    low = settings("low", micro_tokens=3000, slots=9)
    chosen = fit(one_b, low, 12e9, {"micro_tokens", "slots"})
    assert (chosen.micro_tokens, chosen.slots, chosen.checkpointing) == (3000, 9, True)
    forced = fit(one_b, settings("low", checkpointing=True), 140e9, {"checkpointing"})
    assert forced.checkpointing
    unforced = fit(one_b, settings("low", checkpointing=False), 12e9, {"checkpointing"})
    assert (unforced.checkpointing, unforced.micro_tokens) == (False, 1024)


def test_when_nothing_fits_one_line_says_what_would(one_b: Shape, seven_b: Shape) -> None:
    with pytest.raises(UserError, match=r"8\.\d GB of memory .* 6\.0 GB are free; take a smaller model") as error:
        fit(one_b, settings("low"), 6e9)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"free; --set max_response=\d+ would fit") as error:
        fit(seven_b, settings("high", max_response=100_000), 72e9)
    shorter = int(str(error.value).split("max_response=")[1].split()[0])
    fit(seven_b, settings("high", max_response=shorter), 72e9)


def test_the_embedded_model_keeps_its_settings_on_an_ordinary_machine() -> None:
    policy = session.load(None, "cpu")
    _, rows = train_settings(Setting("recipe", "tiny", "by hand"), k=10)
    chosen = fit(shape_of(policy), settings(), 4e9)
    assert chosen == settings()
    assert (chosen.micro_tokens, chosen.slots, chosen.checkpointing) == (4096, 512, False)
    assert fit(shape_of(policy), settings(), None) == settings()
    shown = plan_rows(shape_of(policy), chosen, 4e9, rows)
    assert shown[: len(rows)] == rows
    assert all(row.reason for row in shown)


def test_the_plan_says_what_was_derived(seven_b: Shape) -> None:
    made, rows = train_settings(Setting("recipe", "high", ""), k=10)
    shown = {row.name: row for row in plan_rows(seven_b, fit(seven_b, made, 80e9), 80e9, rows)}
    assert shown["checkpointing"].value is True
    assert all(shown[name].reason.startswith("derived from the memory") for name in ("checkpointing", "slots"))
    assert shown["micro_tokens"].reason == "keeps the device busy"
    assert shown["memory: weights"] == Setting("memory: weights", "15.2 GB", "7,615.6 M parameters, bfloat16")
    assert "80.0 GB" in shown["memory: update"].reason


def test_derived_values_are_not_part_of_a_runs_identity() -> None:
    other = replace(settings(), micro_tokens=1, slots=2, checkpointing=True)
    assert session.identity(settings(), [], []) == session.identity(other, [], [])
    assert session.identity(settings(), [], []) != session.identity(replace(settings(), lr=1.0), [], [])


def test_what_a_layer_keeps_is_measured() -> None:
    """Llama in bfloat16: 24 bytes for each of D and 8 for each of the feed-forward part, beside the last norm."""
    made = models.policy("llama", torch.bfloat16, num_key_value_heads=4, hidden_size=256, intermediate_size=512)
    by_hand = 24 * 256 + 8 * 512
    assert by_hand < shape_of(made).kept < 1.15 * by_hand
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_free_memory_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(device, "PROC", tmp_path)
    assert room_on(torch.device("cpu"), 1) is None
    (tmp_path / "meminfo").write_text("MemTotal:       2000 kB\nMemAvailable:    1000 kB\n")
    assert room_on(torch.device("cpu"), 1) == 1000 * 1024 + 1
