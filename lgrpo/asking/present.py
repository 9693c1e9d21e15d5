"""Answers to one problem, told as they come: their texts on stdout, what the model held in its chain on stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from lgrpo.asking import vote
from lgrpo.asking.ask import Answer, Asker, Wish
from lgrpo.problems import Problem
from lgrpo.reading import Unfolding, Word, latent_steps
from lgrpo.rollout import Part
from lgrpo.screen import strands
from lgrpo.screen.chain import Chain
from lgrpo.screen.terminal import label, note
from lgrpo.stdout import answering
from lgrpo.text import TAB, clean
from lgrpo.verify import Verifier


@dataclass(frozen=True)
class Looks:
    """What is shown, and how."""

    chain: bool = True
    every: bool = False  # all words of a step, and all chains
    as_json: bool = False


def present(asker: Asker, problem: Problem, wish: Wish, looks: Looks) -> list[Answer]:
    """Ask, and tell. With several samples the texts follow each other in their order, then comes the vote."""
    if wish.explore and not asker.policy.latent:
        note(f"{asker.name} writes its chain: there is no latent one to explore with noise")
    telling = _Telling(asker, wish, looks)
    try:
        answers = asker.ask(problem, wish, telling.steps, telling.end)
    except KeyboardInterrupt:
        telling.leave()
        raise
    if len(answers) > 1:
        with Verifier() as grader:
            _compare(answers, vote.count(answers, grader), wish, looks)
    return answers


class _Telling:
    """Tells one sample after the other, while all of them grow."""

    def __init__(self, asker: Asker, wish: Wish, looks: Looks) -> None:
        self._asker, self._wish, self._looks = asker, wish, looks
        # Without noise all samples have the same chain; with it the chains are shown side by side, at the end.
        self._chain = Chain(looks.every) if looks.chain and (wish.samples == 1 or not wish.explore) else None
        self._sample = 0  # the one that is told
        self._column, self._begun = 0, False  # letters told of its last line; whether anything is told
        self._texts: dict[int, Unfolding] = {}
        self._ended: dict[int, Answer] = {}
        self._numbered = wish.samples > 1 and sys.stdout.isatty() and sys.stderr.isatty()

    def steps(self, sample: int, part: Part, text: Unfolding) -> None:
        self._texts[sample] = text
        if sample == 0 and self._chain is not None:
            for step in latent_steps(self._asker.policy, part, self._asker.settings.tau):
                self._chain.step(pairs(step))
        if sample == self._sample and not self._looks.as_json:
            self._write(text.more())

    def end(self, answer: Answer) -> None:
        self._ended[answer.sample] = answer
        while (answer_now := self._ended.pop(self._sample, None)) is not None:
            self._finish(answer_now)
            self._sample, self._begun = self._sample + 1, False
        if self._sample in self._texts and not self._looks.as_json:
            self._write(self._texts[self._sample].more())

    def leave(self) -> None:
        """Nothing more will come: what is to be said next begins a line."""
        if self._column:
            self._write("\n")

    def _finish(self, answer: Answer) -> None:
        text = self._texts.pop(answer.sample)
        if self._looks.as_json:
            with answering() as stdout:
                told = self._asker.as_json(answer, self._wish, self._looks.chain)
                print(json.dumps(told, allow_nan=False), file=stdout)
        else:
            self._write(text.rest() + "\n")
        if answer.trouble:
            which = f"sample {answer.sample + 1} " * (self._wish.samples > 1)
            print(f"({which}{answer.trouble})", file=sys.stderr)

    def _write(self, text: str) -> None:
        """As `clean` would show the whole answer: how long a tab is depends on the line before it."""
        if not text:
            return
        if self._numbered and not self._begun:
            label(f"#{self._sample + 1} ".ljust(len(str(self._wish.samples)) + 3))
        self._begun = True
        before = " " * (self._column % TAB)
        whole = (before + text).expandtabs(TAB)
        with answering() as stdout:
            stdout.write(clean(whole, lines=True)[len(before) :])
        self._column = len(whole) - 1 - max(whole.rfind("\n"), whole.rfind("\r"))


def _compare(answers: list[Answer], blocs: list[vote.Bloc], wish: Wish, looks: Looks) -> None:
    shown = [
        (
            bloc.answer,
            [strands.Column([n + 1 for n in one.samples], [pairs(step) for step in one.chain]) for one in bloc.strands],
        )
        for bloc in blocs
    ]
    if looks.chain and wish.explore and any(answer.chain for answer in answers):
        parting = vote.parting([answer.chain for answer in answers])
        print(file=sys.stderr)
        strands.strands(shown, None if parting is None else parting + 1, looks.every)
        print(file=sys.stderr)
    strands.vote(shown, looks.every)


def pairs(step: list[Word]) -> list[tuple[str, float]]:
    """What the screen takes of a step."""
    return [(word.text, word.weight) for word in step]
