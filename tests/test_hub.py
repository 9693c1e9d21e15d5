"""Checkpoints in the hub's cache."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from test_cli import done

from lgrpo import session, tiny
from lgrpo.policy import Card, Policy, trained_on
from lgrpo.problems import Problem

NAME, COMMIT = "someone/latent", "a" * 40
KNOWN = [Problem("Ann has 3 pens and buys 4. How many has she?", "7")]


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
