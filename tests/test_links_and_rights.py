"""Files and folders that may not be read, and links: in checkpoints, runs and data."""

import encodings.utf_8_sig  # noqa: F401 - all that is imported late, by who may read it
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from test_bad_input import listing
from test_cli import lgrpo, policy  # noqa: F401 - a fixture

from lgrpo import commands  # noqa: F401
from lgrpo.asking import sample  # noqa: F401
from lgrpo.errors import UserError
from lgrpo.exam import score  # noqa: F401
from lgrpo.policy import Policy
from lgrpo.runs import Run
from lgrpo.runs.checkpoints import newest_run, resolve_checkpoint
from lgrpo.runs.contents import damage, short_hash

NOBODY = 65534
DENIED = "Permission denied"


def start(folder: Path | str = "run") -> Run:
    return Run.start(Path(folder), "train", [], identity={"seed": 3})


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


# -- rights


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's rights, which no permission binds. Whoever else runs this is bound as he is."""
    root = os.geteuid() == 0
    if root:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)


@pytest.fixture(scope="module")
def shelf(policy: Policy) -> Iterator[Path]:  # noqa: F811
    """A model, a run and data that all may read, outside of pytest's folder, which its owner alone may enter."""
    if not hasattr(os, "geteuid"):
        pytest.skip("rights by POSIX means")
    folder = Path(tempfile.mkdtemp())
    policy.save(folder / "model")
    with start(folder / "run") as run:
        run.save("step-1", policy.save)
    (folder / "data").mkdir()
    (folder / "data/train.jsonl").write_text(
        "".join(f'{{"problem": "{n} + 2", "answer": "{n + 2}"}}\n' for n in range(9))
    )
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def closed(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


EVAL, OUT = ["eval", "model", "--data"], ["train", "model", "--data", "data", "--out", "run"]
UNREADABLE = [
    ("model/model.safetensors", ["eval", "model"], f"model/model.safetensors: cannot be read ({DENIED})"),
    ("model/config.json", ["eval", "model"], DENIED),
    ("model/tokenizer.json", ["eval", "model"], DENIED),
    ("model/lgrpo.json", ["train", "model", "--out", "new"], f"model/lgrpo.json: cannot be read ({DENIED})"),
    ("model/", ["eval", "model"], f"model cannot be read ({DENIED}); mend its permissions, or name another"),
    ("model/", ["train", "model", "--out", "new"], f"model cannot be read ({DENIED}); mend"),
    ("model/", ["sample", "2 + 2", "--model", "model"], f"model cannot be read ({DENIED}); mend"),
    ("data/train.jsonl", [*EVAL, "data/train.jsonl"], f"data/train.jsonl: cannot be read ({DENIED})"),
    ("data/train.jsonl", ["init", "--data", "data", "--out", "new"], f"data/train.jsonl: cannot be read ({DENIED})"),
    ("data/", [*EVAL, "data"], f"data: cannot be read ({DENIED})"),
    ("run/", ["eval", "run"], f"run cannot be read ({DENIED}); mend its permissions, or name another"),
    ("run/", OUT, "choose another --out"),
    ("run/run.json", OUT, f"run/run.json cannot be read ({DENIED}); choose another --out"),
    ("run/checkpoints/", ["eval", "run"], f"run cannot be read ({DENIED}); mend its permissions, or name another"),
]


@pytest.mark.parametrize(("path", "arguments", "message"), UNREADABLE)
def test_what_may_not_be_read_is_one_line_and_nothing_is_written(
    path: str, arguments: list[str], message: str, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shelf)
    before = listing()
    for mode in (0, 0o444) if path.endswith("/") else (0,):  # a folder: not even its names, or them alone
        with closed(Path(path), mode), nobody():
            result = lgrpo(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
        assert "damaged" not in result.stderr
        assert result.stderr.count("\n") == 1
        assert listing() == before


def test_a_run_whose_checkpoints_may_not_be_read_does_not_begin_anew(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shelf)
    with closed(Path("run/checkpoints"), 0), nobody(), pytest.raises(UserError, match=DENIED):
        start()
    assert os.listdir("run/checkpoints") == ["step-1"]


def test_a_run_that_may_not_be_read_is_not_the_newest(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf)
    with closed(Path("run/checkpoints"), 0), nobody():
        assert newest_run(Path()) is None
    with nobody():
        assert newest_run(Path()) == Path("run")


# -- links


def test_a_checkpoint_that_is_a_link_is_used_and_what_it_points_to_is_never_removed(tmp_path: Path) -> None:
    """Somebody moved it to a larger disk."""
    with start(tmp_path / "run") as run:
        moved = run.save("step-1", write_model).rename(tmp_path / "moved")
        (tmp_path / "run/checkpoints/step-1").symlink_to(moved)
        run.save("step-2", write_model)
    with start(tmp_path / "run") as run:
        assert [path.name for path in run.checkpoints()] == ["step-1", "step-2"]
        assert run.damaged == []
        run.save("step-1", write_model)  # in its place
        assert not (run.folder / "checkpoints/step-1").is_symlink()
        shutil.rmtree(run.folder / "checkpoints/step-1")
        (run.folder / "checkpoints/step-1").symlink_to(moved)
        run.save("step-3", write_model)
        run.prune()
        assert sorted(os.listdir(run.folder / "checkpoints")) == ["step-2", "step-3"]
    assert damage(moved) is None
    assert sorted(os.listdir(moved)) == ["config.json", "saved.json"]


def test_all_checkpoints_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "run").mkdir()
    with start(tmp_path / "run") as run:
        (tmp_path / "run/checkpoints").symlink_to(tmp_path / "large")
        run.save("step-1", write_model)
    with start(tmp_path / "run") as run:
        assert [path.name for path in run.checkpoints()] == ["step-1"]
    with Run.start(tmp_path / "run", "train", [], identity={"seed": 4}, overwrite=True) as run:
        assert run.checkpoints() == []
        run.save("step-5", write_model)
        assert os.listdir(run.folder / "checkpoints") == ["step-5"]
    assert os.listdir(tmp_path / "large") == ["step-1"]


LINKS: dict[str, Callable[[Path], None]] = {
    "to nothing": lambda path: path.symlink_to("nothing"),
    "to itself": lambda path: path.symlink_to(path.name),
    "in a circle": lambda path: (path.symlink_to("other"), path.with_name("other").symlink_to(path.name))[0],
    "to a file": lambda path: path.symlink_to("../run.json"),
}


@pytest.mark.parametrize("where", LINKS)
def test_a_link_that_leads_nowhere_is_set_aside_and_its_name_can_be_saved_again(where: str, tmp_path: Path) -> None:
    with start(tmp_path / "run") as run:
        run.save("step-1", write_model)
    LINKS[where](tmp_path / "run/checkpoints/step-2")
    assert resolve_checkpoint(str(tmp_path / "run"), pytest.fail).endswith("step-1")
    with start(tmp_path / "run") as run:
        assert "step-2 is damaged (saved.json is missing)" in " ".join(run.damaged)
        assert run.latest() == run.folder / "checkpoints/step-1"
        LINKS["to nothing"](run.folder / "checkpoints/step-2")
        run.save("step-2", write_model)
        assert damage(run.folder / "checkpoints/step-2") is None
        run.prune()
        assert sorted(os.listdir(run.folder / "checkpoints")) == ["step-1", "step-2"]


@pytest.mark.parametrize("where", ["to nothing", "to itself", "in a circle"])
def test_a_name_that_is_a_link_to_nowhere_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    LINKS[where](Path("model"))
    for arguments, message in [
        (["eval", "model"], "there is no 'model'"),
        (["eval", "--data", "model", "tiny"], "model: "),
    ]:
        result = lgrpo(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), (arguments, result.stderr)
        assert message in result.stderr
    with pytest.raises(UserError, match=r"cannot write in model: .*; choose another --out"):
        start("model")


ONLY_HERE = ("lock", "metrics.jsonl", "events.jsonl")


@pytest.mark.parametrize("name", [*ONLY_HERE, "run.json", ".run.json.new", "tensorboard"])
def test_a_run_writes_nothing_through_a_link(name: str, tmp_path: Path) -> None:
    """As in a run folder that came from elsewhere."""
    (tmp_path / "mine").write_text("years of work\nhalf a line")
    with start(tmp_path / "run") as run:
        run.save("step-1", write_model)
    (tmp_path / "run" / name).unlink(missing_ok=True)
    if name == "run.json":
        (tmp_path / "mine").write_bytes(b'{"command": "train", "identity": {"seed": 3}}')
    before = (tmp_path / "mine").read_bytes()
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    for overwrite in (False, True):
        refused = pytest.raises(UserError, match=f"{name} is a link") if name in ONLY_HERE else nullcontext()
        with refused, Run.start(tmp_path / "run", "train", [], identity={"seed": 3}, overwrite=overwrite) as run:
            run.log(1, loss=0.5)
        assert (tmp_path / "mine").read_bytes() == before


@pytest.mark.parametrize("outside", ["../../../mine", "state/../../../../mine", "{tmp}/mine", "/dev/zero"])
def test_a_record_that_names_a_file_outside_is_damaged_and_nothing_is_read_or_written_there(
    outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = outside.format(tmp=tmp_path)
    (tmp_path / "mine").write_text("years of work")
    with start(tmp_path / "run") as run:
        run.save("step-1", write_model)
        run.save("step-2", write_model)
    path = tmp_path / "run/checkpoints/step-2/saved.json"
    note = json.loads(path.read_text())
    del note["seal"]
    note["files"][outside] = "00"
    path.write_text(json.dumps({**note, "seal": short_hash(note)}))  # it is no signature
    opened, real = [], Path.open

    def spy(self: Path, *how: object, **more: object) -> object:
        opened.append(self.resolve())
        return real(self, *how, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", spy)
    with start(tmp_path / "run") as run:
        assert "step-2 is damaged (saved.json names a file outside)" in run.damaged[0]
        assert run.latest() == run.folder / "checkpoints/step-1"
    assert tmp_path / "run/checkpoints/step-1/config.json" in opened
    assert not {tmp_path / "mine", Path("/dev/zero")} & {*opened}
    assert (tmp_path / "mine").read_text() == "years of work"


@pytest.mark.parametrize("folder", [False, True])
def test_an_evaluation_writes_nothing_through_a_link(folder: bool, tmp_path: Path, policy: Policy) -> None:  # noqa: F811
    """As in a run folder that came from elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with start(tmp_path / "run") as run:
        run.save("step-1", policy.save)
    data = tmp_path / "few.jsonl"
    data.write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    asked = ["eval", str(tmp_path / "run"), "--data", str(data), "--runs", "1", "--samples", "0"]
    asked += ["--device", "cpu", "--max-response", "8"]
    if folder:
        (tmp_path / "run/eval").symlink_to(outside)
    else:
        assert lgrpo(*asked).exit_code == 0
        (samples,) = (tmp_path / "run/eval").glob("few-*.jsonl")
        samples.rename(outside / "precious.txt")
        (outside / "precious.txt").write_text("not ours, and no line feed at its end")
        samples.symlink_to(outside / "precious.txt")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in outside.iterdir()}
    refused = lgrpo(*asked)
    assert (refused.exit_code, refused.stdout) == (2, "")
    link = "run/eval" if folder else "run/eval/few-"
    assert f"Error: {tmp_path / link}" in refused.stderr
    assert "is a link, and lgrpo writes nothing through one; remove it" in refused.stderr
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in outside.iterdir()} == before
