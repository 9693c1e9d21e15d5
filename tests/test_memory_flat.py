"""Memory that must not grow: with the steps of a run, or with copies of the data. Minutes rather than seconds."""

import csv
import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from test_train import PROBLEMS, Parity, settings

from lgrpo import session, tiny
from lgrpo.data import need_chain, read_problems
from lgrpo.policy import Policy
from lgrpo.problems import Problem, hold_out
from lgrpo.runs import Run
from lgrpo.screen import Show
from lgrpo.train import train

pytestmark = pytest.mark.slow
STEPS, WARM, GROWTH = 500, 100, 8 << 20
ROWS = 200_000
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
