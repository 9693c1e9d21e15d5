"""Damaged files of every kind: each is read to a sound result or refused in one short line, and nothing is written.

In the suite each property takes a few seconds, always with the same examples. To look for more, run this file alone:

    LGRPO_FUZZ_MINUTES=60 python -m pytest tests/test_fuzz.py -s

It then draws new examples until the minutes are over, shared among the properties, and says how many it drew. A failure
prints the smallest example it could find.
"""

import copy
import json
import math
import os
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import test_json_rows
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies

from lgrpo.data import json_text, read_problems, read_to_ask
from lgrpo.data.json_rows import json_rows
from lgrpo.errors import UserError
from lgrpo.evaluate import summarise
from lgrpo.exam.exam import _kept_rate
from lgrpo.exam.samples import KINDS, Outcome, Samples
from lgrpo.history import History
from lgrpo.options import recorded
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem
from lgrpo.report.evaluated import evaluated
from lgrpo.report.page import page
from lgrpo.report.tables import Recorded, _score_row
from lgrpo.runs import checkpoints, guard
from lgrpo.runs.contents import seal
from lgrpo.runs.durable import read_json

MINUTES = float(os.environ.get("LGRPO_FUZZ_MINUTES", "0"))
SLOWEST = 20.0  # seconds an example may take on a busy machine: all of them take milliseconds
LONGEST = 700  # characters of a message, names of files included
DRAWN: Counter[str] = Counter()

draw = strategies
# Values that somebody's JSON may hold where something else is expected.
ODD = draw.sampled_from(
    [None, True, False, 0, -1, 1, 2, 12.0, 0.5, 1e308, math.nan, math.inf, 2**31, 2**63, 2**64, -(2**63), 10**30,
     10**400, "", "x", "\x00", "\x1b[2J", "\ud800", "../x", "x" * 3000, [], [1], [[]], {}, {"a": 1}, {"": []}]
)  # fmt: skip
JSON = draw.recursive(ODD, lambda inner: draw.lists(inner, max_size=3) | draw.dictionaries(draw.text(max_size=5), inner,
                      max_size=3), max_leaves=8)  # fmt: skip
BOMBS = draw.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5_000 + b"}", b"", b"\xff\xfe{}",
                           b'"' + b"x" * 1_000_000, b"null", b"3", b"[]", b"{}", b"\x00" * 1_000])  # fmt: skip


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value may be changed."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from paths_in(inner, (*path, key))


@draw.composite
def changed_json(draw_one: Any, text: bytes) -> bytes:
    """A JSON document with one to three of its values changed, removed, or joined by others."""
    value = json.loads(text)
    for _ in range(draw_one(draw.integers(1, 3))):
        places = list(paths_in(value))
        if not places:
            break
        *way, last = draw_one(draw.sampled_from(places))
        inner = value
        for key in way:
            inner = inner[key]
        if draw_one(draw.integers(0, 3)) == 0:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(draw_one(JSON))  # its parts belong to all examples
    return json.dumps(value).encode("utf-8", "surrogatepass")


@draw.composite
def changed_bytes(draw_one: Any, content: bytes, within: int | None = None) -> bytes:
    """Bits flipped, bytes replaced, inserted or taken out, or the end cut off; in the first `within` bytes."""
    data = bytearray(content)
    for _ in range(draw_one(draw.integers(1, 4))):
        at = draw_one(draw.integers(0, max(0, min(len(data), within or len(data)) - 1)))
        kind = draw_one(draw.integers(0, 4))
        if kind == 0 and data:
            data[at] ^= 1 << draw_one(draw.integers(0, 7))
        elif kind == 1:
            data[at : at + draw_one(draw.integers(1, 9))] = draw_one(draw.binary(max_size=9))
        elif kind == 2:
            data[at:at] = draw_one(draw.binary(max_size=9))
        elif kind == 3:
            del data[at : at + draw_one(draw.integers(1, 200))]
        else:
            del data[at:]
    return bytes(data)


def damaged(content: bytes, is_json: bool = False) -> draw.SearchStrategy[bytes]:
    ways = changed_bytes(content) | BOMBS
    return changed_json(content) | ways if is_json else ways


@draw.composite
def damaged_safetensors(draw_one: Any, content: bytes) -> bytes:
    """Header entries, the header's length, or any byte of it changed."""
    (length,) = struct.unpack("<Q", content[:8])
    kind = draw_one(draw.integers(0, 3))
    if kind == 0:
        return draw_one(changed_bytes(content, 8 + length))
    if kind == 1:
        other = draw_one(draw.sampled_from([0, 1, length - 1, length + 1, len(content), 2**31, 2**63, 2**64 - 1]))
        return struct.pack("<Q", other) + content[8:]
    header = json.loads(content[8 : 8 + length])
    for _ in range(draw_one(draw.integers(1, 2))):
        name = draw_one(draw.sampled_from(sorted(header)))
        entry = header[name]
        if kind == 2 and {"dtype", "shape", "data_offsets"} <= entry.keys():
            field = draw_one(draw.sampled_from(["dtype", "shape", "data_offsets"]))
            kinds = draw.sampled_from(["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", "X"])
            numbers = draw.lists(draw.sampled_from([0, 1, 2, 16, 32, -1, 2**31, 2**62, 2**64]), max_size=4)
            entry[field] = draw_one(JSON | (kinds if field == "dtype" else numbers))
        else:
            header[draw_one(draw.text(max_size=8))] = header.pop(name)
            header = header or {"x": entry}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def refused_or(read: Callable[[], Any]) -> Any:
    """What was read; None where it was refused as a user's mistake is. Anything else that is raised is a failure."""
    began = time.monotonic()
    try:
        return read()
    except UserError as error:
        said = str(error)
        assert said.strip()
        assert "\n" not in said
        assert len(said) < LONGEST, len(said)
        return None
    finally:
        assert time.monotonic() - began < SLOWEST


def hold(name: str, examples: int, strategy: draw.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """`check` passes for `examples` of the strategy, always the same; with LGRPO_FUZZ_MINUTES for as many as fit."""
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    def counted(example: Any) -> None:
        DRAWN[name] += 1
        check(example)

    if not MINUTES:
        settings(max_examples=examples, derandomize=True, phases=[Phase.generate, Phase.shrink], **quiet)(
            given(strategy)(counted)
        )()
        return
    end = time.monotonic() + MINUTES * 60 / PROPERTIES
    while time.monotonic() < end:
        settings(max_examples=300, phases=[Phase.generate, Phase.shrink], **quiet)(given(strategy)(counted))()
    print(f"\n{name}: {DRAWN[name]} examples", flush=True)


ROWS = [
    {"problem": f"What is {i} + 4?", "answer": str(i + 4), "cot": f"{i}+4={i + 4}", "choices": None} for i in range(3)
]
CHAT = {"prompt": [{"role": "user", "content": "2+2?"}], "reward_model": {"ground_truth": "4"}, "extra_info": {"a": 1}}
CHOICE = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in [*ROWS, CHAT, CHOICE])
DATA: dict[str, bytes] = {
    "lines.jsonl": LINES,
    "list.json": json.dumps([*ROWS, CHAT, CHOICE]).encode(),
    "long.json": json.dumps([{**row, "é": "🙂"} for row in ROWS * 9], ensure_ascii=False).encode(),
    "splits.json": json.dumps({"train": ROWS, "test": ROWS}).encode(),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
    "rows.csv": b"problem,answer,cot\n" + b"".join(f'"{i}, 4?",{i},"a ""b"""\n'.encode() for i in range(3)),
    "text.txt": "".join(f"What is {i}?||<<{i}+0={i}>> #### {i}\n" for i in range(3)).encode(),
}


def parquet(folder: Path) -> bytes:
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    written.write_table(arrow.Table.from_pylist(ROWS), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


@pytest.mark.parametrize("name", [*DATA, "rows.parquet"])
def test_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet(tmp_path) if name.endswith(".parquet") else DATA[name]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    path = tmp_path / name
    strategy = damaged(content)
    if name.endswith(".json"):
        strategy |= changed_json(content)
    elif name.endswith(".jsonl"):
        lines = [changed_json(line) for line in content.splitlines()]
        strategy |= draw.tuples(*lines).map(b"\n".join)

    monkeypatch.setattr(json_text, "CHUNK", 50)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        if ".json" in name:
            (rows, why), (all_rows, reason) = (
                test_json_rows.outcome(read)
                for read in (json_rows(path, "train"), test_json_rows.at_once(data, str(path), "train"))
            )
            assert bool(why) == bool(reason)
            assert why or repr(rows) == repr(all_rows)
        for problem in refused_or(lambda: read_problems(path)) or ():
            assert problem.problem.strip()
            assert problem.answer.strip()
            assert problem.cot is None or problem.cot.strip()
            (problem.problem + problem.answer + (problem.cot or "")).encode()  # no tokenizer takes half a character
        for place, problem in refused_or(lambda: list(read_to_ask(str(path)))) or ():
            assert place.startswith(str(path))
            assert problem.problem.strip()
        assert [path] == list(tmp_path.iterdir())

    check(content)
    assert len(read_problems(path)) >= 3
    hold(name, 60, strategy, check)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small latent model."""
    from lgrpo.session import _quieten

    _quieten()
    tokens = models.tokenizer()
    made = models.model("llama", len(tokens), torch.float32, hidden_size=8, intermediate_size=8)
    folder = tmp_path_factory.mktemp("made")
    Policy(made, tokens, Card("latent", "tiny", 4, "arithmetic", {"max_response": 16, "tau": 1.0}), "made").save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "examples"),
    [("config.json", 60), ("generation_config.json", 25), ("tokenizer_config.json", 25), ("tokenizer.json", 40),
     ("lgrpo.json", 60), ("model.safetensors", 60)],
)  # fmt: skip
def test_checkpoint(name: str, examples: int, checkpoint: dict[str, bytes], tmp_path: Path) -> None:
    for file, content in checkpoint.items():
        (tmp_path / file).write_bytes(content)
    before = {path.name for path in tmp_path.iterdir()}
    path = tmp_path / name

    def check(data: bytes) -> None:
        path.write_bytes(data)
        policy = refused_or(lambda: Policy.load(tmp_path))
        if policy is not None:
            rows = policy.embedding.weight.shape[0]
            assert policy.card.mode in ("latent", "explicit")
            assert all(0 <= one < rows for one in [*policy.eos_ids, *policy.end_ids, *policy.begin_ids])
            assert all(bool(parameter.isfinite().all()) for parameter in policy.model.parameters())
            refused_or(lambda: policy.prompt_ids("What is 3 + 4?", latent=True))
        assert {path.name for path in tmp_path.iterdir()} == before

    content = checkpoint[name]
    check(content)
    assert Policy.load(tmp_path).latent
    strategy = damaged_safetensors(content) if name.endswith(".safetensors") else damaged(content, is_json=True)
    hold(name, examples, strategy, check)


RECORD = {
    "command": "train",
    "identity": {"seed": 0, "checkpoint": "latent"},
    "settings": {"steps": {"value": 3, "reason": "you set it"}},
    "options": {"checkpoint": "latent", "seed": 0, "steps": 3, "without": [], "overrides": ["batch=2"], "data": None},
    "finished": None,
    "resumed": [],
}
SAVED = {"sequence": 1, "saved": "2026-01-01T00:00:00.000000+00:00", "score": 0.5}
SAMPLE = {"problem": "?", "reference": "3", "answer": "4", "right": False, "latent_length": 1, "chain": [[["x", 1.0]]]}
SCORE = {
    "event": "held_out", "step": 1, "problems": 2, "pass@1": 0.5, "pass@1_se": 0.1, "pass@1_interval": [0.1, 0.9],
    "latent_length": 3.0, "explicit_length": 2.0, "length": 5.0, "invalid": 0.0, "shares": [0, 1], "samples": [SAMPLE],
}  # fmt: skip
SUMMARY = {"time": "2026-01-02", "results": [{"benchmark": "b", "runs": 1, **SCORE}]}


@pytest.mark.parametrize(
    "name",
    ["run.json", "checkpoints/step-000001/saved.json", "metrics.jsonl", "events.jsonl", "eval/summary-b.json"],
)  # fmt: skip
def test_run(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in ("step-000001", "step-000002"):
        (run / "checkpoints" / step).mkdir(parents=True)
        (run / "checkpoints" / step / "config.json").write_text("{}")
        seal(run / "checkpoints" / step, SAVED)
    (run / "eval").mkdir()
    contents = {
        "run.json": json.dumps(RECORD).encode(),
        "metrics.jsonl": b'{"step": 1, "reward": 0.5}\n',
        "events.jsonl": json.dumps(SCORE).encode() + b"\n",
        "eval/summary-b.json": json.dumps(SUMMARY).encode(),
    }
    for file, content in contents.items():
        (run / file).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    content = (run / name).read_bytes()

    def check(data: bytes) -> None:
        (run / name).write_bytes(data)
        found = refused_or(lambda: checkpoints.resolve_checkpoint(str(run), lambda text: None))
        assert found is None or Path(found).is_dir()
        newest = checkpoints.newest_run(tmp_path)
        assert newest in (None, run)
        for saved in checkpoints.saved_checkpoints(run):
            assert type(saved.sequence) is int
            assert saved.score is None or math.isfinite(saved.score)
        refused_or(lambda: guard.refuse(run, "train", {"seed": 0}, overwrite=False))
        began = refused_or(lambda: recorded(run))
        assert began is None or began.steps is None or began.steps > 0
        history = History.read(run)
        assert all(type(step["step"]) is int for step in history.steps)
        if record := read_json(run / "run.json"):
            assert page(Recorded.read(run, record, history), "").startswith("<!doctype html>")
        assert sorted(tmp_path.rglob("*")) == before

    check(content)
    assert recorded(run) is not None
    assert Path(checkpoints.resolve_checkpoint(str(run), pytest.fail)).is_dir()
    hold(name, 60, damaged(content, is_json=True), check)


PROBLEMS = [Problem("one?", "1"), Problem("two?", "2"), Problem("one?", "1")]
KEPT = "samples.jsonl", "summary-x.json"


def kept_evaluation(path: Path) -> None:
    """All samples of the problems, one right, and what an evaluation writes of them."""
    with Samples(path / KEPT[0], PROBLEMS) as samples:
        for kind in KINDS:
            made = [Outcome(place, run, place == run, True, 8, 5) for place in (0, 1) for run in range(2)]
            samples.add(kind, made, [{"text": "é"} for _ in made])
    entry = summarise(made).as_json("x")
    note = {"results": [entry], "shares": [0.5, 0.5], "time": "2026-01-02", "tokens_per_second": 12.5}
    which = {"model": "tiny", "identity": {"seed": 0, "latent": {"k": 4}}, "data_hash": "abc"}
    (path / KEPT[1]).write_text(json.dumps(note | which))


@pytest.mark.parametrize("name", KEPT)
def test_evaluation(name: str, tmp_path: Path) -> None:
    """Of damaged samples the sound ones count, and the others are made again; a damaged summary is no row."""
    folder = tmp_path / "eval"
    folder.mkdir()
    kept_evaluation(folder)
    content = (folder / name).read_bytes()

    def check(data: bytes) -> None:
        (folder / name).write_bytes(data)
        with Samples(folder / KEPT[0], PROBLEMS) as samples:
            for kind in KINDS:
                there = samples.of(kind, 2)
                assert len(there) + len(samples.missing(kind, 2)) == 2 * len(PROBLEMS)
                score = summarise(there)
                assert all(0 <= share <= 1 for share in score.shares)
                json.dumps(score.as_json("x"), allow_nan=False)
        rate = _kept_rate(folder / KEPT[1])
        assert rate is None or 0 <= rate < math.inf
        rows = [_score_row(*one) for one in evaluated(tmp_path, {"started": "2026-01-01"})]
        assert all(type(cell) is str for row in rows for cell in row)

    check(content)
    with Samples(folder / KEPT[0], PROBLEMS) as samples:
        assert not any(samples.missing(kind, 2) for kind in KINDS)
    assert _kept_rate(folder / KEPT[1]) == 12.5
    assert [name for name, _ in evaluated(tmp_path, {"started": "2026"})] == ["x, 2 runs a problem (tiny)"]
    lines = draw.tuples(*map(changed_json, content.splitlines())).map(lambda changed: b"\n".join(changed) + b"\n")
    hold(name, 80, damaged(content) | (lines if name == KEPT[0] else changed_json(content)), check)


PROPERTIES = len(DATA) + 1 + 6 + 5 + len(KEPT)  # that share LGRPO_FUZZ_MINUTES
