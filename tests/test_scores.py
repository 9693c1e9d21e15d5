"""Score tables: every digit at 80 columns, one row a score where there is room, and no text that is obeyed."""

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len

from lgrpo.screen.scores import markdown, scores

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
NASTY = "\x1b[31mred\x1b[0m \x9b2J [bold]loud[/bold] \u202e gnp \ud800 a|b\r\nc"
ENTRY: dict[str, Any] = {
    "benchmark": "arithmetic",
    "problems": 1000,
    "runs": 5,
    "pass@1": 0.8125,
    "pass@1_se": 0.0123,
    "pass@1_interval": [0.7873, 0.8354],
    "pass@k": {"1": 0.8, 16: 0.95, "8": 0.9},
    "pass@k_interval": {"1": [0.78, 0.82], "8": [0.88, 0.92]},
    "latent_length": 8.84,
    "explicit_length": 5.0,
    "length": 13.84,
    "invalid": 0.004,
    "tokens_per_second": 10234.4,
}
AGAINST: dict[str, Any] = {
    "checkpoint": "runs/a",
    "difference": 0.051,
    "difference_se": 0.005,
    "difference_interval": [0.041, 0.061],
    "won": [{"index": n, "problem": f"Problem {n}? " + "long " * 40, "before": 0.2, "after": 1.0} for n in range(5)],
    "lost": [{"index": 7, "problem": "Seven?", "before": 1.0, "after": 0.4}],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def one(checkpoint: str, *entries: dict[str, Any], **which: Any) -> dict[str, Any]:
    return {"checkpoint": checkpoint, **which, "results": list(entries)}


TWO = [one("runs/a", ENTRY), one("runs/b", ENTRY | {"against": AGAINST})]


def in_a_pipe(results: list[dict[str, Any]]) -> list[str]:
    file = io.StringIO()
    scores(results, file)
    return file.getvalue().splitlines()


def on_terminal(results: list[dict[str, Any]], width: int) -> str:
    file = Terminal()
    scores(results, file, width=width)
    return ESCAPE.sub("", file.getvalue())


def test_in_a_pipe_a_score_is_a_line() -> None:
    none_valid = {"benchmark": "gsm8k", "pass@k": {}, "invalid": 1.0, "tokens_per_second": None}
    assert in_a_pipe([one("a", ENTRY, ENTRY | none_valid)]) == [
        "checkpoint  hash  benchmark   problems  runs  Pass@1 (95 %)         pass@1/8/16, noise  latent  explicit  "
        "length  invalid  tokens/s",
        "a           -     arithmetic  1000      5     0.812 [0.787, 0.835]  0.800/0.900/0.950   8.8     5.0       "
        "13.8    0.4%     10,234",
        "a           -     gsm8k       1000      5     0.812 [0.787, 0.835]  -/-/-               -       -         "
        "-       100.0%   -",
    ]


def test_in_a_pipe_a_comparison_is_a_line_and_the_first_problems_that_flipped_follow() -> None:
    lines = in_a_pipe(TWO)[3:]
    assert lines[:3] == [
        "against runs/a, problem by problem",
        "checkpoint  benchmark   difference (95 %)                won  lost",
        "runs/b      arithmetic  +0.051 [+0.041, +0.061]  better  5    1",
    ]
    assert [line[:35] for line in lines[3:6]] == [f"right now 0.20 -> 1.00  Problem {n}? " for n in range(3)]
    assert all(len(line) == 100 for line in lines[3:6])
    assert lines[6:] == ["right now: 2 more, all of them with --json", "wrong now 1.00 -> 0.40  Seven?"]


@pytest.mark.parametrize(("interval", "verdict"), [([-0.02, -0.01], "worse"), ([-0.01, 0.02], "undecided")])
def test_a_difference_is_only_called_one_where_the_interval_says_so(interval: list[float], verdict: str) -> None:
    changed = [one("a", ENTRY), one("b", ENTRY | {"against": AGAINST | {"difference_interval": interval}})]
    assert verdict in in_a_pipe(changed)[5].split()


def test_at_80_columns_numbers_stand_upright_with_every_digit() -> None:
    shown = on_terminal([one(f"runs/{letter * 30}", ENTRY | {"against": AGAINST}) for letter in "abc"], 80)
    assert max(map(cell_len, shown.split("\n"))) <= 80
    assert shown.count("0.812 [0.787, 0.835]") == 3
    assert shown.count("0.900 [0.880, 0.920]") == 3
    assert shown.count("+0.051 [+0.041, +0.061]") == 3
    assert shown.count("10,234") == 3
    assert "runs/" + "a" * 15 in shown  # folded, not cut


def test_at_200_columns_a_score_is_a_row() -> None:
    shown = on_terminal(TWO, 200)
    assert max(map(cell_len, shown.split("\n"))) <= 200
    assert shown.count("Pass@1 (95 %)") == 1
    assert len(re.findall(r"0.812 \[0.787, 0.835\] +0.800/0.900/0.950 +8.8", shown)) == 2


def test_markdown_is_tables_and_names_do_not_break_them() -> None:
    lines = markdown([one("a|b", ENTRY), one("runs/b", ENTRY | {"against": AGAINST})]).split("\n")
    assert lines[0].startswith(
        "| checkpoint | hash | benchmark | problems | runs | Pass@1 (95 %) | pass@1/8/16, noise |"
    )
    assert lines[1] == "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    assert lines[2].startswith("| a\\|b | - | arithmetic | 1000 | 5 | 0.812 [0.787, 0.835] |")
    assert lines[4:] == [
        "",
        "| against a\\|b | benchmark | difference (95 %) |  | won | lost |",
        "|---|---|---:|---:|---:|---:|",
        "| runs/b | arithmetic | +0.051 [+0.041, +0.061] | better | 5 | 1 |",
    ]
    assert all(line.count("|") - line.count("\\|") == lines[0].count("|") for line in lines[:4])


STEPS = [
    one("runs/a", ENTRY, model="runs/a/checkpoints/step-000100", model_hash="0123456789ab"),
    one("runs/b", ENTRY | {"against": AGAINST}, model="runs/b/checkpoints/walk-000007", model_hash="ba9876543210"),
    one("runs/b/checkpoints/step-000003", ENTRY, model="runs/b/checkpoints/step-000003", model_hash="c0ffeec0ffee"),
    one("owner/name", ENTRY, model="owner/name", model_hash="89abcdef01234567"),
]


def test_of_a_run_the_step_is_named_and_of_each_checkpoint_the_hash() -> None:
    lines = in_a_pipe(STEPS)
    named = [re.split("  +", line)[:2] for line in lines[1:5]]
    assert named == [["runs/a (step 100)", "01234567"], ["runs/b (walk 7)", "ba987654"],
                     ["runs/b/checkpoints/step-000003", "c0ffeec0"], ["owner/name", "89abcdef"]]  # fmt: skip
    assert lines[5] == "against runs/a (step 100), problem by problem"
    pasted = markdown(STEPS)
    assert "| runs/b (walk 7) | ba987654 | arithmetic | 1000 |" in pasted
    assert "| against runs/a (step 100) |" in pasted
    upright = on_terminal(STEPS[:2], 80)
    assert "runs/a (step 100)" in upright
    assert re.search("hash +01234567 +ba987654", upright)


def test_answers_that_could_not_be_checked_are_said_in_words() -> None:
    results = [one("runs/a", ENTRY | {"unchecked": 3}, ENTRY | {"unchecked": 0})]
    said = "runs/a on arithmetic: 3 answers could not be checked, and count as wrong"
    assert in_a_pipe(results)[3:] == [said]
    assert on_terminal(results, 80).count(said) == 1
    assert markdown(results).split("\n\n")[1:] == [said]


@pytest.mark.parametrize("width", [80, 200])
def test_no_text_is_obeyed(width: int) -> None:
    flipped = AGAINST | {"checkpoint": NASTY, "won": [{"index": 0, "problem": NASTY, "before": 0.0, "after": 1.0}]}
    results = [one(NASTY, ENTRY | {"benchmark": NASTY}), one(NASTY, ENTRY | {"benchmark": NASTY, "against": flipped})]
    for text in ("\n".join(in_a_pipe(results)), on_terminal(results, width), markdown(results)):
        assert not CONTROL.search(text.replace("\r", ""))
        assert "[bold]loud[/bold]" in text
