"""Prompt, chain and response fit the positions a model was made for, or the plan is refused."""

import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from test_cli import done, lgrpo

from lgrpo import context, plan
from lgrpo.asking.ask import Asker, Wish, engine_settings
from lgrpo.engine import Pace
from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import schedule
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request

HIGH = plan.Setting("recipe", "high", "for the test")


def policy(positions: int) -> Policy:
    return models.policy("llama", max_position_embeddings=positions)


def reasons(rows: list[plan.Setting]) -> dict[str, str]:
    return {row.name: row.reason for row in rows}


def test_what_nobody_chose_is_shortened_and_the_plan_says_why() -> None:
    settings, rows = plan.train_settings(HIGH, k=3)
    assert (settings.max_prompt, settings.max_response) == (1024, 4096)
    small = policy(4096)
    settings, rows = context.settle(small, settings, rows, [])
    assert (settings.max_prompt, settings.max_response) == (1024, 3072)
    assert {row.name: row.value for row in rows}["max_response"] == 3072
    assert reasons(rows)["max_response"] == f"{small.name} has 4096 positions, 1024 of them for the prompt"
    assert reasons(rows)["max_prompt"] == "published"


def test_a_prompt_takes_half_of_few_positions() -> None:
    settings, rows = plan.train_settings(HIGH, k=3)
    settings, rows = context.settle(policy(100), settings, rows, [])
    assert (settings.max_prompt, settings.max_response) == (50, 50)
    assert reasons(rows)["max_prompt"].startswith("half of the 100 positions of ")


def test_what_fits_to_the_last_position_stays_as_it_is() -> None:
    before = plan.train_settings(HIGH, k=3)
    assert context.settle(policy(5120), *before, []) == before
    assert context.settle(policy(5119), *before, [])[0].max_response == 4095


def test_the_written_chain_of_init_fits_too() -> None:
    before, rows = schedule("high", max_prompt=1024, max_response=4096, device="cpu")
    settings, rows = context.settle(policy(6000), before, rows, [])
    assert (settings.max_prompt, settings.max_response, settings.max_chain) == (
        1024,
        4096,
        4683,
    )  # and 293 compress tokens
    assert "6000 positions" in reasons(rows)["max_chain"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"max_response": 4000}, "max_prompt=1024 and max_response=4000 are more than .* --set max_response=1024$"),
        ({"max_prompt": 2040}, "max_prompt=2040 and max_response=4096 are more than .* --set a shorter max_prompt=N$"),
        ({"max_prompt": 4000}, "max_prompt=4000 and max_response=4096 are more than .* --set a shorter max_prompt=N$"),
    ],
)
def test_what_was_chosen_is_refused(chosen: dict[str, int], message: str) -> None:
    settings, rows = plan.train_settings(HIGH, k=3, **chosen)
    with pytest.raises(UserError, match=message):
        context.settle(policy(2048), settings, rows, chosen)


def test_a_prompt_and_its_response_take_every_position_and_no_more() -> None:
    small = policy(64)
    length = len(small.prompt_ids("3", small.latent))
    context.check_room(policy(length + 5), [("row 1", Problem("3", "3"))], 5)
    row = f"row 2: a prompt of {length} positions and a response of 5 are more than the"
    with pytest.raises(UserError, match=f"{row} {length + 4} of .*; shorten .* give --max-response 4$"):
        context.check_room(policy(length + 4), [("row 2", Problem("3", "3"))], 5)
    with pytest.raises(UserError, match=f"{row} {length} of .*; shorten it or leave it out$"):
        context.check_room(policy(length), [("row 2", Problem("3", "3"))], 5)


def asked(positions: int, chosen: int | None = None, trained: int | None = None) -> tuple[int, int, list[str]]:
    """(max_prompt, max_response, what was said) of a `tiny` model: its recipe has 512 and 64."""
    small, said = policy(positions), list[str]()
    if trained:
        small.card = replace(small.card, rollout={"max_response": trained})
    settings = engine_settings(small, chosen, said.append)
    return settings.max_prompt, settings.max_response, said


def test_a_model_that_is_asked_keeps_to_its_positions() -> None:
    assert asked(1024) == (512, 64, [])
    assert asked(128) == (64, 64, [])
    short = "responses of at most 50 positions, not 64: llama has 100 positions, 50 of them for the prompt"
    assert asked(100) == (50, 50, [short])
    assert asked(100, trained=80) == (20, 80, [])  # as it was trained, with a max_prompt that was chosen
    assert asked(100, trained=90) == (50, 50, [short.replace("64", "90")])
    assert asked(100, chosen=85) == (15, 85, [])
    assert asked(24, chosen=8) == (16, 8, [])
    empty = len(policy(100).prompt_ids("", latent=True))
    with pytest.raises(
        UserError, match=f"--max-response {100 - empty} leaves a prompt no room in the 100 positions of"
    ):
        asked(100, chosen=100 - empty)
    with pytest.raises(UserError, match="24 positions; give a --max-response that leaves a prompt room"):
        asked(24)


WORDS = " ".join(f"w{n}" for n in range(12))


def saved(architecture: str, folder: Path, **changes: Any) -> str:
    folder.mkdir()
    made = models.policy(architecture, torch.float32, pad_token_id=None, **changes)
    made.save(folder)
    return str(folder)


@pytest.fixture
def gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Learned positions, 64 of them: the 65th is an IndexError."""
    monkeypatch.setitem(models.ARCHITECTURES, "gpt2", ("GPT2Config", {}))
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"problem": text, "answer": "3"}) + "\n" for text in ("w1", WORDS, "w3")]
    Path("rows.jsonl").write_text("".join(rows))
    return saved("gpt2", tmp_path / "gpt2", max_position_embeddings=64)


@pytest.mark.parametrize(
    ("command", "row"),
    [
        (["sample", WORDS, "--model"], "the problem"),
        (["sample", "--file", "rows.jsonl", "--model"], "rows.jsonl, line 2"),
        (
            ["eval", "--data", "rows.jsonl", "--runs", "1", "--out", "out", "--json"],
            "rows, 'w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11'",
        ),
    ],
)
def test_no_response_is_longer_than_learned_positions(gpt2: str, command: list[str], row: str) -> None:
    """As derived, and as chosen to the last position; one more is one line that names the row and the remedy."""
    length = len(Policy.load(gpt2).prompt_ids(WORDS, latent=True))
    derived = done(*command, gpt2)
    assert "responses of at most 32 positions, not 64: " in derived.stderr
    chosen = done(*command, gpt2, "--max-response", str(64 - length))
    assert chosen.stdout
    refused = lgrpo(*command, gpt2, "--max-response", str(65 - length))
    assert (refused.exit_code, refused.stdout) == (2, "")
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: {row}")
    assert f": a prompt of {length} positions and a response of {65 - length} are more than the 64 of " in line
    assert line.endswith(f"or give --max-response {64 - length}")


ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}


def logits(phi: Policy, length: int, beside: int) -> torch.Tensor:
    """Of the last of `length` positions, answered beside a row of `beside`: [V]."""
    whole = max(length, beside)
    ids = torch.arange(2 * whole).reshape(2, whole) % 20
    with torch.no_grad():
        hidden = phi.hidden(
            phi.embedding(ids), torch.ones(2, whole, whole, dtype=torch.bool).tril(), torch.arange(whole).expand(2, -1)
        )
    return phi.head(hidden)[0, length - 1]


def test_a_longrope_model_has_the_positions_in_which_rows_do_not_depend_on_each_other() -> None:
    phi = models.policy(
        "phi3", max_position_embeddings=64, original_max_position_embeddings=32, rope_parameters=ROPE, pad_token_id=None
    )
    assert context.positions_of(phi) == 32
    assert torch.equal(logits(phi, 20, beside=20), logits(phi, 20, beside=32))
    assert not torch.allclose(logits(phi, 20, beside=20), logits(phi, 20, beside=33))  # what the limit is for


def test_a_row_at_its_limit_takes_no_position_more_while_it_waits_to_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the steps that a GPU takes, several between two looks; run one by one here."""
    monkeypatch.setitem(models.ARCHITECTURES, "gpt2", ("GPT2Config", {}))
    requests = [Request(models.prompt(12, seed), seed, True, 1.0, 1.3) for seed in range(8)]
    engine = models.engine(models.policy("gpt2", max_position_embeddings=24), limit=12)
    engine.pace = Pace(look=5, halvings=2, columns=8)
    assert max(rollout.length for rollout in engine.generate(requests)) == 12


def test_an_answer_of_a_longrope_model_does_not_depend_on_what_is_asked_beside_it(tmp_path: Path) -> None:
    sizes = {"max_position_embeddings": 64, "original_max_position_embeddings": 32, "rope_parameters": ROPE}
    phi = saved("phi3", tmp_path / "phi", seed=6, **sizes)
    asker = Asker(phi, "cpu", None, print)
    wish = Wish(samples=4, explore=True, temperature=1.5)
    rows = [request for text in ("w1", "w3 w4 w5", "w2 w5") for request in asker.requests(Problem(text, ""), wish)]
    together = asker.engine.generate(rows)
    assert max(rollout.length + len(rollout.prompt) for rollout in together) == 32
    for request, rollout in zip(rows, together, strict=True):
        (alone,) = asker.engine.generate([request])
        assert torch.equal(alone.tokens, rollout.tokens)
        assert torch.allclose(alone.scores, rollout.scores, atol=1e-3)  # rounding, which a response makes larger


def test_a_problem_that_is_sure_of_room_has_it_whatever_a_tokenizer_makes_of_a_character() -> None:
    """One that writes text in a normal form makes 33 bytes of the three of one character, and each may be a token."""
    longest = 0.0
    for point in (point for point in range(sys.maxunicode + 1) if unicodedata.decomposition(chr(point))):
        before = len(chr(point).encode())
        for form in ("NFKC", "NFKD"):
            longest = max(longest, len(unicodedata.normalize(form, chr(point)).encode()) / before)
    assert longest == 11
    assert longest < context.MOST
    empty = len(policy(64).asked(""))
    assert context.sure_of_room(policy(empty + 16 * 4 + 5), 3, 5)
    assert not context.sure_of_room(policy(empty + 16 * 4 + 4), 3, 5)
