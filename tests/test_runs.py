"""Run folders with real files: what a crash, a second process or a wrong folder must not do."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lgrpo.errors import UserError
from lgrpo.report.tables import _devices
from lgrpo.runs import Run
from lgrpo.runs.checkpoints import newest_run, resolve_checkpoint, run_folder, safe_name
from lgrpo.runs.contents import compare, damage
from lgrpo.runs.durable import write_json

SETTINGS = [("lr", 1e-6, "from the paper"), ("seed", 3, "you set it")]


def start(folder, command="train", **more):
    return Run.start(folder, command, SETTINGS, **more)


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "state").mkdir()
    (folder / "state" / "note").write_text("whole")


def _resolve(source):
    return resolve_checkpoint(source, lambda text: pytest.fail(text))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(match):
    return pytest.raises(UserError, match=match)


# -- beginning, resuming, refusing


def test_record_holds_settings_with_reasons_versions_and_facts(tmp_path):
    with start(tmp_path / "a", device="cpu", seed=3, data_hash="ab12") as run:
        assert not run.resumed
        run.finish(score=0.5)
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["settings"]["lr"] == {"value": 1e-6, "reason": "from the paper"}
    assert (record["command"], record["device"], record["data_hash"], record["score"]) == ("train", "cpu", "ab12", 0.5)
    assert record["versions"]["python"] == sys.version.split()[0]
    assert {"lgrpo", "torch", "transformers"} <= set(record["versions"])
    assert record["started"] <= record["finished"]


def test_each_process_of_a_run_says_where_it_worked_and_a_move_is_told(tmp_path):
    with start(tmp_path / "a", device="cuda", dtype="torch.bfloat16"):
        pass
    moves = []
    for device, dtype in (("cuda:1", "torch.bfloat16"), ("cpu", "torch.float32"), ("cpu", "torch.float32")):
        with start(tmp_path / "a", device=device, dtype=dtype) as run:
            moves.append(run.elsewhere)
    assert moves == ["", "cuda:1 in bfloat16", ""]  # the other card of a kind is no move
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert (record["device"], record["dtype"]) == ("cuda", "torch.bfloat16")
    assert [one["device"] for one in record["resumed"]] == ["cuda:1", "cpu", "cpu"]
    assert [one["dtype"] for one in lines(tmp_path / "a/events.jsonl")] == [one["dtype"] for one in record["resumed"]]
    assert _devices(record) == "cuda in bfloat16, then cuda:1 in bfloat16, then cpu in float32"


def test_another_number_of_threads_rounds_in_another_way(tmp_path):
    moves = []
    for threads in ({}, {"threads": 1}, {"threads": 1}, {"threads": 4}):
        with start(tmp_path / "a", device="cpu", dtype="torch.float32", **threads) as run:
            moves.append(run.elsewhere)
    with start(tmp_path / "a", device="cuda", dtype="torch.float32") as run:
        moves.append(run.elsewhere)
    here = "cpu in float32"
    assert moves == ["", "", "", f"{here} with 1 thread", here]
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert _devices(record) == f"{here}, then {here} with 1 thread, then {here} with 4 threads, then cuda in float32"


@pytest.mark.parametrize("known", [None, 7, [], ["x", {}]])
def test_a_record_whose_earlier_processes_are_in_another_form_goes_on(tmp_path, known):
    with start(tmp_path / "a", device="cpu"):
        pass
    path = tmp_path / "a/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resumed": known}))
    with start(tmp_path / "a", device="cuda") as run:
        assert run.elsewhere == "cpu"
        assert run.record["resumed"][-1]["device"] == "cuda"


def test_git_commit_of_the_working_directory_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start(tmp_path / "plain") as run:
        assert run.record["git"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with start(tmp_path / "tracked") as run:
        assert run.record["git"] == commit


def test_same_command_and_identity_goes_on(tmp_path):
    with start(tmp_path / "a", identity={"seed": 3, "levels": (1, 2)}) as run:
        run.log(1, loss=0.5)
        run.finish()
    with start(tmp_path / "a", identity={"seed": 3, "levels": (1, 2)}) as run:
        assert run.resumed
        assert run.finished
        assert len(run.record["resumed"]) == 1
    assert lines(tmp_path / "a/metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_another_run_in_the_folder_is_refused_untouched_and_replaced_only_on_request(tmp_path):
    folder = tmp_path / "a"
    with start(folder, identity={"seed": 3}) as run:
        run.log(1, loss=0.5)
        run.save("step-1", write_model)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with refused(r"command train, now init.*--overwrite"):
        start(folder, "init", identity={"seed": 3})
    with refused(r"seed 3, now 4.*--overwrite"):
        start(folder, identity={"seed": 4})
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with start(folder, "init", overwrite=True) as run:
        assert not run.resumed
        assert run.checkpoints() == []
    assert not (folder / "metrics.jsonl").exists()


def test_overwrite_replaces_another_run_or_a_finished_one_but_a_stopped_one_goes_on(tmp_path):
    """A command with --overwrite that was stopped is given again, by hand or by whatever restarts it."""
    with start(tmp_path / "a", overwrite=True) as run:
        run.log(1, loss=0.5)
        run.save("step-1", write_model)
    with start(tmp_path / "a", overwrite=True) as run:
        assert run.resumed
        assert run.latest().name == "step-1"
        run.finish()
    with start(tmp_path / "a", overwrite=True) as run:
        assert not run.resumed
        assert run.checkpoints() == []


def test_files_that_are_no_run_are_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with refused("thesis.txt"):
            start(tmp_path, overwrite=overwrite)
        with refused("is a file"):
            start(tmp_path / "thesis.txt", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to("models")
    first = {"checkpoint": "models/mine", "data": "gone/rows.jsonl"}
    with start(tmp_path / "a", identity=first):
        pass
    ways = ("models/mine/", "./models/mine", "models//x/../mine", str(tmp_path / "models/mine"), "link/mine")
    for way in ways:
        with start(tmp_path / "a", identity={"checkpoint": way, "data": f"{tmp_path}/gone/rows.jsonl"}) as run:
            assert run.resumed, way
            assert run.record["identity"] == first
    with refused(r"checkpoint models/mine, now models/other"):
        start(tmp_path / "a", identity={**first, "checkpoint": "models/other"})
    with refused(r"checkpoint models/mine, now \x00"):
        start(tmp_path / "a", identity={**first, "checkpoint": "\x00"})
    with start(tmp_path / "b", identity={"recipe": "tiny"}):
        pass
    with refused(r"recipe tiny, now ./tiny"):
        start(tmp_path / "b", identity={"recipe": "./tiny"})


def test_the_same_content_is_the_same_wherever_it_was_moved(tmp_path):
    first = {"checkpoint": "a/model", "checkpoint_hash": "12", "data": "a/rows.jsonl", "data_hash": "34"}
    with start(tmp_path / "a", identity=first):
        pass
    moved = {**first, "checkpoint": "b/model", "data": "/b/rows.jsonl"}
    with start(tmp_path / "a", identity=moved) as run:
        assert run.resumed
    with start(
        tmp_path / "a", identity={**moved, "held_out_hash": "56"}
    ) as run:  # unknown to the version that began it
        assert run.resumed
    with refused("data a/rows.jsonl, now /b/rows.jsonl"):
        start(tmp_path / "a", identity={**moved, "data_hash": "35"})
    with refused("checkpoint_hash 12, now 13"):
        start(tmp_path / "a", identity={**first, "checkpoint_hash": "13"})
    with start(tmp_path / "b", identity={"held_out_hash": "56"}):
        pass
    with refused("held_out_hash 56, now 57"):
        start(tmp_path / "b", identity={"held_out_hash": "57"})


def test_overwrite_does_not_delete_the_checkpoint_it_starts_from(tmp_path):
    with start(tmp_path / "a") as run:
        source = run.save("step-1", write_model)
    with refused("starts from"):
        start(tmp_path / "a", overwrite=True, identity={"checkpoint": str(source)})
    assert (source / "config.json").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with refused(r"cannot write in .*file/a: Not a directory; choose another --out"):
        start(tmp_path / "file" / "a")


def test_damaged_record_is_named(tmp_path):
    with start(tmp_path / "a"):
        pass
    (tmp_path / "a/run.json").write_text('{"command": "tr')
    with refused(r"run\.json is damaged"):
        start(tmp_path / "a")
    with refused("no readable run.json"):
        Run.open(tmp_path / "a")


def test_lock_held_by_another_process_refuses_and_its_death_releases(tmp_path):
    """The holder forks a child that outlives it, as a verifier may: the child must not keep the folder."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom lgrpo.runs import Run\n"
        "run = Run.start(Path(sys.argv[1]), 'train', [])\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        for overwrite in (False, True):
            with refused(rf"a is in use by process {holder.pid} on "):
                start(tmp_path / "a", overwrite=overwrite)
        holder.kill()
        holder.wait()
        with start(tmp_path / "a") as run:
            assert run.resumed
    finally:
        holder.kill()
        os.kill(child, 9)


def test_lock_keeps_out_its_own_process_until_closed(tmp_path):
    with start(tmp_path / "a"), refused("already open in this process"):
        Run.open(tmp_path / "a")
    Run.open(tmp_path / "a").close()


# -- metrics


def test_resumed_metrics_have_no_step_twice_and_no_torn_line(tmp_path):
    with start(tmp_path / "a") as run:
        for step in range(1, 6):
            run.log(step, loss=step / 10)
    path = tmp_path / "a/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    with Run.open(tmp_path / "a") as run:
        assert [entry["step"] for entry in lines(path)] == [1, 2, 3, 4, 5]
        run.rewind(3)
        run.log(4, loss=9.0)
    assert lines(path) == [{"step": s, "loss": loss} for s, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 9.0))]


def test_a_damaged_line_of_the_metrics_costs_no_other(tmp_path):
    with start(tmp_path / "a") as run:
        for step in range(1, 6):
            run.log(step, loss=step / 10)
    path = tmp_path / "a/metrics.jsonl"
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    bad = [b"\x00" * 30 + b"\n", b"\n", b'{"step": "3"}\n', b"[2]\n", second[:9] + b"\n", b'{"step": 2, "x": \xff}\n']
    path.write_bytes(b"".join([bad[0], first, *bad, second, *rest]))
    with Run.open(tmp_path / "a") as run:
        run.rewind(4)
        run.log(5, loss=9.0)
    assert lines(path) == [{"step": s, "loss": loss} for s, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 9.0))]
    assert sorted(item.name for item in (tmp_path / "a").iterdir()) == [
        "events.jsonl",
        "lock",
        "metrics.jsonl",
        "run.json",
    ]


def test_metrics_are_strict_json_and_written_at_once(tmp_path):
    class Scalar:
        def item(self):
            return 2.5

    with start(tmp_path / "a") as run:
        run.log(1, loss=float("nan"), norm=float("inf"), reward=Scalar(), lengths={"latent": 8})
        assert lines(run.folder / "metrics.jsonl") == [
            {"step": 1, "loss": None, "norm": None, "reward": 2.5, "lengths": {"latent": 8}}
        ]
        run.event("oom", micro_batch=4)
        entry = lines(run.folder / "events.jsonl")[0]
    assert (entry["event"], entry["micro_batch"]) == ("oom", 4)


# -- checkpoints


def test_half_written_checkpoint_is_never_visible(tmp_path):
    seen = []

    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        seen.extend(run.checkpoints())
        raise RuntimeError("no more")

    with start(tmp_path / "a") as run:
        with pytest.raises(RuntimeError, match="no more"):
            run.save("step-1", fail)
        assert seen == run.checkpoints() == []
        run.save("step-1", write_model)
        with pytest.raises(RuntimeError):
            run.save("step-1", fail)
        assert (run.latest() / "state/note").read_text() == "whole"
        assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-1"]


def test_process_killed_while_saving_leaves_the_checkpoint_before_it(tmp_path):
    with start(tmp_path / "a") as run:
        run.save("step-1", write_model)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom lgrpo.runs import Run\n"
        "def write(folder):\n    (folder / 'config.json').write_text('{}')\n    os.kill(os.getpid(), 9)\n"
        "Run.open(Path(sys.argv[1])).save('step-2', write)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")]).returncode == -9
    assert (tmp_path / "a/checkpoints/.step-2.new/config.json").exists()
    with Run.open(tmp_path / "a") as run:
        assert [path.name for path in run.checkpoints()] == ["step-1"]
        assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-1"]


def test_a_replacement_cut_between_its_two_renames_brings_the_old_one_back(tmp_path, monkeypatch):
    def second(folder: Path) -> None:
        (folder / "config.json").write_text("second")

    rename, calls = os.rename, []

    def cut(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(*paths)

    with start(tmp_path / "a") as run:
        run.save("step-1.5", write_model)
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", cut)
            with pytest.raises(KeyboardInterrupt):
                run.save("step-1.5", second)
        assert (run.latest() / "config.json").read_text() == "{}"
        # the same, as a power cut leaves it
        checkpoints = run.folder / "checkpoints"
        rename(checkpoints / "step-1.5", checkpoints / ".step-1.5.old")
        (checkpoints / ".step-1.5.new").mkdir()
    with Run.open(tmp_path / "a") as run:
        assert (run.latest() / "config.json").read_text() == "{}"
        run.save("step-1.5", second)
        assert (run.latest() / "config.json").read_text() == "second"
        assert len(list((run.folder / "checkpoints").iterdir())) == 1


def test_latest_and_best_are_by_order_of_saving_and_score_and_survive_pruning(tmp_path):
    with start(tmp_path / "a") as run:
        assert (run.latest(), run.best(), run.best_score()) == (None, None, None)
        saved = [
            ("step-8", 0.8),
            ("step-10", 0.5),
            ("step-9", 0.8),
            ("walk-1", 0.6),
            ("step-100", None),
            ("labels", None),
        ]
        for name, score in saved:
            run.save(name, write_model, score=score)
        assert [path.name for path in run.checkpoints()] == [name for name, _ in saved]
        assert (run.latest().name, run.best().name, run.best_score()) == ("labels", "step-8", 0.8)
        run.prune()
        kept = ["step-8", "step-9", "walk-1", "step-100", "labels"]  # the best, and the newest two of each kind
        assert [path.name for path in run.checkpoints()] == kept
        assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == sorted(kept)


def test_checkpoint_name_cannot_leave_the_run(tmp_path):
    with start(tmp_path / "a") as run:
        for name in ("../evil", "a/b", ".hidden", ""):
            with pytest.raises(ValueError, match="not a name"):
                run.save(name, write_model)
    assert list(tmp_path.glob("**/config.json")) == []


def test_disk_full_while_saving_is_one_clear_line(tmp_path):
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with start(tmp_path / "a") as run, refused("No space left on device; free some space"):
        run.save("step-1", full)


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power")))
    with pytest.raises(OSError, match="power"):
        write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


# -- names on the command line


def test_resolve_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start(Path("runs/tiny-init"), "init") as run:
        with refused("holds no checkpoint yet"):
            _resolve("runs/tiny-init")
        run.save("step-1", write_model)
        run.save("step-2", write_model)
        assert _resolve("runs/tiny-init") == "runs/tiny-init/checkpoints/step-2"
        run.save("step-1", write_model, score=0.5)
        assert _resolve("runs/tiny-init/") == "runs/tiny-init/checkpoints/step-1"
    Path("model").mkdir()
    with refused("neither a run"):
        _resolve("model")
    Path("model/config.json").write_text("{}")
    assert _resolve("model") == "model"
    with refused("is a file"):
        _resolve("model/config.json")
    assert _resolve("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    for wrong in ("runs/tiny-imit", "model/x", "nothing", "", "../a", "a/b/c", "./a", "/a"):
        with refused("there is no"):
            _resolve(wrong)
    with refused(r"did you mean runs/tiny-init\?"):
        _resolve("runs/tiny-imit")


def test_newest_run_is_the_one_that_saved_last(tmp_path):
    assert newest_run(tmp_path / "runs") is None
    for name, command in (("z-init", "init"), ("a-grpo", "train"), ("m", "eval")):
        with start(tmp_path / "runs" / name, command) as run:
            run.save("step-1", write_model)
    with start(tmp_path / "runs" / "empty"):
        pass
    assert newest_run(tmp_path / "runs") == tmp_path / "runs/a-grpo"
    assert newest_run(tmp_path / "runs", commands=("init",)) == tmp_path / "runs/z-init"
    with Run.open(tmp_path / "runs/z-init") as run:
        run.save("step-2", write_model)
    assert newest_run(tmp_path / "runs") == tmp_path / "runs/z-init"


def test_run_folders_are_named_after_the_model_and_stay_under_the_root(tmp_path):
    root = Path("runs")
    assert run_folder(root, "Qwen/Qwen2.5-0.5B-Instruct", "init") == root / "Qwen2.5-0.5B-Instruct-init"
    assert run_folder(root, "runs/tiny-init", "grpo") == root / "tiny-grpo"
    with start(tmp_path / "tiny-init", "init") as run:
        assert run_folder(root, str(run.save("step-7", write_model)), "grpo") == root / "tiny-grpo"
    for name in ("..", "../..", "/", "a/..", "\x1b[31m", "-rf", ".", "x" * 300):
        assert run_folder(root, name, "grpo").parent == root
        assert run_folder(root, name, "grpo").name[0].isalnum()
    assert safe_name("a b\nc/../d") == "a-b-c-..-d"


# -- what a disk does


def write_tensors(folder: Path, value: float = 1.0) -> None:
    tensors = {"a": torch.full((300,), value), "b": torch.arange(4)}
    save_file(tensors, folder / "model.safetensors")
    compare([folder / "model.safetensors"], tensors)
    (folder / "config.json").write_text("{}")


def flip(path: Path, place: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is not what was written"),
    "a cut file": (lambda folder: os.truncate(folder / "model.safetensors", 600), "model.safetensors is not what"),
    "a missing file": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "no record": (lambda folder: (folder / "saved.json").unlink(), "saved.json is missing"),
    "half a record": (lambda folder: os.truncate(folder / "saved.json", 40), "saved.json is not what was written"),
    "another score": (
        lambda folder: (folder / "saved.json").write_text((folder / "saved.json").read_text().replace("0.5", "0.9")),
        "saved.json is not what was written",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, name):
    harm, what = DAMAGES[name]
    with start(tmp_path / "a") as run:
        run.save("step-1", write_tensors, score=0.2)
        run.save("step-2", write_tensors, score=0.5)
    harm(tmp_path / "a/checkpoints/step-2")
    said = []
    assert resolve_checkpoint(str(tmp_path / "a"), said.append) == str(tmp_path / "a/checkpoints/step-1")
    assert len(said) == ("record" not in name)  # a folder without a record was never a checkpoint
    with start(tmp_path / "a") as run:
        assert (run.latest().name, run.best().name) == ("step-1", "step-1")
        assert len(run.damaged) == 1
        assert f"step-2 is damaged ({what}" in run.damaged[0]
        events = lines(run.folder / "events.jsonl")
        assert [event["event"] for event in events] == ["damaged", "resumed"]
        assert events[1]["checkpoint"] == "step-1"
        assert (run.folder / "checkpoints/.step-2.damaged").exists()
        run.save("step-2", write_tensors, score=0.5)
        run.prune()
        assert sorted(os.listdir(run.folder / "checkpoints")) == ["step-1", "step-2"]


def test_a_checkpoint_named_itself_is_refused_where_it_is_damaged(tmp_path):
    with start(tmp_path / "a") as run:
        path = run.save("step-1", write_tensors)
    flip(path / "model.safetensors")
    with refused(r"step-1 is damaged \(model.safetensors is not what was written\); name another checkpoint"):
        _resolve(str(path))
    with refused("name another checkpoint"):
        _resolve(str(tmp_path / "a"))


def test_a_tensor_that_reads_back_as_another_is_noticed_and_the_one_before_stays(tmp_path):
    def wrong(folder: Path) -> None:
        tensors = {"a": torch.zeros(300)}
        save_file(tensors, folder / "model.safetensors")
        flip(folder / "model.safetensors")
        compare([folder / "model.safetensors"], tensors)

    with start(tmp_path / "a") as run:
        run.save("step-1", write_tensors)
        with refused("the tensor a reads back from disk as another than was written; the disk may be failing"):
            run.save("step-1", wrong)
        assert damage(run.latest()) is None


@pytest.mark.parametrize(
    ("file", "memory", "fine"),
    [
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, True),
        ({"a": 1.0, "new": 2.0}, {"a": 1.0, "old": 2.0}, True),  # renamed
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, False),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0}, False),
        ({"a": 1.0, "new": 3.0}, {"a": 1.0, "old": 2.0}, False),
        ({"a": float("nan")}, {"a": float("nan")}, True),
        ({"a": 0.0}, {"a": -0.0}, False),
    ],
)
def test_tensors_are_compared_by_name_or_content_to_the_bit(tmp_path, file, memory, fine):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.full((3,), value) for name, value in file.items()}, path)
    kept = {name: torch.full((3,), value) for name, value in memory.items()}
    if fine:
        compare([path], kept)
        shared = kept["a"]
        compare([path], {**kept, "tied": shared})
    else:
        with pytest.raises(OSError, match="reads back"):
            compare([path], kept)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size by Linux means")
def test_a_disk_that_takes_no_more_is_one_line_and_costs_no_checkpoint(tmp_path):
    """Safetensors has an error of its own for it. The real thing: a file system of a megabyte needs root."""
    code = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\nfrom safetensors.torch import save_file\n"
        "from lgrpo.runs import Run\nrun = Run.start(Path(sys.argv[1]), 'train', [])\n"
        "big = lambda size: lambda folder: save_file({'a': torch.zeros(size)}, folder / 'a.safetensors')\n"
        "run.save('step-1', big(10))\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "run.save('step-2', big(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    message = "File too large; choose another --out"
    assert done.stderr.splitlines()[-1] == f"lgrpo.errors.UserError: cannot write in {tmp_path / 'a'}: {message}"
    assert os.listdir(tmp_path / "a/checkpoints") == ["step-1"]


def test_nothing_is_renamed_before_it_is_on_disk_and_the_name_is_flushed_after(tmp_path, monkeypatch):
    """What a power cut needs: every file, then its folder, then the new name. All calls are the real ones."""
    order = []

    def spy(name, where):
        real = getattr(os, name)

        def call(first, *rest):
            order.append((name, where(first, *rest)))
            return real(first, *rest)

        monkeypatch.setattr(os, name, call)

    spy("fsync", lambda handle: Path(os.readlink(f"/proc/self/fd/{handle}")).name)
    spy("rename", lambda source, target: Path(target).name)
    spy("replace", lambda source, target: Path(target).name)
    with start(tmp_path / "a") as run:
        run.log(1, reward=0.5)
        run.event("oom")
        order.clear()
        run.save("step-1", write_tensors)
    visible = order.index(("rename", "step-1"))
    before, after = order[:visible], order[visible:]
    for name in ("metrics.jsonl", "events.jsonl", "model.safetensors", "config.json", ".step-1.new"):
        assert ("fsync", name) in before, name
    assert before.index(("fsync", ".saved.json.new")) < before.index(("replace", "saved.json"))
    assert before[-1] == ("fsync", ".step-1.new")
    assert after[1:3] == [("fsync", "checkpoints"), ("fsync", "a")]


def test_the_time_of_all_processes_is_counted(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("lgrpo.runs.run.time.monotonic", lambda: clock[0])
    with start(tmp_path / "a") as run:
        clock[0] += 30
        run.save("step-1", write_tensors)
        clock[0] += 1000  # lost: the process was killed
    clock[0] = 7.0
    with start(tmp_path / "a") as run:
        clock[0] += 12
        run.finish()
    assert json.loads((tmp_path / "a/run.json").read_text())["seconds"] == 42.0
