"""Samples of an evaluation: what was kept counts, what is missing is asked, and nothing else is ever mixed in."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lgrpo.errors import UserError
from lgrpo.evaluate import Asked
from lgrpo.exam.samples import EXPLORED, PASS_AT_1, Outcome, Samples, path_of
from lgrpo.problems import Problem
from lgrpo.runs.contents import content_hash

PROBLEMS = [Problem("one?", "1"), Problem("two?", "2"), Problem("three?", "3")]


def outcome(problem: int, run: int, right: bool = True) -> Outcome:
    return Outcome(problem, run, right, True, 8, 5)


def fill(path: Path, *outcomes: Outcome, kind: str = PASS_AT_1, problems: list[Problem] = PROBLEMS) -> None:
    with Samples(path, problems) as samples:
        samples.add(kind, outcomes, [{"text": f"\\boxed{{{one.run}}}"} for one in outcomes])


def test_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    with Samples(path, PROBLEMS) as samples:
        assert samples.missing(PASS_AT_1, 2) == [Asked(place, run) for place in range(3) for run in range(2)]
    assert not path.parent.exists()  # nothing was added
    fill(path, outcome(0, 0), outcome(1, 1, right=False))
    fill(path, outcome(2, 0), kind=EXPLORED)
    with Samples(path, PROBLEMS) as samples:
        assert samples.missing(PASS_AT_1, 2) == [Asked(0, 1), Asked(1, 0), Asked(2, 0), Asked(2, 1)]
        assert samples.missing(EXPLORED, 1) == [Asked(0, 0), Asked(1, 0)]
        assert samples.of(PASS_AT_1, 2) == [outcome(0, 0), outcome(1, 1, right=False)]
        assert samples.of(PASS_AT_1, 1) == [outcome(0, 0)]  # fewer runs than were kept
    row = json.loads(path.read_text().splitlines()[1])
    assert row == {
        "key": f"{PROBLEMS[1].key:016x}", "kind": "pass@1", "problem": "two?", "run": 1, "right": False, "valid": True,
        "latent_length": 8, "explicit_length": 5, "unchecked": None, "reference": "2", "text": "\\boxed{1}",
    }  # fmt: skip


def test_a_torn_last_line_is_dropped_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fill(path, outcome(0, 0), outcome(1, 0))
    whole = path.read_bytes()
    path.write_bytes(b"\x00\xff garbage\n{}\n[1]\n" + whole + whole[:40])
    with Samples(path, PROBLEMS) as samples:
        assert samples.missing(PASS_AT_1, 1) == [Asked(2, 0)]
        samples.add(PASS_AT_1, [outcome(2, 0)], [{}])
    assert [json.loads(line)["problem"] for line in path.read_bytes().splitlines()[3:]] == ["one?", "two?", "three?"]


@pytest.mark.parametrize(
    "damage",
    [{"kind": "other"}, {"kind": ["pass@1"]}, {"key": [1]}, {"reference": {}}, {"run": "0"}, {"run": -1},
     {"run": False}, {"run": 0.0}, {"right": 1}, {"right": None}, {"valid": "yes"}, {"latent_length": None},
     {"explicit_length": -2}, {"latent_length": 1e3}, {"explicit_length": 10**400}, {"unchecked": 1}],
)  # fmt: skip
def test_a_line_with_a_wrong_value_is_passed_over_and_its_sample_made_again(
    damage: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    fill(path, outcome(0, 0), outcome(1, 0))
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text(json.dumps({**first, **damage}) + "\n" + json.dumps(second) + "\n")
    with Samples(path, PROBLEMS) as samples:
        assert samples.of(PASS_AT_1, 1) == [outcome(1, 0)]
        assert samples.missing(PASS_AT_1, 1) == [Asked(0, 0), Asked(2, 0)]


def test_a_sample_belongs_to_its_problem_wherever_that_stands_and_to_no_changed_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fill(path, outcome(0, 0), outcome(1, 0))
    turned = [Problem("two?", "2"), Problem("new?", "9"), Problem("one?", "1"), Problem("one?", "1")]
    with Samples(path, turned) as samples:
        assert samples.missing(PASS_AT_1, 1) == [Asked(1, 0)]
    with Samples(path, [Problem("one?", "7"), Problem("two??", "2")]) as samples:
        assert samples.missing(PASS_AT_1, 1) == [Asked(0, 0), Asked(1, 0)]


def test_whatever_decides_a_sample_decides_the_name_of_its_file(tmp_path: Path) -> None:
    base = path_of(tmp_path, "owner/name", {"seed": 0, "model": "a"})
    assert base.parent == tmp_path
    assert base.name.startswith("owner-name-")
    assert len({base, *(path_of(tmp_path, "owner/name", {"seed": n, "model": "a"}) for n in (0, 1, 2))}) == 3


def test_the_hash_of_a_model_is_of_what_decides_its_answers(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = content_hash(tmp_path)
    for name in ("saved.json", "train_state.json", "train_state.safetensors", "notes.md"):
        (tmp_path / name).write_text("other")
        assert content_hash(tmp_path) == before, name
    for name in ("model.safetensors", "config.json", "tokenizer.json", "lgrpo.json", "chat_template.jinja"):
        (tmp_path / name).write_text("other")
        assert content_hash(tmp_path) != before, name
        before = content_hash(tmp_path)
    with pytest.raises(UserError, match="cannot be read to its end"):
        content_hash(tmp_path / "gone")


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fill(path, outcome(0, 0))
    before = path.read_bytes()
    other = (
        "import sys\nfrom pathlib import Path\nfrom lgrpo.exam.samples import Samples\n"
        f"with Samples(Path({str(path)!r}), []): print('mine', flush=True); sys.stdin.read()"
    )
    held = subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"mine\n"
    with pytest.raises(UserError, match="is being written by another `lgrpo eval`; wait for it to end"):
        Samples(path, PROBLEMS)
    held.communicate(b"")
    with Samples(path, PROBLEMS) as samples:
        assert samples.of(PASS_AT_1, 1) == [outcome(0, 0)]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*; choose another --out"):
        fill(tmp_path / "file" / "a.jsonl", outcome(0, 0))
