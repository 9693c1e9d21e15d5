"""Names of files and folders that are long, not ASCII, or not even UTF-8."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_bad_input import refused
from test_cli import _small, done, latent, policy, record_of, steps_of  # noqa: F401 - fixtures among them

from lgrpo.cli import main
from lgrpo.data.fields import CHAIN
from lgrpo.history import read_lines
from lgrpo.runs import Run
from lgrpo.runs.checkpoints import safe_name
from lgrpo.runs.durable import from_json, is_utf8, read_json, to_json, write_json

NOT_UTF8 = os.fsdecode(b"d\xff")
LONG = "数据" * 40
SHORTLY = ["--limit", "2", "--runs", "1", "--samples", "0", "--max-response", "4"]


def problems(stem: str) -> str:
    path = Path(f"{stem}.jsonl")
    rows = [{"problem": f"What is {n} + 4?", "answer": str(n + 4), CHAIN[0]: f"{n}+4={n + 4}"} for n in range(40)]
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes no such name")
    return str(path)


def test_what_is_recorded_of_a_name_is_utf8_and_the_same_name_again(tmp_path: Path) -> None:
    for name in (NOT_UTF8, LONG, "d\ud800x", "\\udcff"):
        text = to_json({"data": name})
        assert from_json(text) == from_json(text.encode("utf-8")) == {"data": name}
        write_json(tmp_path / "run.json", {"data": name})
        assert read_json(tmp_path / "run.json") == {"data": name}
    assert LONG in to_json({"data": LONG})
    with Run.start(tmp_path / "run", "train", [("data", NOT_UTF8, "you set it")], identity={"data": NOT_UTF8}) as run:
        run.event("damaged", checkpoint=NOT_UTF8)
        run.log(1, name=NOT_UTF8)
    assert list(read_lines(run.folder / "metrics.jsonl")) == [{"step": 1, "name": NOT_UTF8}]
    with Run.start(tmp_path / "run", "train", [], identity={"data": NOT_UTF8}) as run:
        assert run.resumed


def test_a_run_on_data_whose_name_is_not_utf8_goes_on_and_is_reported_and_scored(latent: str) -> None:  # noqa: F811
    data = problems(NOT_UTF8)
    done("train", latent, "--data", data, "--out", "run", "--steps", "1")
    assert record_of("run")["identity"]["data"] == data
    done("train", latent, "--data", data, "--out", "run", "--steps", "2")
    done("train", "run", "--steps", "3")
    assert steps_of("run") == [1, 2, 3]
    done("eval", "run", "--data", data, "--report", *SHORTLY)
    assert Path("run/report.html").read_text(encoding="utf-8").count("d\N{REPLACEMENT CHARACTER}") >= 2
    scored = json.loads(done("eval", "run", "--data", data, "--json", *SHORTLY).stdout)
    assert scored["results"][0]["benchmark"] == NOT_UTF8


@pytest.mark.parametrize("form", [[], ["--markdown"]])
def test_a_stdout_that_is_only_ascii_gets_the_score_of_any_name(form: list[str], latent: str) -> None:  # noqa: F811
    asked = ["eval", latent, "--data", problems("数据"), *SHORTLY, *form]
    scored = CliRunner(charset="ascii").invoke(main, asked)
    assert scored.exit_code == 0, scored.output
    assert r"\u6570\u636e" in scored.stdout


def test_data_with_a_long_name_is_scored(latent: str) -> None:  # noqa: F811
    asked = ["eval", latent, "--data", problems(LONG), "--out", "scores", *SHORTLY]
    done(*asked)
    written = [path.name for path in Path("scores").iterdir()]
    assert len(written) == 2
    assert all("数据数据" in name for name in written)


def test_a_name_is_cut_between_letters_and_leaves_room_for_what_is_added() -> None:
    for name, cut in (
        ("x" * 300, "x" * 100),
        ("é" * 300, "é" * 50),
        ("x" + "é" * 300, "x" + "é" * 49),
        (LONG, LONG[:33]),
    ):
        assert safe_name(name) == safe_name(safe_name(name)) == cut
    assert safe_name(NOT_UTF8) == "d"


def test_folders_of_tensors_that_are_not_utf8_are_refused_and_say_what_helps(latent: str) -> None:  # noqa: F811
    data = problems("data")
    for command in (["init"], ["train", latent]):
        refused(
            [*command, "--out", NOT_UTF8, "--data", data, "--device", "cpu"],
            "d\N{REPLACEMENT CHARACTER}: the name, or the locale, is not UTF-8; choose another --out",
        )
    problems(NOT_UTF8)  # or a skip
    Path(latent).rename(NOT_UTF8)
    for command in (["train"], ["init"], ["eval"], ["sample", "3 + 4", "--model"]):
        refused(
            [*command, NOT_UTF8],
            "the name, or the locale, is not UTF-8, by which models are read; rename the folder, or set LC_ALL=C.UTF-8",
        )


def test_a_path_that_another_encoding_would_read_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_utf8(Path("数据/运行-1"))
    assert not is_utf8(Path(f"runs/{NOT_UTF8}"))
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("latin-1"))
    assert not is_utf8(Path("donn\u00e9es"))  # one byte of the file's name
    assert not is_utf8(Path("数据"))  # none at all
