"""`lgrpo sample`: ask a model, once, about each problem of a file, or in a conversation. Writes no file of its own."""

import sys
from contextlib import suppress

from lgrpo import stdin
from lgrpo.asking.ask import Asker, Wish, question
from lgrpo.asking.present import Looks, present
from lgrpo.errors import UserError
from lgrpo.stdout import answering
from lgrpo.text import clean


def sample(
    problem: str | None,
    model: str | None,
    samples: int,
    explore: bool,
    temperature: float | None,
    max_response: int | None,
    chain: bool,
    every: bool,
    as_json: bool,
    file: str | None,
    seed: int,
    device: str | None,
) -> None:
    """Answers on stdout, everything else on stderr."""
    wish, looks = Wish(samples, explore, temperature, seed), Looks(chain, every, as_json)
    if file is not None and problem is not None:
        raise UserError("a problem and --file at once: ask the one without --file, or put it into the file")
    with suppress(AttributeError):  # no text is refused for the sake of its encoding
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    with answering():  # no stdout, no answer
        pass
    if file is not None:
        from lgrpo.asking import bulk

        bulk.answer_file(file, lambda report: Asker(model, device, max_response, report), wish, chain)
        return
    if problem is None and stdin.is_terminal():
        from lgrpo.asking import chat

        chat.talk(lambda name: Asker(name or model, device, max_response, _report), wish, looks)
        return
    asked = question(stdin.text() if problem is None else problem)
    if not asked.problem:
        raise UserError("no problem given; put it in quotes, or pipe it in")
    present(Asker(model, device, max_response, _report), asked, wish, looks)


def _report(text: str) -> None:
    print(clean(text), file=sys.stderr)
