"""Rewards: 1 where a response's boxed answer is equivalent to the reference, else 0 (docs/method.md, section 4).

Numbers, choices and equal texts are settled at once (`answers.py`). The rest goes to math-verify in a process of its
own (`algebra.py`), because some answers keep computer algebra busy for ever (`9^{9^{9^9}}`, `10!!!!`) or exhaust the
memory, and a process can be killed. Such an answer costs one time-out, scores 0 and is counted; no other is touched.
A process that died is not the answer's fault where the system killed it for memory: the answer is checked once more.

The process is a plain child rather than one of `multiprocessing`'s: those import the main module again, which may be
somebody's training script.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from lgrpo.errors import UserError
from lgrpo.verify.answers import boxed, settle, tidy

TIMEOUT = 5.0  # seconds for one answer
DIED = "checker died"
LONGEST = 2_000  # characters of a boxed answer: beyond it nobody's answer, and slow to read
START = 120.0  # seconds for the process to import sympy; half a second on an idle machine


class Verdict(NamedTuple):
    """What an answer is worth."""

    reward: float  # 1.0 or 0.0
    unchecked: str | None = None  # why it could not be checked, and is worth 0.0


def in_words(reasons: Mapping[str, int]) -> str | None:
    """How many answers could not be checked, and why, in a line; None where all could."""
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]))
    return f"{sum(reasons.values())} answers could not be checked, and count as wrong ({why})" if why else None


class Verifier:
    """Grades responses. `failures` counts the answers that could not be checked, `reasons` says why.

    The process starts with the first answer that needs it, and goes with `close()`, with the `with` block, or with the
    interpreter. Signals are not used, so any one thread may grade.
    """

    def __init__(self, timeout: float = TIMEOUT, longest: int = LONGEST, command: Sequence[str] | None = None) -> None:
        """timeout: seconds for one answer; longest: characters; command: another checker (see `algebra.py`)."""
        self.timeout = timeout
        self.longest = longest
        self.reasons: Counter[str] = Counter()
        self._command = list(command) if command is not None else _checker(timeout)
        self._process: _Process | None = None

    @property
    def failures(self) -> int:
        """How many answers could not be checked since the beginning. A response without a box is not among them."""
        return self.reasons.total()

    def trouble(self) -> str | None:
        """What could not be checked so far, in a line; None where all could."""
        return in_words(self.reasons)

    def grade(self, responses: Sequence[str], references: Sequence[str]) -> list[float]:
        """1.0 or 0.0 for each response, by the last complete box in it. A reference may stand in a box or in `$`."""
        return [verdict.reward for verdict in self.verdicts(responses, references)]

    def verdicts(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        """The same, and why each could not be checked where it could not."""
        known: dict[tuple[str, str], Verdict] = {}
        found = []
        for response, reference in zip(responses, references, strict=True):
            answer = boxed(response)
            if answer is None:
                found.append(Verdict(0.0))
                continue
            pair = (answer, reference)
            if pair not in known:  # a group often gives the same answer: check it, and wait for it, once
                known[pair] = self._grade(answer, reference)
            found.append(known[pair])
            if (why := known[pair].unchecked) is not None:
                self.reasons[why] += 1
        return found

    def _grade(self, answer: str, reference: str) -> Verdict:
        """Of one boxed answer."""
        if len(answer) > self.longest:
            return Verdict(0.0, "answer too long")
        within = boxed(reference)
        expected = reference if within is None else within
        if len(expected) > self.longest:
            return Verdict(0.0, "reference too long")
        expected = tidy(expected)
        if not expected:
            return Verdict(0.0, "reference is empty")
        given = tidy(answer)
        equal, failure = settle(given, expected), None
        if equal is None:
            equal, failure = self._compute(expected, given)
            if failure == DIED:  # by this answer, which then ends a second one; or by the system, for want of memory
                equal, failure = self._compute(expected, given)
        return Verdict(float(equal), failure)

    def _compute(self, expected: str, given: str) -> tuple[bool, str | None]:
        """Ask the process, a fresh one where it is gone."""
        if self._process is None or not self._process.alive():
            self._process = _Process(self._command)
        equal, failure = self._process.ask(expected, given, self.timeout)
        if failure is not None and not self._process.alive():
            self.close()
        return equal, failure

    def close(self) -> None:
        """End the process, if there is one. Grading again starts another."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checker(timeout: float) -> list[str]:
    # The parent's search path, whichever way it came by it, and not the current folder, whose files may have any name.
    code = f"import sys; sys.path[:] = {sys.path!r}; from lgrpo.verify.algebra import main; main({timeout!r})"
    return [sys.executable, "-c", code]


class _Process:
    """One checker and the pipe to it."""

    def __init__(self, command: list[str]) -> None:
        """Start the checker and wait until it is ready. Raises UserError where it cannot be had."""
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        except OSError as error:
            raise UserError(f"the process that checks answers cannot be started ({error}); start it again") from error
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests: IO[str] = self._child.stdin
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(self._child.stdout, self._replies), daemon=True)
        reader.start()
        self.stop = weakref.finalize(self, _stop, self._child, reader)  # at the interpreter's end at the latest
        self._number = 0
        ready, failure = self._reply(START)
        if not ready:
            self.stop()
            raise UserError(f"math-verify cannot check answers here ({failure}); try `pip install -U math-verify`")

    def alive(self) -> bool:
        return self.stop.alive and self._child.poll() is None

    def ask(self, reference: str, answer: str, timeout: float) -> tuple[bool, str | None]:
        """(equal, None), or (False, why it could not be checked); after a time-out or a crash the process is gone."""
        self._number += 1
        try:
            self._requests.write(json.dumps([self._number, reference, answer]) + "\n")
            self._requests.flush()
        except OSError:  # it died on its own since the last answer
            self.stop()
            return False, DIED
        try:
            equal, failure = self._reply(timeout)
        except BaseException:  # Ctrl-C while waiting: the reply to come belongs to no later answer
            self.stop()
            raise
        if failure in ("timed out", DIED):
            self.stop()
        return equal, failure

    def _reply(self, timeout: float) -> tuple[bool, str | None]:
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            return False, "timed out"
        if not line:
            return False, DIED
        number, equal, failure = json.loads(line)
        assert number == self._number, "an answer must never get another's score"
        return equal, failure


def _read(replies: IO[str], into: "queue.SimpleQueue[str]") -> None:
    """Hand on line by line; an empty one says that the process has ended."""
    for line in replies:
        into.put(line)
    into.put("")


def _stop(child: "subprocess.Popen[Any]", reader: threading.Thread) -> None:
    """End the child for certain, leave no zombie and no open pipe."""
    child.kill()
    child.wait()
    reader.join(1.0)  # the pipe has ended with the child
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written yet has no reader any more
                pipe.close()
