"""What reaches a tracker, what a missing or failing one does, and that a run that goes on goes on there too."""

import json
import os
import pty
import struct
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lgrpo import plan, trackers
from lgrpo.cli import main
from lgrpo.errors import UserError
from lgrpo.latent_sft import schedule
from lgrpo.runs import Run
from lgrpo.trackers import available, check, finite_numbers, tracking

SMALL_INIT = {"batch": 4, "warm_up_steps": 1, "decoder_steps": 1, "walk_steps": 2, "held_out": 4}
SMALL_TRAIN = {
    "batch": 2, "update_batch": 1, "draws": 1, "max_response": 12, "held_out": 4, "eval_every": 2, "micro_tokens": 600,
}  # fmt: skip


def start(folder: Path, **options: Any) -> Run:
    return Run.start(
        folder, "train", [("lr", 0.5, "tried"), ("note", "<b>\x1b[2J", "")], identity={"seed": 1}, **options
    )


def take_steps(run: Run, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.log(step, loss=1 / step, kl=float("nan"), part="walk", lengths={"latent": 2 * step})
    run.event(
        "held_out", step=0, **{"benchmark": "held-out", "problems": 4, "runs": 1, "pass@1": last / 10, "pass@k": {}}
    )


# -- which numbers


def test_only_finite_numbers_are_sent_and_inner_ones_by_their_path():
    class Scalar:
        def item(self):
            return 2.5

    entry = {"a": 1, "b": Scalar(), "c": {"d": {"e": 0.5}}, "f": float("inf"), "g": None, "h": "x", "i": [1]}
    assert finite_numbers(entry) == {"a": 1, "b": 2.5, "c/d/e": 0.5}


class Recorder:
    """A tracker that keeps what it is told, and fails where it is told to."""

    def __init__(self, fail: str = "") -> None:
        self.fail, self.note, self.lines = fail, "look here", []
        if fail == "open":
            raise OSError("no\nroom")

    def log(self, step, numbers):
        self.lines.append((step, numbers))
        if self.fail == "log" and step == 2:
            raise OSError("no\nroom")

    def close(self, failed=False):
        self.lines.append(("closed", failed))
        if self.fail:
            raise OSError("no\nroom")


def follow(monkeypatch, folder: Path, fail: str = "", raises: BaseException | None = None):
    """(what the tracker heard, what was said, how it was opened) of a run of three steps."""
    opened: list[Recorder] = []
    how: list[Any] = []

    def open_tracker(*arguments, **options):
        how.append((arguments, options))
        opened.append(Recorder(fail))
        return opened[0]

    monkeypatch.setattr(trackers, "open_tracker", open_tracker)
    said: list[str] = []
    with start(folder) as run, tracking(run, "wandb", said.append):
        run.event("held_out", step=0, **{"pass@1": 0.25})
        run.event("trial", slots=4)
        take_steps(run, 1, 3)
        if raises:
            raise raises
    return opened, said, how


def test_metrics_and_held_out_scores_are_sent_with_the_step_they_belong_to(monkeypatch, tmp_path):
    opened, said, how = follow(monkeypatch, tmp_path / "a")
    assert opened[0].lines == [
        (0, {"held_out/pass@1": 0.25}),
        (1, {"loss": 1.0, "lengths/latent": 2}),
        (2, {"loss": 0.5, "lengths/latent": 4}),
        (3, {"loss": 1 / 3, "lengths/latent": 6}),
        (3, {"held_out/pass@1": 0.3}),
        ("closed", False),
    ]
    assert said == ["look here"]
    (arguments, options) = how[0]
    assert arguments[:3] == ("wandb", "a", tmp_path / "a")
    assert arguments[3] == {"command": "train", "seed": 1, "lr": 0.5, "note": "<b>\x1b[2J"}
    assert options["first"] == 0
    assert options["run_id"] == json.loads((tmp_path / "a/run.json").read_text())["id"]


def test_a_run_keeps_its_id_until_another_replaces_it(monkeypatch, tmp_path):
    (first,), (again,) = (follow(monkeypatch, tmp_path / "a")[2] for _ in range(2))
    assert first[1]["run_id"] == again[1]["run_id"]
    assert again[1]["first"] == 0
    with start(tmp_path / "a") as run:
        run.finish()  # one that was stopped would go on
    start(tmp_path / "a", overwrite=True).close()
    (other,) = follow(monkeypatch, tmp_path / "a")[2]
    assert other[1]["run_id"] != first[1]["run_id"]


# -- what a tracker cannot do to a run


@pytest.mark.parametrize(
    ("fail", "heard"), [("open", []), ("log", [0, 1, 2, "closed"]), ("close", [0, 1, 2, 3, 3, "closed"])]
)
def test_a_tracker_that_fails_is_left_with_one_line_and_the_run_goes_on(monkeypatch, tmp_path, fail, heard):
    opened, said, _ = follow(monkeypatch, tmp_path / "a", fail)
    assert [line[0] for tracker in opened for line in tracker.lines] == heard
    assert said[fail != "open" :] == [
        "wandb failed (OSError no room); the run goes on without it, metrics.jsonl has all numbers"
    ]
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("raises", "failed"), [(KeyboardInterrupt(), False), (ValueError("broken"), True)])
def test_a_run_that_breaks_is_closed_as_failed_and_one_that_is_stopped_is_not(monkeypatch, tmp_path, raises, failed):
    seen: list[Any] = []
    monkeypatch.setattr(Recorder, "close", lambda self, failed: seen.append(failed))
    with pytest.raises(type(raises)):
        follow(monkeypatch, tmp_path / "a", raises=raises)
    assert seen == [failed]


def test_without_a_tracker_nothing_listens(tmp_path):
    for name in (None, "none"):
        with start(tmp_path / "a") as run, tracking(run, name, print):
            assert run.listeners == []


def test_a_folder_of_the_package_s_name_is_not_the_package(monkeypatch, tmp_path):
    """wandb writes a folder `wandb`, and Python takes any folder on its path for a package."""
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()
    assert not available("wandb")
    (tmp_path / "wandb/__init__.py").touch()
    assert available("wandb")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
@pytest.mark.parametrize("command", ["init", "train"])
def test_a_missing_package_is_said_before_anything_is_loaded_or_written(monkeypatch, tmp_path, command, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    monkeypatch.setattr("lgrpo.session.load", lambda *_: pytest.fail("the model was loaded first"))
    result = CliRunner().invoke(main, [command, "--log-to", name])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--log-to {name} needs a package that is not installed: pip install {name}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=f"pip install {name}$"):
        check(name)
    monkeypatch.setattr(trackers, "find_spec", lambda name: ModuleSpec(name, None, origin="somewhere"))
    check(name)
    check(None)
    check("none")


# -- the real packages


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: {name: [(step, value)]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return {name: [(one.step, one.value) for one in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_crash_and_settings_as_text(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "a b"
    said: list[str] = []
    with start(folder) as run, tracking(run, "tensorboard", said.append):
        take_steps(run, 1, 4)
    with start(folder) as run, tracking(run, "tensorboard", said.append):
        run.rewind(2)  # the newest checkpoint is of step 2; 3 and 4 are done again
        take_steps(run, 3, 5)
    seen = scalars(folder)
    assert seen.keys() == {"loss", "lengths/latent", "held_out/pass@1"}
    assert seen["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert seen["held_out/pass@1"] == [(5, pytest.approx(0.5))]
    assert said == [f"numbers go to TensorBoard too: tensorboard --logdir '{folder}/tensorboard'"] * 2
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    text = reader.Tensors("settings/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["    command  train", "    seed     1", "    lr       0.5", "    note     <b>\\x1b[2J"]
    with start(folder) as run:
        run.finish()  # one that was stopped would go on
    with start(folder, overwrite=True) as run, tracking(run, "tensorboard", said.append):
        take_steps(run, 1, 1)
    assert scalars(folder)["loss"] == [(1, 1.0)]


def test_a_disk_that_is_full_ends_tensorboard_and_not_the_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer import record_writer

    write = record_writer.RecordWriter.write
    room = [5]

    def full(self, data):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    said: list[str] = []
    with start(tmp_path / "a") as run, tracking(run, "tensorboard", said.append):
        take_steps(run, 1, 4)
    assert len(said) == 2
    assert said[1].startswith("tensorboard failed (OSError [Errno 28] No space left on device); the run goes on")
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 4


def test_init_and_train_go_on_where_they_were_followed_until_told_otherwise(monkeypatch, tmp_path):
    """From the command line: the tracker is no part of what makes a run the same, and is kept with it."""
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    for table, small in ((plan._RECIPES, SMALL_TRAIN), (schedule._RECIPES, SMALL_INIT)):
        for name, value in small.items():
            monkeypatch.setitem(table["tiny"], name, (value, "small"))

    def lgrpo(*words: str) -> str:
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        return result.stderr

    shown = lgrpo("train", "--steps", "1", "--set", "limit=40", "--log-to", "tensorboard")
    assert shown.count("tensorboard --logdir runs/tiny-init/tensorboard") == 1
    assert shown.count("tensorboard --logdir runs/tiny-grpo/tensorboard") == 1
    init = scalars(Path("runs/tiny-init"))
    assert [step for step, _ in init["grad_norm"]] == [1, 2, 3, 4]
    assert [step for step, _ in init["held_out/pass@1"]] == [4]
    train = scalars(Path("runs/tiny-grpo"))
    lines = [json.loads(line) for line in Path("runs/tiny-grpo/metrics.jsonl").read_text().splitlines()]
    assert train["reward"] == [(1, pytest.approx(lines[0]["reward"]))]
    assert train.keys() >= {name for name, value in lines[0].items() if isinstance(value, float)}
    assert [step for step, _ in train["held_out/pass@1"]] == [0, 1]

    assert "tensorboard" in lgrpo("train", "--steps", "2")
    assert [step for step, _ in scalars(Path("runs/tiny-grpo"))["reward"]] == [1, 2]
    assert "tensorboard" not in lgrpo("train", "--steps", "3", "--log-to", "none")
    assert [step for step, _ in scalars(Path("runs/tiny-grpo"))["reward"]] == [1, 2]
    assert "log_to" not in json.loads(Path("runs/tiny-grpo/run.json").read_text())["identity"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_writes_nothing_through_a_link(name: str, tmp_path: Path) -> None:
    """As in a run folder that came from elsewhere."""
    pytest.importorskip(name)
    (tmp_path / "outside").mkdir()
    said: list[str] = []
    with start(tmp_path / "a") as run, tracking(run, name, said.append):
        (run.folder / name).symlink_to(tmp_path / "outside")
        take_steps(run, 1, 2)
    assert list((tmp_path / "outside").iterdir()) == []
    assert len(said) == 1
    assert (
        f"a/{name} is a link, and lgrpo writes nothing through one; remove it); the run goes on without it" in said[0]
    )


FOLLOWED = """
import sys
from pathlib import Path
from lgrpo.runs import Run
from lgrpo.trackers import tracking
def say(text): print(text, file=sys.stderr, flush=True)
name, folder, first, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with Run.start(folder, "train", [("lr", 0.5, "tried")], identity={"seed": 1}) as run, tracking(run, name, say):
    for step in range(first, last + 1):
        run.log(step, loss=1 / step)
    run.event("held_out", step=0, **{"pass@1": last / 10})
"""


def follow_on_a_terminal(name: str, folder: Path, first: int, last: int, home: Path) -> str:
    """A process of its own whose stdin and stderr are a terminal on which nobody answers; what it showed there."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_", "HF_"))}
    env |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", FOLLOWED, name, str(folder), str(first), str(last)]
    child = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=env, cwd=home)
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        out, _ = child.communicate(timeout=120)
    finally:
        child.kill()
        os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    assert (child.returncode, out) == (0, b""), text
    return text


def wandb_records(path: Path) -> list[Any]:
    """The records of an offline run: LevelDB's log format, in which wandb keeps them until they are sent."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)  # after four bytes of checksum
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def test_wandb_without_a_key_is_offline_asks_nothing_and_goes_on_under_the_same_id(tmp_path):
    pytest.importorskip("wandb")
    folder = tmp_path / "runs/tiny grpo"
    shown = [follow_on_a_terminal("wandb", folder, first, first + 2, tmp_path) for first in (1, 4)]
    for text in shown:
        assert text.startswith("Weights & Biases is offline (No API key configured.")
        assert text.endswith(f"; to send the numbers: wandb sync '{folder}/wandb'/offline-run-*\n")
        assert text.count("\n") == 1
    run_id = json.loads((folder / "run.json").read_text())["id"]
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    history: list[dict[str, float]] = []
    for path in files:
        records = wandb_records(path)
        run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name, run.run_id) == ("lgrpo", "tiny grpo", run_id)
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["lr"] == 0.5
        for record in records:
            if record.WhichOneof("record_type") == "history":
                items = {"".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                history.append({name: json.loads(value) for name, value in items.items() if name[0] != "_"})
    assert history[:4] == [*({"step": s, "loss": 1 / s} for s in (1, 2, 3)), {"step": 3, "held_out/pass@1": 0.3}]
    assert history[4:] == [*({"step": s, "loss": 1 / s} for s in (4, 5, 6)), {"step": 6, "held_out/pass@1": 0.6}]


def test_trackio_keeps_one_local_run_however_often_it_goes_on(tmp_path):
    pytest.importorskip("trackio")
    import sqlite3

    folder = tmp_path / "runs/tiny-grpo"
    for first in (1, 4):
        text = follow_on_a_terminal("trackio", folder, first, first + 2, tmp_path)
        assert text == "numbers go to Trackio too: trackio show --project lgrpo\n"
    name = f"tiny-grpo-{json.loads((folder / 'run.json').read_text())['id']}"
    (path,) = tmp_path.rglob("lgrpo.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
        ((config,),) = base.execute("select config from configs").fetchall()
    assert len({row[0] for row in rows}) == 1
    assert {row[1] for row in rows} == {name}
    assert [(row[2], json.loads(row[3])) for row in rows] == [
        *((s, {"loss": pytest.approx(1 / s)}) for s in (1, 2, 3)),
        (3, {"held_out/pass@1": 0.3}),
        *((s, {"loss": pytest.approx(1 / s)}) for s in (4, 5, 6)),
        (6, {"held_out/pass@1": 0.6}),
    ]
    assert json.loads(config)["lr"] == 0.5
