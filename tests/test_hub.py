"""Checkpoints in the hub's cache: what was never fetched is not taken for what is not there."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from test_cli import done, lgrpo

from lgrpo import plan, session, tiny
from lgrpo.errors import UserError
from lgrpo.policy import CARD, Card, Policy, files, trained_on
from lgrpo.problems import Problem

NAME, COMMIT = "someone/latent", "a" * 40
KNOWN = [Problem("Ann has 3 pens and buys 4. How many has she?", "7")]
ASK = ("sample", "Tom has 3 boxes with 12 pens each. How many pens?", "--model", NAME, "--json")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one model in the hub's cache, as fetched at one commit; the network is off (conftest.py)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub/models--someone--latent"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    return repository


def fetched(cache: Path, *missing: str, commit: str = COMMIT) -> Path:
    """A latent checkpoint of ours in the cache, without the `missing` files. Returns its folder."""
    folder = cache / "snapshots" / commit
    folder.mkdir(parents=True)
    policy = Policy.load(tiny.MODEL)
    policy.card = Card("latent", "tiny", 4, "arithmetic")
    policy.trained_on = trained_on.joined(policy.trained_on, KNOWN)
    policy.save(folder)
    for name in missing:
        (folder / name).unlink()
    return folder


def asked_for_and_not_there(cache: Path, *names: str) -> None:
    """As the hub's library marks it."""
    (cache / ".no_exist" / COMMIT).mkdir(parents=True)
    for name in names:
        (cache / ".no_exist" / COMMIT / name).touch()


def plain(folder: Path) -> None:
    """A base model that somebody fetched with another tool: nothing of ours is in it."""
    shutil.copytree(tiny.MODEL, folder)
    (folder / CARD).unlink(missing_ok=True)


def test_a_whole_checkpoint_in_the_cache_is_what_was_saved(cache: Path) -> None:
    fetched(cache)
    policy = Policy.load(NAME)
    assert policy.card == Card("latent", "tiny", 4, "arithmetic")
    assert policy.knows_trained_on
    assert trained_on.count(policy.trained_on, KNOWN) == 1
    assert "not known" not in done(*ASK).stderr


def test_a_latent_checkpoint_whose_card_was_never_fetched_is_not_taken_for_an_explicit_one(cache: Path) -> None:
    fetched(cache, CARD)
    with pytest.raises(UserError, match=f"{NAME}: its lgrpo.json, .* was never fetched, and the hub cannot be asked"):
        Policy.load(NAME)
    refused = lgrpo(*ASK)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert f"`hf download {NAME} --local-dir FOLDER`" in refused.stderr


def test_a_card_that_was_asked_for_and_was_not_there_is_none(cache: Path) -> None:
    fetched(cache, CARD, trained_on.FILE)
    asked_for_and_not_there(cache, CARD, trained_on.FILE)
    policy = Policy.load(NAME)
    assert policy.card == Card("explicit")
    assert policy.knows_trained_on


def test_a_base_model_that_was_fetched_with_another_tool_is_explicit_and_nothing_is_said(cache: Path) -> None:
    plain(cache / "snapshots" / COMMIT)
    policy = Policy.load(NAME)
    assert policy.card == Card("explicit")
    assert policy.knows_trained_on
    assert done(*ASK).stderr == ""


def test_an_unmarked_model_that_turns_out_to_have_a_latent_chain_is_refused_while_its_card_is_not_known(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of others have no mark; the embedded model's chain is taken for a latent one here."""
    plain(cache / "snapshots" / COMMIT)
    monkeypatch.setattr("lgrpo.session.SINGLE", 1.1)
    monkeypatch.setitem(plan._RECIPES["tiny"], "max_response", (64, "the embedded model's chain fits"))
    assert "its lgrpo.json, which says how it is to be asked, was never fetched" in lgrpo(*ASK).stderr
    asked_for_and_not_there(cache, CARD)
    assert f"{NAME} has no lgrpo.json, but answers after a latent chain" in done(*ASK).stderr


def test_an_explicit_checkpoint_of_the_hub_is_believed_and_not_tried(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(cache)
    (folder / CARD).write_text(json.dumps({"mode": "explicit", "recipe": "tiny"}))
    monkeypatch.setattr("lgrpo.session.Engine", lambda *_: pytest.fail("it was tried for a latent chain"))
    assert json.loads(done(*ASK).stdout)["latent_length"] == 0


def test_that_known_problems_cannot_be_told_is_said_in_one_line(cache: Path) -> None:
    fetched(cache, trained_on.FILE)
    policy = Policy.load(NAME)
    assert (policy.latent, policy.knows_trained_on, len(policy.trained_on)) == (True, False, 0)
    scored = done("eval", NAME, "--limit", "1", "--runs", "1", "--samples", "0", "--json")
    assert (
        scored.stderr.count("its trained_on.safetensors is of an older form, or was never fetched; `hf download") == 1
    )
    asked_for_and_not_there(cache, trained_on.FILE)
    assert Policy.load(NAME).knows_trained_on


def test_what_the_hub_says_is_not_there_is_not_there_whether_or_not_it_could_be_noted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that may not be written to has no marks."""

    def fetch(name: str, file: str) -> str:
        raise RemoteEntryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert files.look_for(NAME, CARD) == (None, True)


def test_a_folder_is_certain(tmp_path: Path) -> None:
    assert files.look_for(tmp_path, CARD) == (None, True)
    (tmp_path / CARD).write_text("{}")
    assert files.look_for(tmp_path, CARD) == (tmp_path / CARD, True)


def test_the_hash_of_a_hub_model_follows_its_files_and_not_its_commit(cache: Path) -> None:
    def hashed() -> str:
        return session.model_hash(Policy.load(NAME), NAME)

    first = fetched(cache)
    before = hashed()
    (first / "pytorch_model.bin").write_bytes(b"fetched later, by another tool")
    assert hashed() == before
    other = cache / "snapshots" / ("b" * 40)
    shutil.copytree(first, other)
    (other / "README.md").write_text("# Better words")
    (cache / "refs/main").write_text("b" * 40)
    assert hashed() == before
    for name in ("lgrpo.json", "tokenizer.json", "generation_config.json"):
        (other / name).write_text((other / name).read_text() + " ")
        assert hashed() != before, name
        shutil.copy(first / name, other / name)
    assert hashed() == before
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert hashed() != before


def test_a_run_from_the_hub_goes_on_after_a_commit_that_changed_no_file(cache: Path) -> None:
    small = ("--set", "limit=60", "--set", "batch=1", "--set", "group=2", "--set", "max_response=64")
    command = ("train", NAME, "--out", "run", "--explicit", "--data", "arithmetic", *small, "--steps")
    shutil.copytree(tiny.MODEL, cache / "snapshots" / COMMIT)
    begun = done(*command, "1")
    assert "best checkpoint" in begun.stderr
    (cache / "snapshots" / COMMIT).rename(cache / "snapshots" / ("b" * 40))
    (cache / "refs/main").write_text("b" * 40)
    assert "going on with run from step-000001" in done(*command, "2").stderr
    shutil.rmtree(cache)
    ended = done(*command, "3").stderr
    assert f"{NAME}, which run began from, is gone, and is not needed to go on" in ended
    assert "going on with run from step-000002" in ended


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ConnectionError("reset"), TimeoutError("late")]
)
def test_a_file_of_the_hub_that_cannot_be_fetched_is_a_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    fetched(cache)

    def failing(name: str, file: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
    refused = lgrpo(*ASK)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{NAME}: adapter_config.json cannot be fetched" in refused.stderr
