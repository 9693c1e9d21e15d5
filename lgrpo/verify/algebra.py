"""The process that `verify.py` starts to compare answers by computer algebra, and may kill at any moment.

It imports math-verify and nothing else of weight. One JSON line in, `[number, reference, answer]`; one JSON line out,
`[number, equal, failure]`, where failure is null or a few words. The first line out is `[0, true, null]` when it is
ready, or `[0, false, what went wrong]`.

Left alone with an endless calculation, by a parent that was killed, it ends by an alarm of the operating system; where
that has none (Windows), it goes on until it is done.
"""

import contextlib
import json
import os
import re
import signal
import sys
from dataclasses import replace
from functools import lru_cache
from typing import Any

from lgrpo.interrupt import SIGNALS

MEMORY = 1 << 30  # bytes of address space, 65 MB of which are the libraries': a tower of powers meets this limit first
_SCIENTIFIC = re.compile(r"([-+]?[0-9]+\.?[0-9]*)[eE]([-+]?[0-9]{1,3})")  # what a float can be


def equivalent(reference: str, answer: str) -> bool:
    """Whether two pieces of LaTeX mean the same. Raises LookupError where the reference cannot be read."""
    from math_verify import verify

    expected = _meaning(reference)
    if not expected:
        raise LookupError("reference cannot be read")
    given = _meaning(answer)
    return bool(given) and bool(verify(expected, given, timeout_seconds=None, raise_on_error=True))


@lru_cache(maxsize=1024)  # a group's reference is read once
def _meaning(text: str) -> list[Any]:
    """What the text means, as a list that is empty where it means nothing to math-verify.

    Only LaTeX is read: the fallback for bare expressions picks a number out of text it does not understand. At first
    units are dropped; then they are kept, since `c` and `t` are units too, and `a + b + c` is lost without. Both
    time-outs are off because math-verify's are signals: the parent's is the only one. The e of `6.02e23` is a factor in
    LaTeX.
    """
    from math_verify import LatexExtractionConfig, parse

    if scientific := _SCIENTIFIC.fullmatch(text):
        text = rf"{scientific[1]} \times 10^{{{scientific[2]}}}"
    usual = LatexExtractionConfig()
    with_units = replace(usual, normalization_config=replace(usual.normalization_config, units=False))
    for how in (usual, with_units):
        if meaning := parse(f"${text}$", [how], fallback_mode="no_fallback", parsing_timeout=None):
            return meaning
    return []


def _give_up_rights() -> None:
    """As far as the operating system lets us: no more than MEMORY, no byte into any file, and first to go."""
    with contextlib.suppress(ImportError):
        import resource

        for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            _, hard = resource.getrlimit(kind)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))
    # A machine that runs out of memory all the same ends this process (Linux), not the training that started it.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _alarm(seconds: float) -> None:
    """Let the operating system end this process after so many seconds; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(timeout: float) -> None:
    # Whatever a library prints must not get between the answers.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for number in SIGNALS:  # Ctrl-C, a closed terminal, a stop of all processes of a job are for the parent, which ends
        signal.signal(number, signal.SIG_IGN)  # this one by itself once the answer at hand is graded

    def say(number: int, equal: bool, failure: str | None) -> None:
        channel.write(json.dumps([number, equal, failure]) + "\n")
        channel.flush()

    try:
        equivalent("\\frac{1}{2}", "0.5")
    except Exception as error:
        say(0, False, f"{type(error).__name__}: {error}")
        return
    _give_up_rights()
    say(0, True, None)
    for line in sys.stdin:
        number, reference, answer = json.loads(line)
        _alarm(2 * timeout + 1)
        try:
            say(number, equivalent(reference, answer), None)
        except LookupError as error:
            say(number, False, str(error))
        except Exception as error:  # MemoryError, RecursionError and all that sympy may raise
            say(number, False, type(error).__name__)
        _alarm(0)
