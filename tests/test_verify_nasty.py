"""Answers and references that try to break the verifier: none raises, none hangs, none touches another's score."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgrpo.verify import Verifier, boxed
from lgrpo.verify.verifier import _checker

ENDLESS = {  # each keeps computer algebra busy beyond any patience, every one in its own way
    "tower": "9^{9^{9^9}}",
    "factorials": "10!!!!",
    "sum": r"\sum_{n=1}^{10^{10}} n^{n}",
    "memory": "2^{2^{40}}",
    "braces": "{" * 900 + "5" + "}" * 900,
}
CODE = "__import__('os').system('touch {}')"
NASTY = {
    "empty": "",
    "spaces": " " * 1_999,
    "long": "x" * 5_000_000,
    "many digits": "1" * 1_999,
    "more digits than Python reads": "7" * 6_000,
    "exponent": "1e999999999",
    "small exponent": "1e-999",
    "division by nothing": "1/0",
    "not a number": "nan",
    "infinity": r"-\infty",
    "code": CODE,
    "code in text": rf"\text{{{CODE}}}",
    "code as an operator": rf"\operatorname{{{CODE}}}",
    "code in a subscript": rf"x_{{{CODE}}}",
    "attribute": "x.__class__.__bases__",
    "lambda": "(lambda: [f() for f in [exit]])()",
    "exec": r"\text{exec}",
    "open": r"\mathrm{open}('{}','w')",
    "file": r"\input{/etc/passwd}\write18{touch {}}",
    "a million braces": "{" * 1_000_000,
    "fractions in fractions": r"\frac{" * 100 + "1" + "}{2}" * 100,
    "a thousand roots": r"\sqrt{" * 1_000 + "5" + "}" * 1_000,
    "cut off": r"\frac{1}{",
    "only operators": r"\cdot" * 300,
    "only bars": "=" * 1_900,
    "row breaks": "\\\\" * 900,
    "columns": "&" * 1_900,
    "signs": "-" * 500 + "3",
    "matrix": r"\begin{pmatrix}" + "&".join(["1"] * 90) + r"\end{pmatrix}",
    "commas": "," * 1_999,
    "options": "A) " * 600,
    "words": "a-" * 900,
    "text in text": r"\text{" * 200 + "}" * 200,
    "NUL": "7\x00",
    "escape": "\x1b[2J\x1b]0;x\x07",
    "C1": "\x9b31m7",
    "half a surrogate pair": "\ud800",
    "the other half": "7\udfff",
    "direction override": "\u202e7",
    "zero width": "7\u200b",
    "byte order mark": "\ufeff7",
    "accent": "7\u0301",
    "superscript": "7²",
    "Roman": "Ⅶ",
    "circled": "⑦",
    "Chinese": "七",
    "Tamil ten": "\u0bf0",
    "emoji": "7️⃣",
    "JSON": '7\n[1, true, null]\n"',
    "format": "{0.__class__}%s%n",
}
GOOD = [("7", "7"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"\sqrt{12}", r"2\sqrt{3}"), ("B", "(B)")]


def _in_place(text: str, folder: Path) -> str:
    return text.replace("{}", str(folder / "written"))


@pytest.mark.parametrize("as_reference", [False, True])
def test_nasty_texts_cost_bounded_time_and_nobody_elses_score(
    as_reference: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch, a good answer after each: as answers to a good reference, or as references of a good answer."""
    monkeypatch.chdir(tmp_path)
    endless = ["tower"] if as_reference else list(ENDLESS)  # each costs its time
    nasty = [_in_place(text, tmp_path) for text in (*NASTY.values(), *(ENDLESS[name] for name in endless))]
    pairs: list[tuple[str, str]] = []  # answer, reference
    for number, text in enumerate(nasty):
        pairs += [(r"\pi", text) if as_reference else (text, r"\pi"), GOOD[number % len(GOOD)]]
    with Verifier(timeout=2.0) as verifier:
        assert verifier.grade([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"]) == [1.0]
        scores = verifier.grade([f"\\boxed{{{answer}}}" for answer, _ in pairs], [reference for _, reference in pairs])
        assert scores == [0.0, 1.0] * len(nasty)
        assert len(endless) <= verifier.reasons["timed out"] <= len(endless) + 2  # the bound on time: one each
        assert set(verifier.reasons) <= {
            "timed out", "checker died", "answer too long", "reference too long", "reference is empty",
            "reference cannot be read", "RecursionError", "MemoryError", "ValueError",
        }  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # nothing was executed, nothing written


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("\\boxed{7", 0.0),
        ("\\boxed{7}\\boxed{8", 1.0),
        ("\\boxed{8} so \\boxed{7}", 1.0),
        ("\\boxed{7} no, \\boxed{8}", 0.0),
        ("\\boxed{8 \\boxed{7}}", 1.0),
        ("\\boxed{}", 0.0),
        ("\\boxed{7}" + "{" * 1_000_000, 1.0),
        ("}" * 1_000_000 + "\\boxed{7}", 1.0),
        ("\\boxed{" * 100_000 + "7", 0.0),
        ("\x00\x1b[2J\\boxed{7}", 1.0),
        ("\\boxed{7}\ud800", 1.0),
        ("\\boxed{٧}", 1.0),
        ("\\boxed{７}", 1.0),
        ("\\BOXED{7}", 0.0),
        ("\\boxed\n{7}", 1.0),
        ("7", 0.0),
    ],
)
def test_nasty_boxes(response: str, score: float) -> None:
    verifier = Verifier(command=["this must not be started"])
    assert verifier.grade([response], ["7"]) == [score]


PATCHED = """
import sys
sys.path[:] = {path!r}
from lgrpo.verify import algebra
def equivalent(reference, answer):
    if "bomb" in answer:
        hoard = []
        while True:
            hoard.append(bytearray(64 << 20))
    if "write" in answer:
        with open("written", "w") as file:
            file.write("x")
    return True
algebra.equivalent = equivalent
algebra.main(20.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system may not keep to these limits")
def test_a_memory_bomb_meets_its_own_limit_and_no_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Verifier(timeout=20.0, command=[sys.executable, "-c", PATCHED.format(path=sys.path)]) as verifier:
        answers = [r"\good", r"\bomb", r"\good", r"\write", r"\good"]
        assert verifier.grade([f"\\boxed{{{answer}}}" for answer in answers], [r"\pi"] * 5) == [1.0, 0.0] * 2 + [1.0]
        assert dict(verifier.reasons) == {"MemoryError": 1, "OSError": 1}
        assert verifier._process is not None
        child = verifier._process._child.pid
        assert Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "1000"
        peak = next(line for line in Path(f"/proc/{child}/status").read_text().split("\n") if line.startswith("VmPeak"))
        assert int(peak.split()[1]) <= 1 << 20  # kB
    assert not os.path.exists("written") or os.path.getsize("written") == 0


_PIECES = st.sampled_from(
    [
        "\\boxed{",
        "\\fbox {",
        "{",
        "}",
        "\\",
        "\\text{",
        "\\frac",
        "$",
        "5",
        " million",
        ",",
        "=",
        "^",
        "x",
        "\x1b",
        "(",
        "٣",
    ]
)
_TEXTS = st.one_of(st.text(st.characters(), max_size=60), st.lists(_PIECES, max_size=25).map("".join))


@settings(max_examples=300, deadline=None)
@given(_TEXTS, _TEXTS)
def test_any_text_gets_a_score_and_never_raises(response: str, reference: str) -> None:
    """All but computer algebra: a checker that would say yes stands in for it."""
    found = boxed(response)
    assert found is None or found in response
    with Verifier() as verifier:
        verifier._process = _Yes()  # type: ignore[assignment]
        scores = verifier.grade([response, f"\\boxed{{{response}}}", "\\boxed{7}"], [reference, reference, "7"])
    assert scores[2] == 1.0
    assert set(scores) <= {0.0, 1.0}


class _Yes:
    """In the place of the checker's process."""

    def alive(self) -> bool:
        return True

    def ask(self, reference: str, answer: str, timeout: float) -> tuple[bool, str | None]:
        return True, None

    def stop(self) -> None:
        pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no alarm here")
def test_a_checker_whose_parent_was_killed_ends_by_its_own_alarm() -> None:
    with subprocess.Popen(_checker(0.1), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == [0, True, None]
        child.stdin.write(json.dumps([1, "3", "9^{9^{9^9}}"]) + "\n")
        child.stdin.flush()
        try:
            assert child.wait(timeout=30) == -signal.SIGALRM  # after 1.2 s; nobody else ends it
        finally:
            child.kill()
