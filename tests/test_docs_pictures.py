"""The docs' pictures: computed by the code's own functions, the same each time, fetching nothing."""

import importlib.util
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
FETCHES = re.compile(r"""@font-face|@import|<script|url\(\s*["']?(?!#)|href\s*=\s*["'](?!#)|<image|<foreignObject""")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_picture_of_the_docs_fetches_nothing_and_is_whole() -> None:
    pictures = sorted(DOCS.rglob("*.svg"))
    assert pictures
    for path in pictures:
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert not FETCHES.search(text), path


def test_every_picture_a_page_shows_is_there() -> None:
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img[^>]*src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            name = "".join(target)
            assert name.startswith("http") or (page.parent / name).is_file(), (page.name, name)


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return script("make_pictures")


def test_the_noise_that_is_drawn_is_a_latent_steps(pictures: ModuleType) -> None:
    pictures.DRAWS = 1 << 16
    two, one = pictures.noise_of(False), pictures.noise_of(True)
    assert (float(two.min()), float(two.max())) == (-1.5, 3.0)
    assert torch.equal(one, two + 1.5)
    # A standard Gumbel is below -1.5 with probability exp(-exp(1.5)), above 3 with 1 - exp(-exp(-3)).
    assert float((two == -1.5).double().mean()) == pytest.approx(0.01131, abs=0.002)
    assert float((two == 3.0).double().mean()) == pytest.approx(0.04857, abs=0.004)


def test_the_slope_that_is_drawn_is_the_surrogates(pictures: ModuleType) -> None:
    margin = torch.tensor([-1.5, 0.0, 4.5], dtype=torch.float64)
    assert pictures.slope(margin).tolist() == pytest.approx([-3.4816890703, 0.0, 0.9888910035])


def test_figures_are_the_same_each_time_and_take_any_word(pictures: ModuleType, tmp_path: Path) -> None:
    likely = [("$x_{", 0.5), ("b", 0.3), ("c", 0.1), ("d", 0.05), ("", 0.03), ("f", 0.02)]
    steps = [pictures.Step(likely, likely[:3]), pictures.Step(likely, likely[1:4])]
    chain = pictures.Chain(steps, "\\boxed{c}")
    written = []
    for name in ("first", "again"):
        pictures.PICTURES = tmp_path / name
        with matplotlib.rc_context(pictures.LOOK):
            pictures.write(pictures.superposition_figure(chain), "chain.svg")
        written.append((tmp_path / name / "chain.svg").read_bytes())
    assert written[0] == written[1]


@pytest.fixture
def screens(tmp_path: Path) -> ModuleType:
    module = script("make_screens")
    module.PICTURES = tmp_path / "pictures"
    module.PICTURES.mkdir()
    return module


def words_of(path: Path) -> str:
    """The text of a screenshot."""
    text = path.read_text(encoding="utf-8")
    assert not FETCHES.search(text)
    return " ".join(" ".join(ElementTree.fromstring(text).itertext()).replace("\xa0", " ").split())


def a_run(folder: Path) -> Path:
    """Records of a run of 9 of 12 steps, scored at 0 and 4, ten seconds a step and a minute between the scores."""
    folder.mkdir()
    steps = [
        {"step": n, "reward": 0.5 + n / 100, "signal": 0.4, "groups": 4, "latent": 9.0, "explicit": 5.0, "moved": 1.0,
         "rollout_s": 6.0, "verify_s": 1.0, "update_s": 3.0, "part": "not a number"}
        for n in range(1, 10)
    ]  # fmt: skip
    sample = {"problem": "two and two", "reference": "4", "chain": [[["+", 0.6], ["2", 0.3], ["9", 0.1]], [["4", 1.0]]],
              "latent_length": 2, "answer": "\\boxed{4}", "right": True}  # fmt: skip
    events = [
        {"time": f"2026-01-01T00:0{minute}:00+00:00", "event": "held_out", "step": step, "pass@1": 0.5 + step / 10,
         "pass@1_se": 0.01, "latent_length": 9.0, "explicit_length": 5.0, "invalid": 0.0, "samples": [sample]}
        for minute, step in ((0, 0), (1, 4))
    ]  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"command": "train", "settings": {"steps": {"value": 12}}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    return folder


def test_the_dashboard_is_the_runs_own_after_a_step(screens: ModuleType, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    screens.dashboard(run, 6)
    path = screens.PICTURES / "dashboard.svg"
    text = words_of(path)
    for told in ("6/12", "1:20 gone", "reward 0.560", "held-out Pass@1 0.900", "two and two", "+ 2 | 4", "\\boxed{4}"):
        assert told in text
    assert "not a number" not in text
    first = path.read_bytes()
    screens.dashboard(run, 6)
    assert path.read_bytes() == first
    screens.dashboard(run, None)
    assert path.read_bytes() == first  # 6 is two thirds of 9


def test_a_command_is_run_in_a_terminal_of_its_own(screens: ModuleType) -> None:
    program = "import os, sys; print(sys.stdout.isatty(), sys.stderr.isatty(), *os.get_terminal_size()); sys.exit(CODE)"
    written = screens.in_terminal([sys.executable, "-c", program.replace("CODE", "0")])
    assert written == "True True 100 32\n"
    with pytest.raises(SystemExit, match="True True"):
        screens.in_terminal([sys.executable, "-c", program.replace("CODE", "3")])


def test_a_screenshot_keeps_colours_and_obeys_nothing_else(screens: ModuleType) -> None:
    screens.screenshot("\n\x1b[2K\x1b[1A\n\x1b[35mmagenta\x1b[0m <b>&amp;\n", "a <title>", "shot.svg")
    text = (screens.PICTURES / "shot.svg").read_text(encoding="utf-8")
    assert "magenta" in text
    assert "#e085d0" in text
    assert "<b>" not in text
    assert "<b>&amp;" in words_of(screens.PICTURES / "shot.svg")
    assert "\x1b" not in text


def test_a_report_needs_a_browser_and_says_so(
    screens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    screens.report(a_run(tmp_path / "run"))
    assert said.getvalue() == "report.png is left out: it needs chromium\n"
    assert not list(screens.PICTURES.iterdir())
