# ruff: noqa: F401, F811 - fixtures of test_cli
"""A run goes on after its start checkpoint was removed, or is no longer what the same words mean."""

import shutil
from pathlib import Path

import pytest
import torch
from test_cli import _small, ctrl_c, done, latent, lgrpo, listing, mixed_rewards, policy, record_of, steps_of

from lgrpo import tiny
from lgrpo.policy import Policy
from lgrpo.runs import Run

pytestmark = pytest.mark.usefixtures("_small", "mixed_rewards")
TRAIN = ("train", "a", "--out", "x", "--set", "limit=40")


@pytest.fixture
def begun(policy: Policy, ctrl_c: list[int]) -> Path:
    """A run `x` that began from the best checkpoint of the run `a`, and was stopped after its first step."""
    with Run.start(Path("a"), "init", []) as run:
        run.save("walk-000010", policy.save, score=0.5)
    ctrl_c.append(1)
    assert lgrpo(*TRAIN).exit_code == 130
    assert record_of("x")["identity"]["checkpoint"] == "a/checkpoints/walk-000010"
    return Path("a/checkpoints/walk-000010")


def saved(run: str) -> bytes:
    return Path(run, "checkpoints/step-000003/model.safetensors").read_bytes()


@pytest.mark.parametrize("lost", ["a/checkpoints/walk-000010", "a"])
def test_without_its_start_a_run_goes_on_from_its_own_checkpoint_to_the_same_end(begun: Path, lost: str) -> None:
    shutil.copytree("x", "y")
    shutil.copytree("x", "z")
    done(*TRAIN)
    shutil.rmtree(lost)
    for run, words in {"y": ("train", "a", "--out", "y", "--set", "limit=40"), "z": ("train", "z")}.items():
        ended = done(*words)
        assert ended.stderr.startswith(f"{begun}, which {run} began from, is gone, and is not needed to go on\n")
        assert f"going on with {run} from step-000001" in ended.stderr
        assert steps_of(run) == [1, 2, 3]
        assert saved(run) == saved("x")
        assert record_of(run)["identity"] == record_of("x")["identity"]


def test_a_run_stays_with_the_checkpoint_it_began_from_when_there_is_a_better_one(
    begun: Path,
    policy: Policy,
) -> None:
    with Run.open(Path("a")) as run:
        better = run.save("walk-000020", policy.save, score=0.9)
    ended = done(*TRAIN)
    assert ended.stderr.startswith(
        f"x stays with {begun}, which it began from; a means {better} by now: another --out begins from that\n"
    )
    assert steps_of("x") == [1, 2, 3]
    assert record_of("x")["identity"]["checkpoint"] == str(begun)
    done(*TRAIN, "--steps", "1", "--overwrite")  # it has ended: this begins anew
    assert record_of("x")["identity"]["checkpoint"] == str(better)
    assert steps_of("x") == [1]


def test_what_a_stopped_run_began_from_is_not_what_another_one_that_replaces_it_does(
    begun: Path,
    policy: Policy,
    ctrl_c: list[int],
) -> None:
    with Run.open(Path("a")) as run:
        better = run.save("walk-000020", policy.save, score=0.9)
    ctrl_c.append(2)
    assert "going on with x" in lgrpo(*TRAIN, "--overwrite").stderr  # the same run
    done(*TRAIN, "--steps", "1", "--seed", "3", "--overwrite")
    assert record_of("x")["identity"]["checkpoint"] == str(better)


def test_a_start_that_is_another_now_is_refused(begun: Path) -> None:
    (begun / "lgrpo.json").write_text((begun / "lgrpo.json").read_text() + " ")
    (begun / "saved.json").unlink()
    before = listing()
    refused = lgrpo("train", str(begun), "--out", "x", "--set", "limit=40")
    assert refused.exit_code == 2
    assert "x holds another run (checkpoint_hash " in refused.stderr
    assert listing() == before


def test_another_run_without_its_start_is_not_begun_from_the_checkpoint_it_would_replace(begun: Path) -> None:
    shutil.rmtree("a")
    before = listing()
    for words in ((*TRAIN, "--seed", "3"), (*TRAIN, "--seed", "3", "--overwrite"), ("train", "a", "--out", "new")):
        refused = lgrpo(*words)
        assert refused.exit_code == 2
        assert "holds another run (seed 0, now 3)" in refused.stderr or "there is no 'a'" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert listing() == before


def test_where_the_first_weights_are_needed_or_nothing_else_is_left_it_is_one_line(
    begun: Path,
    latent: str,
    ctrl_c: list[int],
) -> None:
    ctrl_c.append(1)
    assert lgrpo("train", latent, "--set", "limit=40", "--set", "kl=0.1").exit_code == 130
    shutil.rmtree(latent)
    refused = lgrpo("train")
    assert refused.exit_code == 2
    assert "latent, which runs/latent-grpo began from, is gone, and kl compares with its weights" in refused.stderr

    shutil.rmtree("a")
    last = max(Path("x/checkpoints").iterdir())
    for path in Path("x/checkpoints").glob("*/train_state.json"):
        path.write_text("{}")
    refused = lgrpo(*TRAIN)  # damaged in what only going on needs: its weights are whole
    assert refused.exit_code == 2
    assert f"{begun}, which x began from, is gone, and no other checkpoint is undamaged; put it back" in refused.stderr
    assert not last.exists()
    refused = lgrpo(*TRAIN)
    assert f"{begun}, which x began from, is gone, and there is no other checkpoint to go on from" in refused.stderr


def remade(policy: Policy) -> str:
    """The run `a` anew, with a checkpoint of another name and other weights. Returns it."""
    shutil.rmtree("a")
    weights = policy.embedding.weight
    kept = weights.detach().clone()
    with torch.no_grad(), Run.start(Path("a"), "init", []) as run:
        weights.mul_(0.5)
        saved = run.save("walk-000077", policy.save, score=0.5)
        weights.copy_(kept)
    return str(saved)


def test_a_start_whose_run_was_made_anew_is_not_called_unneeded_in_silence(begun: Path, policy: Policy) -> None:
    shutil.copytree("x", "y")
    shutil.copytree("x", "z")
    shutil.rmtree("z/checkpoints")
    now = remade(policy)
    by_now = f"a means {now} by now: another --out, or --overwrite, begins from that"
    ended = done(*TRAIN)
    assert ended.stderr.startswith(f"{begun}, which x began from, is gone, and is not needed to go on; {by_now}\n")
    refused = lgrpo(*TRAIN)
    assert refused.exit_code == 2
    assert f"{begun}, which x began from, is gone, and x is finished; {by_now}" in refused.stderr
    nothing_saved = (*TRAIN[:3], "z", *TRAIN[4:])
    assert f"and there is no other checkpoint to go on from; {by_now}" in lgrpo(*nothing_saved).stderr
    for run in ("y", "z"):
        done(*TRAIN[:3], run, *TRAIN[4:], "--overwrite")
        assert steps_of(run) == [1, 2, 3]
        assert record_of(run)["identity"]["checkpoint"] == now


def test_a_damaged_start_costs_a_run_that_does_not_need_it_nothing(begun: Path) -> None:
    weights = begun / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    ended = done(*TRAIN)
    assert f"{begun}, which x began from, is damaged, and is not needed to go on" in ended.stderr
    assert steps_of("x") == [1, 2, 3]


def test_a_finished_run_that_is_to_go_on_is_not_finished_whatever_kills_it_then(
    latent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("train", latent, "--out", "x", "--set", "limit=40", "--steps", "1")
    with monkeypatch.context() as dying:
        dying.setattr("lgrpo.commands.learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lgrpo("train", "x", "--steps", "2").exit_code == 130
    assert record_of("x")["finished"] is None
    done("train", "x")
    assert steps_of("x") == [1, 2]


def test_an_init_without_its_base_says_so(ctrl_c: list[int]) -> None:
    shutil.copytree(tiny.MODEL, "base")
    ctrl_c.append(2)
    words = ("init", "base", "--data", "arithmetic", "--set", "limit=80")
    assert lgrpo(*words).exit_code == 130
    Path("base").rename("moved")
    refused = lgrpo(*words)
    assert refused.exit_code == 2
    assert "base, which runs/base-init began from, is gone; put it back: it is needed to go on" in refused.stderr
    Path("moved").rename("base")
    done(*words)
    shutil.rmtree("base")
    assert "runs/base-init is finished, and `lgrpo train runs/base-init` goes on from there" in lgrpo(*words).stderr


def test_a_base_that_train_initialised_first_is_not_needed_either() -> None:
    shutil.copytree(tiny.MODEL, "base")
    words = ("train", "base", "--data", "arithmetic", "--set", "limit=60", "--steps")
    assert "base has no latent chain yet: running `lgrpo init` first" in done(*words, "1").stderr
    began = record_of("runs/base-grpo")["identity"]["checkpoint"]
    shutil.rmtree("base")
    ended = done(*words, "2")
    assert f"runs/base-grpo stays with {began}, which it began from" in ended.stderr
    assert steps_of("runs/base-grpo") == [1, 2]
    shutil.copytree(tiny.MODEL, "base")
    Path("base/config.json").write_text(Path("base/config.json").read_text() + " ")
    assert "runs/base-init holds another run (base_hash " in lgrpo(*words, "3").stderr
