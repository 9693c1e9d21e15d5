"""Memory that must not grow: with the steps of a run, the answers of an evaluation or a file, or with copies of data.

Minutes rather than seconds.
"""

import csv
import gc
import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_train import PROBLEMS, Parity, settings

from lgrpo import session, tiny
from lgrpo.asking import bulk
from lgrpo.asking.ask import Asker, Wish
from lgrpo.data import need_chain, read_problems
from lgrpo.engine import Engine
from lgrpo.exam import score
from lgrpo.exam.samples import Samples
from lgrpo.policy import Policy
from lgrpo.problems import Problem, hold_out
from lgrpo.rollout import Rollout
from lgrpo.runs import Run
from lgrpo.screen import Show
from lgrpo.train import train

pytestmark = pytest.mark.slow
STEPS, WARM, GROWTH = 500, 100, 8 << 20
ROWS = 200_000
SLOTS, ANSWERS = 32, 1_024
TABLE = 0.25  # texts are kept once (`sys.intern`): the table they are found by doubles now and then


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc/self/status, which is not here")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def test_five_hundred_steps_hold_resident_memory_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of the last hundred steps against the least of the second hundred.

    A step's own memory comes and goes, so single readings differ; what has leaked does not go. Between the two lie 300
    steps: a leak of 28 KB a step would be seen, and what one step keeps of its batch is more.
    """
    seen: list[int] = []
    step = Show.step

    def reading(self: Show, number: int, numbers: dict[str, float]) -> None:
        step(self, number, numbers)
        gc.collect()
        seen.append(resident())

    monkeypatch.setattr(Show, "step", reading)
    with Run.start(tmp_path / "run", "train", [], identity={"seed": 0}) as run, Show() as show:
        chosen = settings(steps=STEPS, batch=1, update_batch=1, draws=1, eval_every=50, max_response=8)
        train(Policy.load(tiny.MODEL), PROBLEMS, PROBLEMS[:2], chosen, Parity(), run, show)
    assert len(seen) == STEPS
    print([min(seen[at : at + 100]) >> 20 for at in range(0, STEPS, 100)])
    assert min(seen[-100:]) - min(seen[WARM : WARM + 100]) < GROWTH


class Readings:
    """What is alive after each part of a long work: bytes that Python allocated, and rollouts, which hold tensors."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.bytes: list[int] = []
        self.rollouts = 0  # at most

    def take(self, more: int) -> None:
        gc.collect()
        self.rollouts = max(self.rollouts, sum(type(one) is Rollout for one in gc.get_objects()))
        self.done.append(more + (self.done[-1] if self.done else 0))
        self.bytes.append(tracemalloc.get_traced_memory()[0])

    def growth(self) -> float:
        """Bytes an answer, after the first third: what is made once is there by then."""
        begin = len(self.done) // 3
        print(list(zip(self.done, self.bytes, strict=True))[begin :: len(self.done) // 6], self.rollouts)
        return (self.bytes[-1] - self.bytes[begin]) / (self.done[-1] - self.done[begin])


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Readings]:
    """Few rollouts at a time, so that there are many parts."""
    monkeypatch.chdir(tmp_path)
    started = Engine.__init__

    def few(self: Engine, *arguments: Any, **named: Any) -> None:
        started(self, *arguments, **named)
        self.slots = SLOTS

    monkeypatch.setattr(Engine, "__init__", few)
    tracemalloc.start()
    yield Readings()
    tracemalloc.stop()


def test_an_evaluation_keeps_a_few_numbers_of_each_answer(readings: Readings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which run of which problem it was, right or not, and two lengths: no text and no tensor."""
    add = Samples.add

    def reading(self: Samples, kind: str, outcomes: Sequence[Any], details: Sequence[Any]) -> None:
        add(self, kind, outcomes, details)
        readings.take(len(outcomes))

    monkeypatch.setattr(Samples, "add", reading)
    score.evaluate(score.EvalOptions(checkpoints=["tiny"], data=["arithmetic"], limit=ANSWERS // 8, runs=4, samples=4,
                                     max_response=16, out=Path("out"), device="cpu", as_json=True))  # fmt: skip
    assert readings.done[-1] == ANSWERS
    assert readings.growth() < 400
    assert readings.rollouts <= 4 * SLOTS


def test_the_answers_to_a_file_leave_nothing(readings: Readings, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = bulk._Teller.answer

    def reading(self: bulk._Teller, part: list[Problem]) -> None:
        answer(self, part)
        readings.take(len(part))

    monkeypatch.setattr(bulk._Teller, "answer", reading)
    with Path("rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in itertools.islice(rows(), ANSWERS))
    bulk.answer_file("rows.jsonl", lambda report: Asker("tiny", "cpu", 16, report), Wish(), chain=True)
    assert readings.done[-1] == ANSWERS
    assert readings.growth() < 40
    assert readings.rollouts <= 4 * SLOTS


def rows() -> Iterator[dict[str, str]]:
    for n in range(ROWS):
        text = f"Tom number {n} has {n % 97} boxes with {n % 89} pens each and gives {n % 7} to Ann. How many are left?"
        yield {"problem": text, "answer": str(n), "cot": f"<<{n % 97}*{n % 89}={n % 97 * (n % 89)}>> <<{n}-{n % 7}>>"}


def write_lines(path: Path) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())


def write_list(path: Path) -> None:
    path.write_text(json.dumps(list(rows())))


def write_object(path: Path) -> None:
    path.write_text(json.dumps({"version": 1, "test": [], "train": list(rows())}, indent=1))


def write_columns(path: Path) -> None:
    path.write_text(json.dumps({name: [row[name] for row in rows()] for name in ("problem", "answer", "cot")}))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["problem", "answer", "cot"])
        writer.writeheader()
        writer.writerows(rows())


def write_text(path: Path) -> None:
    with path.open("w") as file:
        file.writelines(f"{row['problem']}||{row['cot']} #### {row['answer']}\n" for row in rows())


def write_parquet(path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(list(rows())), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_lines),
        ("rows.csv", write_csv),
        ("rows.txt", write_text),
        ("rows.parquet", write_parquet),
        ("rows.json", write_list),
        ("object.json", write_object),
        ("columns.json", write_columns),
    ],
)
def test_a_file_is_read_without_a_second_copy(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    """What Python allocates beside the list that is returned, as a share of that list."""
    write(tmp_path / name)
    tracemalloc.start()
    try:
        problems = read_problems(tmp_path / name)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(problems) == ROWS
    assert peak - size < TABLE * size, (peak, size)


def test_a_run_is_prepared_without_a_second_copy_of_its_data() -> None:
    """Checking lengths, holding out and hashing: what each allocates beside the problems, as a share of them."""
    policy = Policy.load(tiny.MODEL)
    tracemalloc.start()
    try:
        problems = [Problem(row["problem"], row["answer"], row["cot"]) for row in rows()]
        size, _ = tracemalloc.get_traced_memory()
        works: dict[str, Callable[[Sequence[Problem]], object]] = {
            "need_chain": need_chain,
            "hold_out": lambda all_of_them: hold_out(all_of_them, 256, 0),
            "data_hash": session.data_hash,
            "fitting": lambda all_of_them: session.fitting(policy, all_of_them[:2000], 512, True),
        }
        for name, work in works.items():
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            work(problems)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 0.5 * size, (name, peak - before, size)
    finally:
        tracemalloc.stop()
