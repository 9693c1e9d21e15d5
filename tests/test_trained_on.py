"""Evaluation and held-out problems that a checkpoint was trained on are found, wherever it was copied to."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_cli import done

from lgrpo import plan, session, tiny
from lgrpo.data import read_problems
from lgrpo.errors import UserError
from lgrpo.latent_sft import schedule
from lgrpo.policy import Policy, trained_on
from lgrpo.problems import Problem, hold_out, overlap
from lgrpo.runs.contents import content_hash

KNOWN = [Problem(f"Ann has {n} pens and buys {n + 2}. How many has she?", str(2 * n + 2)) for n in range(40)]
NEW = [Problem(f"Ben had {n} cows and sold one. How many are left?", str(n - 1)) for n in range(5, 25)]


def louder(problem: Problem) -> Problem:
    return replace(problem, problem=problem.problem.upper().replace(".", " !"))


def written(path: Path, problems: list[Problem]) -> str:
    rows = [{"problem": one.problem, "answer": one.answer, "cot": "<<1+1=2>>"} for one in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_known_problems_are_counted_in_whatever_spelling() -> None:
    known = trained_on.joined(trained_on.nothing(), [*KNOWN, *KNOWN])
    assert known.dtype == torch.int64
    assert len(known) == 40
    assert trained_on.count(known, [*map(louder, KNOWN[:7]), *NEW]) == 7
    assert trained_on.count(known, [KNOWN[0], KNOWN[0], NEW[0]]) == 2  # a benchmark may hold a problem twice
    assert trained_on.count(trained_on.nothing(), KNOWN) == 0
    more = trained_on.joined(known, [*NEW, *map(louder, KNOWN)])
    assert len(more) == 60
    assert torch.equal(more, trained_on.joined(trained_on.joined(trained_on.nothing(), NEW), KNOWN))


def test_a_copied_checkpoint_still_knows_and_its_answers_are_the_same_model_s(tmp_path: Path) -> None:
    policy = Policy.load(tiny.MODEL)
    assert len(policy.trained_on) == 0
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        policy.save(tmp_path / name)
        policy.trained_on = trained_on.joined(policy.trained_on, KNOWN)
    assert not (tmp_path / "before" / trained_on.FILE).exists()
    shutil.copytree(tmp_path / "after", tmp_path / "elsewhere")
    policy = Policy.load(tmp_path / "elsewhere")
    assert trained_on.count(policy.trained_on, [*KNOWN, *NEW]) == 40
    policy.save(tmp_path / "elsewhere")  # over itself: the file is none of the model's
    assert content_hash(tmp_path / "before") == content_hash(tmp_path / "elsewhere")


def test_hashes_that_read_back_from_disk_as_others_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "safetensors.torch.save_file", lambda tensors, path: save_file({"texts": tensors["texts"] + 1}, path)
    )
    with pytest.raises(OSError, match="the tensor texts reads back from disk as another"):
        trained_on.write(tmp_path, trained_on.joined(trained_on.nothing(), KNOWN))


@pytest.mark.parametrize("kind", ["cut", "empty", "floats", "table", "other name"])
def test_a_damaged_list_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / trained_on.FILE
    trained_on.write(tmp_path, trained_on.joined(trained_on.nothing(), KNOWN))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        tensor = torch.zeros(4, 2, dtype=torch.int64) if kind == "table" else torch.zeros(4)
        save_file({"other" if kind == "other name" else "texts": tensor}, path)
    with pytest.raises(UserError, match=r"trained_on\.safetensors is damaged; copy it again, or delete it"):
        trained_on.read(tmp_path)


def test_init_and_train_remember_and_eval_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the commands: `train` on other data knows what `init` was trained on, too."""
    monkeypatch.chdir(tmp_path)
    small = {"batch": 4, "warm_up_steps": 1, "decoder_steps": 1, "walk_steps": 2, "held_out": 4}
    steps = {"steps": 1, "batch": 2, "update_batch": 1, "draws": 1, "max_response": 12, "held_out": 6, "eval_every": 2}
    for table, numbers in ((schedule._RECIPES, small), (plan._RECIPES, steps)):
        for name, value in numbers.items():
            monkeypatch.setitem(table["tiny"], name, (value, "small"))
    first, second = written(Path("first.jsonl"), KNOWN), written(Path("second.jsonl"), NEW)
    done("init", "--data", first, "--out", "runs/a-init", "--device", "cpu")
    made = done("train", "runs/a-init", "--data", second, "--out", "runs/a-grpo", "--device", "cpu")
    assert "held-out problems are among" not in made.stderr
    asked = [*map(louder, KNOWN), *NEW, Problem("Is this new?", "1")]
    scored = ["--runs", "1", "--samples", "0", "--device", "cpu"]
    both = done("eval", "runs/a-grpo", "--data", written(Path("both.jsonl"), asked), *scored)
    assert (  # six of the forty are for `train`, four of the twenty are a fifth
        "warning: 50 of the 61 problems of both are among those runs/a-grpo was trained on (second.jsonl), and the "
        "score tells less; give --data with problems it has not seen\n"
    ) in both.stderr
    one = done("eval", "runs/a-init", "--data", written(Path("new.jsonl"), NEW), *scored)
    assert "trained on" not in one.stderr
    again = done("train", "runs/a-init", "--data", first, "--seed", "5", "--out", "runs/again", "--device", "cpu")
    assert "of the 6 held-out problems are among those runs/a-init was trained on" in again.stderr
    same = done("train", "runs/a-init", "--data", first, "--out", "runs/same", "--device", "cpu")
    assert "held-out problems are among" not in same.stderr


@pytest.mark.parametrize("level", ["", ":easy", ":hard"])
def test_the_generator_s_test_problems_are_in_no_training_data(level: str) -> None:
    train, test = (read_problems(f"arithmetic{level}", split, limit=1000) for split in ("train", "test"))
    assert overlap(train, test) == 0
    known = trained_on.joined(trained_on.nothing(), train)
    assert trained_on.count(known, test) == 0
    assert trained_on.count(known, train) == 1000


def test_a_list_of_an_older_form_is_said_not_to_be_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its hashes are of letters and digits alone: none would be found again."""
    policy = Policy.load(tiny.MODEL)
    policy.card = replace(policy.card, mode="latent", k=4)
    policy.save(tmp_path)
    save_file({"problems": torch.arange(7)}, tmp_path / trained_on.FILE)
    assert len(session.load(str(tmp_path), "cpu").trained_on) == 0
    assert "is not known: its trained_on.safetensors is of an older form" in capsys.readouterr().err


def test_copies_of_what_is_held_out_are_not_trained_on() -> None:
    train, held_out = hold_out([*KNOWN, *map(louder, KNOWN), *NEW], 10, seed=3)
    known = trained_on.joined(trained_on.nothing(), train)
    assert trained_on.count(known, held_out) == 0
    assert trained_on.count(known, list(map(louder, held_out))) == 0
    assert len(known) == 50
