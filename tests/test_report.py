"""A report of a run, from its folder alone: whole, self-contained, and deaf to what models and data say."""

import io
import json
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lgrpo import session
from lgrpo.cli import main
from lgrpo.errors import UserError
from lgrpo.history import History
from lgrpo.report import CURVES, PAGE, pictures, write_report
from lgrpo.report.tables import Recorded
from lgrpo.runs import Run
from lgrpo.screen import Show
from lgrpo.watch import Watch

BROWSER = shutil.which("chromium")
EVIL = "<script>alert(1)</script> \x1b[2J <img src=x onerror=alert(1)> &amp; \u202e"


def record(**changes: Any) -> dict[str, Any]:
    whole = {
        "command": "train",
        "argv": ["/somewhere/lgrpo", "train", "runs/base-init"],
        "identity": {"checkpoint": "runs/base-init", "data": EVIL, "seed": 3},
        "settings": {"steps": {"value": 40, "reason": "you set it"}, "lr": {"value": 5e-5, "reason": EVIL}},
        "started": "2026-11-27T05:00:00+00:00",
        "finished": "2026-11-27T05:30:30+00:00",
        "versions": {"lgrpo": "0.1.0", "torch": "2.13.0"},
        "resumed": [],
    }
    return {**whole, **changes}


def sample(answer: str, right: bool) -> dict[str, Any]:
    chain = [[["3", 0.75], ["<<", 0.25]], [[EVIL, 1.0]]]
    facts = {"problem": f"How many? {EVIL}", "reference": "29", "chain": chain, "latent_length": 5}
    return {**facts, "answer": answer, "right": right}


def scored(step: int, right: list[int]) -> dict[str, Any]:
    rate = sum(right) / len(right)
    lengths = {"latent_length": 9.0, "explicit_length": 5.0, "length": 14.0, "invalid": 0.0}
    facts = {"event": "held_out", "step": step, "problems": len(right), "pass@1": rate, "pass@1_se": 0.05, **lengths}
    return {**facts, "shares": right, "samples": [sample(f"\\boxed{{{step}}}", bool(step))]}


def run(folder: Path, steps: int = 40, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record(**changes)))
    numbers = {"reward": 0.5, "signal": 0.4, "latent": 9.0, "explicit": 5.0, "invalid": 0.0, "clip_fraction": 0.1}
    times = {"rollout_s": 1.0, "verify_s": 0.5, "update_s": 2.5, "memory_used": 2e9, "grad_norm": 1.0}
    lines = [json.dumps({"step": n + 1, **numbers, **times}) for n in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    events = [scored(0, [0] * 50 + [1] * 50), scored(40, [0] * 30 + [1] * 70)]
    events.append({"event": "health", "step": 7, "what": EVIL, "helps": "this", "time": "2026-11-27T05:10:00+00:00"})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = run(tmp_path_factory.mktemp("report") / "base-grpo")
    return Page(write_report(folder).read_text())


def test_nothing_of_model_or_data_is_obeyed(page: Page) -> None:
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text  # it is there, as text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_nothing_is_fetched(page: Page) -> None:
    links = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert [link for link in links if not link.startswith("#")] == []  # the picture's own glyphs and clips
    policy = [value or "" for name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policy)


def test_result_with_its_paired_interval_by_hand(page: Page) -> None:
    # 20 of 100 won, none lost; two problems added, half of each won and half lost: 20/102 +- 1.96 sqrt(v/102),
    # v = 21/102 - (20/102)^2
    assert (
        "0.500 → 0.700 (step 40): +0.200, 95 % +0.117 to +0.275, paired by problem; 20 problems won, 0 lost"
        in page.text
    )


def test_time_and_memory_by_hand(page: Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "rollout 40 s 25% verify 20 s 12% update 1:40 62% steps together 2:40" in text
    assert "pauses included 30:30" in text
    assert "memory used at most 2.0 GB" in text


def test_samples_plan_and_record_are_there(page: Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "first score 3 0.75 << 0.25" in text
    assert "and 3 more latent steps" in text
    assert text.index("wrong \\boxed{0}") < text.index("best score") < text.index("right \\boxed{40}")
    assert "lr 5e-05" in text
    assert "lgrpo train runs/base-init" in text
    assert "Usually helps: this." in text


@pytest.mark.draws
def test_curves_are_a_picture(tmp_path: Path) -> None:
    folder = run(tmp_path / "base-grpo")
    write_report(folder)
    png = (folder / CURVES).read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 800
    assert height > 300
    assert pictures.svg(History.read(folder)) == pictures.svg(History.read(folder))


@pytest.mark.parametrize("missing", ["metrics.jsonl", "events.jsonl", "both"])
def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path, missing: str) -> None:
    folder = run(tmp_path / "young", finished=None)
    for name in ("metrics.jsonl", "events.jsonl"):
        if missing in (name, "both"):
            (folder / name).unlink()
    text = Page(write_report(folder).read_text()).text
    assert "not finished" in text
    assert not list(folder.glob(".*.new"))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def evaluated(folder: Path, rate: float, hour: int, step: int = 100, runs: int = 5, **decided: Any) -> None:
    """One more summary, as `eval` of a checkpoint of the run leaves it."""
    entry = {"benchmark": "gsm8k", "problems": 1319, "runs": runs, "pass@1": rate, "pass@1_se": 0.01}
    lengths = {"latent_length": 20.0, "explicit_length": 6.0, "length": 26.0, "invalid": 0.01}
    identity = {"model": f"hash of {step}", "seed": 0, "latent": {"k": 10}, "data": "gsm8k"}
    summary = {
        "checkpoint": "runs/base-grpo",
        "model": f"runs/base-grpo/checkpoints/step-{step:06d}",
        "identity": {name: decided.get(name, value) for name, value in identity.items()},
        "data_hash": decided.get("data_hash", "abc"),
        "run_id": decided.get("run_id"),
        "time": f"2026-11-27T{hour:02d}:00:00+00:00",
        "results": [{**entry, **lengths}],
    }
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"summary-{len(list(folder.glob('eval/*')))}.json").write_text(json.dumps(summary))


def scores_of(folder: Path, **record: str) -> list[tuple[str, str]]:
    """Name and Pass@1 of the rows that `eval` left."""
    rows = Recorded.read(folder, {"started": "2026-11-27T05:00:00+00:00", **record}, History.read(folder)).scores
    return [(row[0], row[2]) for row in rows if row[0].startswith("gsm8k")]


def test_the_newest_evaluations_stand_beside_the_held_out_scores(tmp_path: Path) -> None:
    folder = run(tmp_path / "base-grpo")
    evaluated(folder, 0.42, hour=7)
    evaluated(folder, 0.41, hour=6)
    evaluated(folder, 0.4, hour=4, runs=1)  # from before this run: of one that was replaced
    (folder / "eval" / "summary-torn.json").write_text('{"pass@1": ')
    text = re.sub(r"\s+", " ", Page(write_report(folder).read_text()).text)
    assert "gsm8k, 5 runs a problem (step 100) 1319 0.420 0.400 to 0.440 20.0 6.0 26.0 1.0%" in text
    assert scores_of(folder) == [("gsm8k, 5 runs a problem (step 100)", "0.420")]


def test_a_score_belongs_to_its_run_whatever_the_clock_says(tmp_path: Path) -> None:
    folder = run(tmp_path / "base-grpo")
    evaluated(folder, 0.42, hour=3, run_id="ours")  # the clock was set back
    evaluated(folder, 0.41, hour=9, step=40, run_id="of the run that was there before")
    evaluated(folder, 0.39, hour=8, step=60)  # by an earlier version
    assert scores_of(folder, id="ours") == [
        ("gsm8k, 5 runs a problem (step 100)", "0.420"),
        ("gsm8k, 5 runs a problem (step 60)", "0.390"),
    ]


def test_no_checkpoints_score_is_shown_as_anothers(tmp_path: Path) -> None:
    """By model, settings, seed and data; the row says which checkpoint it is, and in what else it differs."""
    folder = run(tmp_path / "base-grpo")
    evaluated(folder, 0.42, hour=6, step=100)
    evaluated(folder, 0.39, hour=7, step=40)
    assert scores_of(folder) == [
        ("gsm8k, 5 runs a problem (step 100)", "0.420"),
        ("gsm8k, 5 runs a problem (step 40)", "0.390"),
    ]
    evaluated(folder, 0.43, hour=8, seed=1)
    evaluated(folder, 0.44, hour=9, data_hash="def", latent={"k": 4})
    evaluated(folder, 0.45, hour=10, model="another folder of this name")
    alike = "gsm8k, 5 runs a problem (step 100), model {}, seed {}, k {}, hash of the data {}"
    assert scores_of(folder)[:4] == [
        (alike.format("hash of 100", 0, 10, "abc"), "0.420"),
        (alike.format("hash of 100", 1, 10, "abc"), "0.430"),
        (alike.format("hash of 100", 0, 4, "def"), "0.440"),
        (alike.format("another folder of this name", 0, 10, "abc"), "0.450"),
    ]


def test_samples_of_another_model_in_the_folder_are_named_as_its(tmp_path: Path) -> None:
    folder = run(tmp_path / "base-grpo")
    evaluated(folder, 0.42, hour=6)
    path = next(folder.glob("eval/*"))
    other = "runs/other/checkpoints/step-000100"
    path.write_text(path.read_text().replace("runs/base-grpo/checkpoints/step-000100", other))
    assert scores_of(folder) == [(f"gsm8k, 5 runs a problem ({other})", "0.420")]


def test_the_page_is_named_as_it_is_written(tmp_path: Path) -> None:
    folder = run(tmp_path / "base-grpo")
    assert write_report(folder) == folder / PAGE


def test_eval_writes_a_report_from_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "base-grpo")
    monkeypatch.setattr(session, "pick_device", lambda asked: pytest.fail("nothing is to be scored"))
    done = CliRunner().invoke(main, ["eval", str(folder), "--report"])
    assert (done.exit_code, done.stdout) == (0, f"report: {folder / PAGE}\n")
    assert (folder / PAGE).exists()
    refused = CliRunner().invoke(main, ["eval", str(tmp_path), "--report"])
    assert refused.exit_code == 2
    assert "only runs have a report" in refused.stderr


def test_whatever_goes_wrong_in_drawing_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(history: History) -> bytes:
        raise ValueError("no such backend")

    monkeypatch.setattr(pictures, "png", broken)
    out = io.StringIO()
    with Run.start(tmp_path / "mine", "train", []) as mine, Show(out) as show:
        mine.event("held_out", **{name: value for name, value in scored(0, [0, 1]).items() if name != "event"})
        Watch(mine, show).report()
    assert "the report could not be written (ValueError: no such backend); the run goes on" in out.getvalue()


@pytest.mark.draws
@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_report_opens_in_a_browser(tmp_path: Path) -> None:
    """Chromium lays it out without a network: whole, and with nothing run."""
    page = write_report(run(tmp_path / "base-grpo"))
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [str(BROWSER), "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path / 'user'}"]
    shot = tmp_path / "page.png"
    subprocess.run(
        [*command, f"--screenshot={shot}", "--window-size=1000,3000", page.as_uri()], check=True, timeout=120
    )
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    dump = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    opened = Page(dump.stdout)
    assert "script" not in opened.tags
    assert opened.tags.count("svg") == 1
    assert "20 problems won, 0 lost" in opened.text


def test_a_report_is_written_of_whatever_stands_in_the_files(tmp_path: Path) -> None:
    odd: list[Any] = [None, 7, "x", [3], {"a": [1]}, 10**400, float("nan")]
    for number, one in enumerate(odd):
        run = tmp_path / str(number)
        (run / "eval").mkdir(parents=True)
        names = ("argv", "identity", "settings", "versions", "resumed", "started", "finished", "git", "platform")
        (run / "run.json").write_text(json.dumps({"command": "train", **dict.fromkeys(names, one)}))
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward": one, "rollout_s": one}) + "\n")
        events = [
            {"event": one, "step": one, "time": one},
            {**scored(1, [0, 1]), "pass@1": one},
            {**scored(1, [0, 1]), "shares": one, "samples": one},
        ]
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        results = [
            one,
            {**scored(1, [0, 1]), "pass@1": one},
            {**scored(1, [0, 1]), "problems": one, "runs": one, "invalid": one},
        ]
        for count, summary in enumerate(({"results": one}, {"results": results, "time": "2026"})):
            (run / "eval" / f"summary-{count}.json").write_text(json.dumps(summary))
        assert "Held-out Pass@1 0.500" in write_report(run).read_text()
