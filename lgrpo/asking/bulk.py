"""Answers to many problems: one JSON object a sample on stdout, in the order of the file, progress on stderr."""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from lgrpo import context
from lgrpo.asking.ask import Answer, Asker, Wish
from lgrpo.data import read_to_ask
from lgrpo.errors import UserError
from lgrpo.problems import Problem
from lgrpo.rollout import Rollout
from lgrpo.screen import Show
from lgrpo.stdout import answering
from lgrpo.verify import Verifier

Row = tuple[str, Problem]  # (place, problem)

STDIN = "-"
PATIENCE = 0.05  # seconds: what arrives on stdin within them is answered together


def answer_file(source: str, load: Callable[[Callable[[str], None]], Asker], wish: Wish, chain: bool) -> None:
    """Answer each problem of a file. Only one part of it is in memory at a time.

    A file is read through before the model is loaded, so that a bad line costs nothing; stdin is answered as it comes.
    """
    count, longest = (None, 0) if source == STDIN else _look_through(source)
    # A panel on the terminal that the answers go to would be torn apart by them.
    with Show(live=False if sys.stdout.isatty() else None) as show, Verifier() as grader:
        asker = load(show.warn)
        most = max(1, 4 * asker.engine.slots // wish.samples)
        if source != STDIN:
            _check_room(asker, source, longest, most)
        parts = (_arriving if source == STDIN else _parts)(read_to_ask(source), most)
        show.stage(f"answering {'stdin' if source == STDIN else source}", count)
        teller = _Teller(asker, wish, chain, grader, show)
        for part in parts:
            asker.meet(part)
            teller.answer([problem for _, problem in part])
        if trouble := grader.trouble():
            show.warn(trouble)


class _Teller:
    """Writes each answer as soon as all before it are written, and keeps count."""

    def __init__(self, asker: Asker, wish: Wish, chain: bool, grader: Verifier, show: Show) -> None:
        self._asker, self._wish, self._chain, self._grader, self._show = asker, wish, chain, grader, show
        self._rows = 0  # problems answered to the end
        self._told = self._latent = self._explicit = self._invalid = 0
        self._graded = self._right = 0
        self._began = time.perf_counter()

    def answer(self, part: list[Problem]) -> None:
        samples = self._wish.samples
        requests = [request for problem in part for request in self._asker.requests(problem, self._wish)]
        waiting: dict[int, Rollout] = {}
        place = 0  # of the answer that is told next

        def finish(number: int, rollout: Rollout) -> None:
            nonlocal place
            waiting[number] = rollout
            while place in waiting:
                problem, sample = part[place // samples], place % samples
                self._tell(self._asker.answer(problem, sample, waiting.pop(place)))
                place += 1

        self._asker.engine.generate(requests, finish)

    def _tell(self, answer: Answer) -> None:
        told = {"row": self._rows + 1, **self._asker.as_json(answer, self._wish, self._chain)}
        if reference := answer.problem.answer:
            right = answer.rollout.valid and self._grader.grade([answer.text], [reference])[0] > 0
            told |= {"reference": reference, "right": right}
            self._graded, self._right = self._graded + 1, self._right + right
        with answering() as stdout:
            stdout.write(json.dumps(told, allow_nan=False) + "\n")
        self._told += 1
        self._latent += answer.rollout.latent_length
        self._explicit += answer.rollout.explicit_length
        self._invalid += not answer.rollout.valid
        if answer.sample + 1 == self._wish.samples:
            self._rows += 1
            self._show.step(self._rows, self._numbers())

    def _numbers(self) -> dict[str, float]:
        right = {"right": self._right / self._graded} if self._graded else {}
        told = self._told
        lengths = {"latent": self._latent / told, "explicit": self._explicit / told, "invalid": self._invalid / told}
        speed = (self._latent + self._explicit) / (time.perf_counter() - self._began)
        return right | lengths | {"tokens/s": speed}


def _look_through(source: str) -> tuple[int, int]:
    """How many problems a file holds, and the bytes of the longest. Raises UserError at a line that cannot be read."""
    count = longest = 0
    for _, problem in read_to_ask(source):
        count, longest = count + 1, max(longest, len(problem.problem.encode()))
    if not count:
        raise UserError(f"{source}: holds no problems")
    return count, longest


def _check_room(asker: Asker, source: str, longest: int, most: int) -> None:
    """Of all rows of a file, before the first is answered; where the longest is certain to fit, all are."""
    for part in _parts(read_to_ask(source), most):
        asker.meet(part)
        if context.sure_of_room(asker.policy, longest, asker.settings.max_response):
            return


def _parts(rows: Iterator[Row], most: int) -> Iterator[list[Row]]:
    while part := list(itertools.islice(rows, most)):
        yield part


def _arriving(rows: Iterator[Row], most: int) -> Iterator[list[Row]]:
    """Parts of what has come so far: whoever asks one question at a time has its answer before asking the next."""
    came: queue.Queue[Row | Exception | None] = queue.Queue(most)

    def read() -> None:
        try:
            for row in rows:
                came.put(row)
            came.put(None)
        except Exception as error:  # the reader of the queue raises it
            came.put(error)

    threading.Thread(target=read, daemon=True).start()
    last: Row | Exception | None = came.get()
    while isinstance(last, tuple):
        part = [last]
        with suppress(queue.Empty):
            while len(part) < most and isinstance(last := came.get(timeout=PATIENCE), tuple):
                part.append(last)
        yield part
        if isinstance(last, tuple):
            last = came.get()
    if last is not None:
        raise last
