"""The verifier: what counts as the same answer, and that no answer can hang it, crash it or touch another's score."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgrpo.errors import UserError
from lgrpo.verify import Verifier, boxed


@pytest.fixture(scope="module")
def algebra() -> Iterator[Verifier]:
    """One verifier for all that needs the process: it starts once."""
    with Verifier() as verifier:
        yield verifier


def score(verifier: Verifier, answer: str, reference: str) -> float:
    return verifier.grade([f"So it is \\boxed{{{answer}}}."], [reference])[0]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("so \\boxed{29}.", "29"),
        ("no box", None),
        ("", None),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("\\boxed{1} and \\boxed{2", "1"),  # cut off by the length limit: the last complete one counts
        ("\\boxed{1", None),
        ("\\boxed{a{b}", None),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{x = \\fbox{5}}", "5"),
        ("\\fbox{3}", "3"),
        ("\\boxed {4}", "4"),
        ("\\boxed 4", None),
        ("\\boxed{}", ""),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right."),  # one escaped brace is no brace
        ("}} { \\boxed{6}", "6"),
        ("\\boxedly{7}", None),
        ("\\boxed{8\n}", "8\n"),
    ],
)
def test_boxed_takes_the_last_complete_box(text: str, content: str | None) -> None:
    assert boxed(text) == content


def test_boxed_is_linear_in_megabytes() -> None:
    begin = time.perf_counter()
    assert boxed("\\boxed{" * 150_000) is None
    assert boxed("\\boxed{" * 150_000 + "1" + "}" * 150_000) == "1"
    assert boxed("\\boxed" + " " * 1_000_000) is None
    assert boxed("{" * 1_000_000 + "\\boxed{2}") == "2"
    assert time.perf_counter() - begin < 3.0


SAME = [
    ("--5", "5"),
    ("29", "29"),
    (" 29 ", "29"),
    ("$29$", "29"),
    ("29", "\\boxed{29}"),
    ("29", "$29$"),
    ("1234", "1,234"),
    ("1,234", "1234"),
    ("1{,}234.0", "1234"),
    ("1\\,234", "1234"),
    ("\\$1,234", "1234"),
    ("$5", "5"),
    ("-$5", "-5"),
    ("\u22125", "-5"),
    ("+5", "5"),
    ("0.50", "1/2"),
    (".5", "\\frac{1}{2}"),
    ("\\dfrac12", "0.5"),
    ("\\frac{4}{6}", "\\frac23"),
    ("\\frac{4}{2}", "\\frac{2}{1}"),  # the reference does not reduce it either
    ("2/4", "1/2"),
    ("0.333333", "1/3"),
    ("6.9999999", "7"),
    ("151.43", "151.42857142857142"),  # such a reference is rounded, the answer may be
    ("x = 12", "12"),
    ("3 \\cdot 4 = 12", "12"),
    ("1e3", "1000"),
    ("50\\%", "50"),
    ("50", "50%"),
    ("50%", "0.5"),
    ("0.5", "50 percent"),
    ("5 cm", "5"),
    ("5\\text{ cm}^2", "5"),
    ("18 dollars.", "18"),
    ("18", "18 pens"),
    ("90^\\circ", "90"),
    ("１２", "12"),  # full-width
    ("٣", "3"),  # Arabic
    ("0", "-0"),
    ("Evelyn", "\\text{Evelyn}"),
    ("evelyn", "Evelyn"),
    ("\\left( 1, 2 \\right)", "(1,2)"),
    ("c", "C"),
    ("(C)", "C"),
    ("\\text{C}", "C"),
    ("C", "\\text{(C)}"),
    ("b.", "B"),
    ("B) 5 cm", "B"),
    ("\\text{(B)} 5 cm", "B"),
    ("(b) A red ball", "B"),
    ("Option B", "B"),
    ("The answer is (B)", "B"),
    ("J", "(J)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),  # `\\ ` is a row break, no space
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
    (r"\frac{5}{12}\text{ cm}", r"\frac{5}{12}"),
    (r"\frac{1}{2} \text{ hour}", r"\frac12"),
    (r"\frac{1}{2}\text{ m}^2", r"\frac12"),
    (r"\frac{1}{2}\text{ sq. in.}", r"\frac12"),
    (r"\frac{1}{2}\text{ m/s}", r"\frac12"),
    (r"\frac{50}{3}\%", r"\frac{50}{3}"),
    (r"\frac{45}{2}^\circ", "22.5"),
    (r"x = \frac{5}{12}\text{ cm}", r"\frac{5}{12}"),
    (r"\left(\frac{3}{4}\right)", r"\frac{3}{4}"),
    (r"{\frac{3}{4}}", r"\frac{3}{4}"),
    ("(3/4)", r"\frac{3}{4}"),
    (r"\frac{1}{-2}", r"-\frac{1}{2}"),
    (r"-\frac{1}{-2}", "1/2"),
    (r"\frac{-3}{-4}", r"\frac{3}{4}"),
    ("12 1/2", "12.5"),
    ("-3 1/4", "-3.25"),
    ("$1,234 1/2", "1234.5"),
    ("12 1/2 cm", "12.5"),
    (r"3\frac{1}{4}", "3.25"),
    (r"-3 \frac14", "-3.25"),
    (r"16\frac{2}{3}\%", r"\frac{50}{3}"),
    (r"50\text{ percent}", "0.5"),
    (r"5\text{ meters squared}", "5"),
    ("30 km/h", "30"),
    ("18 dollars/day", "18"),
    (r"\text{30 cm}", "30"),
    (r"x \approx 18", "18"),
    (r"\approx 18", "18"),
    ("m + n = 25", "25"),
    ("f(3) = 5", "5"),
    ("x_1 = 5", "5"),
    ("f^{-1}(3) = 5", "5"),
    (r"5\text{ times}", "5"),
    (r"\angle ABC = 90^\circ", "90"),
    (r"5 \text{ million}", "5 million"),
    ("5,000,000", r"5\text{ million}"),
    ("5.2 million dollars", "5200000"),
    (r"\frac{1}{2}\text{ million}", "500000"),
    ("2 hundred thousand people", "200,000"),
    ("60 eggs", "5 dozen"),
    (r"\text{5 or more}", "5 or more"),
]
DIFFERENT = [
    ("28", "29"),
    ("", "29"),
    ("12345678", "12345679"),  # whole numbers are exact, however near
    ("0.33333", "1/3"),
    ("7.0001", "7"),
    ("151.4", "151.42857142857142"),
    ("3.14", "3.1416"),
    ("0.0000001", "0"),
    ("1,23", "123"),
    ("1 2", "12"),
    ("1\x002", "12"),
    ("1\x002", "1"),
    ("5 million", "5"),
    ("5 or more", "5"),
    ("5²", "52"),
    ("5²", "5"),
    ("-5", "5"),
    ("ten", "10"),
    ("50\\%", "5"),
    ("B", "C"),
    ("Charlie", "C"),
    ("A or C", "C"),
    ("C or A", "C"),
    ("C) or A)", "C"),
    ("A) 5 cm B) 6 cm C) 7 cm", "A"),
    ("C and D", "C"),
    ("Cobalt", "C"),
    ("C elegans", "C"),
    ("5/0", "5"),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 2 \end{pmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (r"\frac{1}{2}\text{ million}", r"\frac12"),
    (r"\frac{1}{2}x", r"\frac12"),
    (r"\frac{1}{2}^2", r"\frac12"),
    (r"\frac{1}{0}", "1"),
    (r"5 \text{ or more}", "5"),
    (r"5\text{ million}", "5"),
    (r"5 \text{ thousand}", "5"),
    (r"5\mathrm{ dozen}", "5"),
    (r"5\%\text{ or more}", "5"),
    (r"5 \text{ squared}", "5"),
    (r"x = 5\text{ million}", "5"),
    (r"\text{5 million}", "5"),
    ("5", r"5\text{ million}"),
    ("5", "5 million"),
    ("5", r"5\text{ or more}"),
    ("x = 5", r"5\text{ million}"),
    (r"\sqrt5", r"\sqrt{5}\text{ million}"),
    (r"\sqrt{5}\text{ million}", r"\sqrt5"),
    ("12 1/2", "6"),
    ("3 5/4", "4.25"),
    (r"3\frac{5}{4}", "4.25"),
    (r"2\frac{-1}{2}", "1.5"),
    (r"2x\frac{1}{4}", "0.5"),
    (r"2\frac{1}{4}x", "2.25"),
    ("101_2", "101"),
    ("101_{2}", "101"),
    ("1,2", "(1,2)"),
    ("1,2", "[1,2]"),
    (r"\frac12, 2", "(1/2, 2)"),
    ("x^2=5", "5"),
    ("2x = 10", "10"),
    ("x + 3 = 5", "5"),
    (r"\frac{x}{2} = 5", "5"),
]


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_same_answer_without_algebra(answer: str, reference: str) -> None:
    verifier = Verifier(command=["this must not be started"])
    assert score(verifier, answer, reference) == 1.0
    assert verifier.failures == 0


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_different_answer(algebra: Verifier, answer: str, reference: str) -> None:
    before = algebra.failures
    assert score(algebra, answer, reference) == 0.0
    assert algebra.failures == before


LEFT_TO_DO = [
    "3*12-7", "3 \\times 12 - 7", "3\\cdot12-7", "36-7", "36 - 7", "(36)-7", "x = 36-7", "28+1", "58/2",
    "\\frac{58}{2}", "\\frac{29}{1}", "58 \\div 2", "29^1", "\\sqrt{841}", "2(14.5)", "(2)(14.5)",
    "27\\frac{4}{2}", "27 4/2", "29!/28!",
    "\\binom{29}{1}", "\\lfloor 29.5 \\rfloor", "2.8 \\times 10^1 + 1", "30 - 1 \\text{ pens}", "36−7", "58÷2",
]  # fmt: skip


@pytest.mark.parametrize("answer", LEFT_TO_DO)
def test_an_answer_that_leaves_a_step_to_the_reader_is_no_number(answer: str) -> None:
    """Each is 29, and a policy rewarded for it would stop working out its last step."""
    verifier = Verifier(command=["this must not be started"])
    assert score(verifier, answer, "29") == 0.0
    assert score(verifier, answer, answer) == 1.0
    assert verifier.failures == 0


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("2.9 \\times 10^{1}", "29", 1.0),
        ("10^6", "1,000,000", 1.0),
        ("29 \\text{ m/s}", "29", 1.0),
        ("29 \\text{ m}^2", "29", 1.0),
        ("28\\frac{1}{2}", "28.5", 1.0),
        ("29.5 \\mathrm{cm}", "29.5", 1.0),
        ("6.02 \\times 10^{23}", "6.02e23", 1.0),
        ("10^{-5}", "1e-05", 1.0),  # as Python writes 0.00001
        ("1e6", "10^6", 1.0),
        ("1e5", "10^6", 0.0),
        ("\\sqrt{12}", "2\\sqrt{3}", 1.0),
        ("\\sqrt{13}", "2\\sqrt{3}", 0.0),
        (r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}", r"\begin{pmatrix} \frac12 \\ 2 \end{pmatrix}", 1.0),
        ("1024", "2^{10}", 1.0),  # what a reference leaves to do, an answer may do or leave
        ("2^5 \\cdot 2^5", "2^{10}", 1.0),
        ("1023", "2^{10}", 0.0),
        ("2^{10}", "1024", 0.0),
        (r"\sqrt2", r"\sqrt{2}", 1.0),
        (r"\frac{2}{\sqrt{2}}", r"\sqrt{2}", 1.0),
        ("1.5", r"\sqrt{2}", 0.0),
        ("(1,2)", "1,2", 1.0),  # the reference itself has no brackets
        ("(x,y) = (1,2)", "(1,2)", 1.0),
        ("x = 1, y = 2", "(1,2)", 1.0),
        ("101_{2}", "101_2", 1.0),
        ("(x+1)^2", "x^2+2x+1", 1.0),
        ("(x+1)^2", "x^2+2x+2", 0.0),
        ("b + a + c", "a + b + c", 1.0),  # math-verify takes a final `c` for a unit
        ("x = 12", "12", 1.0),
        ("1.2\\times 10^3", "1200", 1.0),
        ("1\\frac12", "1.5", 1.0),
        ("\\{2, 1\\}", "1,2", 1.0),
        ("(2,1)", "(1,2)", 0.0),
        ("[0,1]", "[0,1)", 0.0),
        ("(1,2)", "1<x<2", 1.0),  # for a reference that is a relation alone: which of the two is which matters
        ("5x", "5", 0.0),
        ("5 x", "5", 0.0),
        ("4, 5", "5", 0.0),
        ("4 \\text{ or } 5", "5", 0.0),
        ("\\frac{5", "5", 0.0),
        ("\\text{Bob}", "\\text{Evelyn}", 0.0),
        ("\ud800", "\\pi", 0.0),  # half a surrogate pair has no UTF-8
    ],
)
def test_algebra_decides_what_reading_cannot(algebra: Verifier, answer: str, reference: str, equal: float) -> None:
    before = algebra.failures
    assert score(algebra, answer, reference) == equal
    assert algebra.failures == before


def test_no_box_is_wrong_but_no_failure() -> None:
    verifier = Verifier(command=["this must not be started"])
    assert verifier.grade(["29", "\\boxed{29", "\\boxed{29}"], ["29"] * 3) == [0.0, 0.0, 1.0]
    assert verifier.failures == 0


@pytest.mark.parametrize("answer", ["1\x002", "\x1b[2J5", "5\x7f", "ten", "x", ""])
def test_plainly_wrong_answers_cost_no_algebra(answer: str) -> None:
    verifier = Verifier(command=["this must not be started"])
    assert score(verifier, answer, "5") == 0.0
    assert verifier.failures == 0


def test_refused_answers_are_counted_by_reason() -> None:
    verifier = Verifier(command=["this must not be started"])
    responses = ["\\boxed{" + "1" * 5_000_000 + "}", "\\boxed{5}", "\\boxed{\\pi}", "\\boxed{5}"]
    assert verifier.grade(responses, ["5", "$", "\\pi" * 1_000, "5"]) == [0.0, 0.0, 0.0, 1.0]
    assert dict(verifier.reasons) == {"answer too long": 1, "reference is empty": 1, "reference too long": 1}
    assert verifier.failures == 3


def test_unreadable_reference_is_a_failure_not_a_zero_in_silence(algebra: Verifier) -> None:
    before = algebra.reasons["reference cannot be read"]
    assert score(algebra, "3", "2007 + \\frac\\pi 2") == 0.0
    assert algebra.reasons["reference cannot be read"] == before + 1


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        Verifier().grade(["\\boxed{1}"], [])


@pytest.mark.parametrize("nasty", ["9^{9^{9^9}}", "{" * 900 + "5" + "}" * 900])
def test_an_endless_answer_costs_one_timeout_and_nobody_elses_score(nasty: str) -> None:
    with Verifier(timeout=0.4) as verifier:
        assert score(verifier, "\\sqrt{12}", "2\\sqrt{3}") == 1.0  # the process is up: its start is not timed below
        begin = time.perf_counter()
        responses = ["\\boxed{7}", f"\\boxed{{{nasty}}}", f"\\boxed{{{nasty}}}", "\\boxed{\\sqrt{8}}"]
        assert verifier.grade(responses, ["7", "\\pi", "\\pi", "2\\sqrt{2}"]) == [1.0, 0.0, 0.0, 1.0]
        assert time.perf_counter() - begin < 6.0  # one time-out for both, and one new process
        assert dict(verifier.reasons) == {"timed out": 2}


CHECKER = """
import json, os, sys, time
print(json.dumps([0, True, None]), flush=True)
for line in sys.stdin:
    number, reference, answer = json.loads(line)
    if "crash" in answer:
        os._exit(1)
    if "hang" in answer:
        time.sleep(60)
    print(json.dumps([number, "good" in answer, "NameError" if "raise" in answer else None]), flush=True)
"""


def test_crash_hang_and_exception_are_told_apart() -> None:
    with Verifier(timeout=0.3, command=[sys.executable, "-c", CHECKER]) as verifier:
        answers = ["good 1", "crash", "good 2", "hang", "raise", "wrong", "good 3"]
        scores = verifier.grade([f"\\boxed{{\\{answer}}}" for answer in answers], ["\\pi"] * 7)
        assert scores == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        assert dict(verifier.reasons) == {"checker died": 1, "timed out": 1, "NameError": 1}


# Notes each start in a file; killed, as by a system that is short of memory, in the middle of its first answer.
KILLED_ONCE = """
import os, signal, sys
with open(sys.argv[1], "a") as starts:
    starts.write("x")
    first = starts.tell() == 1
if first:
    print("[0, true, null]", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_whose_checker_was_killed_is_checked_by_another(tmp_path: Path) -> None:
    with Verifier(command=[sys.executable, "-c", KILLED_ONCE + CHECKER, str(tmp_path / "starts")]) as verifier:
        assert verifier.verdicts(["\\boxed{\\good}", "\\boxed{\\bad}"], ["\\pi"] * 2) == [(1.0, None), (0.0, None)]
        assert (tmp_path / "starts").read_text() == "xx"
        assert verifier.failures == 0


def test_an_answer_that_kills_its_checker_kills_two_and_touches_no_other(tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'starts')!r}, 'a').write('x')"
    with Verifier(timeout=0.3, command=[sys.executable, "-c", note + CHECKER]) as verifier:
        found = verifier.verdicts([f"\\boxed{{\\{text}}}" for text in ("crash", "good", "crash", "hang")], ["\\pi"] * 4)
        died = (0.0, "checker died")
        assert found == [died, (1.0, None), died, (0.0, "timed out")]
        assert dict(verifier.reasons) == {"checker died": 2, "timed out": 1}
        assert (tmp_path / "starts").read_text() == "xxx"  # none for the same answer again, none after a time-out


def test_a_group_of_the_same_endless_answer_waits_once() -> None:
    with Verifier(timeout=0.3, command=[sys.executable, "-c", CHECKER]) as verifier:
        begin = time.perf_counter()
        assert verifier.grade(["\\boxed{\\hang}"] * 16, ["\\pi"] * 16) == [0.0] * 16
        assert time.perf_counter() - begin < 3.0
        assert verifier.failures == 16  # each is an answer that could not be checked


def test_an_interrupted_wait_leaves_no_reply_for_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Verifier(timeout=5.0, command=[sys.executable, "-c", CHECKER]) as verifier:
        assert score(verifier, "\\good", "\\pi") == 1.0
        process = verifier._process
        assert process is not None

        def interrupted(timeout: float) -> tuple[bool, str | None]:
            raise KeyboardInterrupt

        monkeypatch.setattr(process, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score(verifier, "\\good", "\\pi")
        assert score(verifier, "\\bad", "\\pi") == 0.0
        assert verifier.failures == 0


def test_a_checker_killed_between_answers_is_nobodys_failure() -> None:
    with Verifier(command=[sys.executable, "-c", CHECKER]) as verifier:
        assert score(verifier, "\\good", "\\pi") == 1.0
        assert verifier._process is not None
        child = verifier._process._child
        child.kill()
        child.wait()
        assert score(verifier, "\\good", "\\pi") == 1.0
        assert verifier.failures == 0


@pytest.mark.parametrize(
    "command", [["/no/such/program"], [sys.executable, "-c", "print('[0, false, \"ImportError: none\"]')"]]
)
def test_a_verifier_that_cannot_start_says_so_instead_of_scoring_zero(command: list[str]) -> None:
    with pytest.raises(UserError, match="answers"):
        score(Verifier(command=command), "x", "\\pi")


def test_close_leaves_no_process_and_can_be_used_again() -> None:
    verifier = Verifier(command=[sys.executable, "-c", CHECKER])
    assert score(verifier, "\\good", "\\pi") == 1.0
    assert verifier._process is not None
    child = verifier._process._child
    verifier.close()
    verifier.close()
    assert child.returncode is not None  # waited for: no zombie
    assert score(verifier, "\\good", "\\pi") == 1.0
    verifier.close()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for the process in /proc")
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_an_interpreter_that_ends_takes_the_process_with_it(end: str) -> None:
    """Without close(), from a script read from stdin, which has no main module that could be imported again."""
    script = f"""
        import os
        from lgrpo.verify import Verifier
        verifier = Verifier()
        score = verifier.grade(["\\\\boxed{{\\\\sqrt{{12}}}}"], ["2\\\\sqrt{{3}}"])
        print(score, verifier._process._child.pid, flush=True)
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-"], input=textwrap.dedent(script), capture_output=True, text=True, timeout=30
    )
    assert done.stdout.startswith("[1.0] ")
    assert done.stderr == ""
    child = int(done.stdout.split()[1])
    until = time.monotonic() + 5.0
    while time.monotonic() < until and _runs(child):
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_numbers_need_no_process() -> None:
    verifier = Verifier(command=["this must not be started"])
    responses = [f"... so the answer is \\boxed{{{7 * i}.0}}" for i in range(512)]
    assert verifier.grade(responses, [str(7 * i) for i in range(512)]) == [1.0] * 512


def test_checking_does_not_import_torch() -> None:
    code = "import sys, lgrpo.verify, lgrpo.verify.algebra; sys.exit('torch' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_of_the_whole_job_costs_no_right_answer(number: int) -> None:
    """SIGTERM for all processes, as `scancel` and `timeout` send it, a closed terminal: the step is still graded."""
    before = signal.signal(number, signal.SIG_DFL)  # else a child of one that `nohup` began ignores it
    with Verifier() as grader:
        assert grader.grade([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"]) == [1.0]
        signal.signal(number, before)
        process = grader._process
        assert process is not None
        os.kill(process._child.pid, number)
        assert grader.grade([r"\boxed{\sqrt{18}}"], [r"3\sqrt{2}"]) == [1.0]
        assert grader.failures == 0
        assert grader._process is process
