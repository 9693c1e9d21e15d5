"""What the command line takes as the value of an option or argument, and how it refuses another."""

from typing import Any

import click
from click.types import StringParamType

from lgrpo.ranges import Range


class Real(click.FloatRange):
    """A number in a range; to click, nan lies in every one."""

    def __init__(self, numbers: Range):
        super().__init__(0, numbers.most, min_open=not numbers.zero)
        self.numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if not self.numbers.holds(found):
            self.fail(f"{found} is not in the range: {self.numbers}.", param, ctx)
        return found


class Name(StringParamType):
    """Of a model or of data. An empty one is a variable of the shell that is not set: it never stands for none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found: str = super().convert(value, param, ctx)
        if not found.strip():
            self.fail("it is empty; name one, or leave it out", param, ctx)
        return found


NAME = Name()


def whole(numbers: Range, least: int = 1) -> click.IntRange:
    """A whole number from `least` on."""
    return click.IntRange(least, int(numbers.most))
