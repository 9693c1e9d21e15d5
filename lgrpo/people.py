"""How the command line speaks to people: what they can mend in one line, help and version where stdout takes them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from lgrpo.errors import UserError
from lgrpo.interrupt import Stopped, terminate_like_ctrl_c
from lgrpo.stderr import spectate
from lgrpo.stdout import answering
from lgrpo.text import clean

F = TypeVar("F", bound=Callable[..., Any])
NO_MEMORY = (
    "out of memory: free some, or take a smaller model, shorter rows or fewer at a time; "
    "a run goes on from its latest checkpoint with the same command"
)
_OUT_OF_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator: can't allocate memory|std::bad_alloc")


class People(click.Group):
    """What a user can mend is said in one line, the remedy in it, and ends with code 2."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The program itself: its stderr is its own."""
        spectate()
        return super().__call__(*arguments, **named)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as they are used, not by the alphabet

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if not args:  # the whole help is click's answer, and on stderr
            return super().make_context(info_name, args, parent, **extra)
        with _one_line(str(info_name)):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        terminate_like_ctrl_c()
        try:
            with _one_line(ctx.command_path):
                return super().invoke(ctx)
        except Stopped:
            sys.exit(130)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            sys.exit(130)


@contextmanager
def _one_line(command: str) -> Iterator[None]:
    """Of whatever a user can mend. command: whose help is named, where the error does not say in which it was made."""
    try:
        yield
    except UserError as error:
        raise click.UsageError(clean(str(error))) from None
    except (MemoryError, RuntimeError) as error:  # a GPU's, and PyTorch's on a CPU, are RuntimeErrors that say so
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise click.UsageError(NO_MEMORY) from None
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else command
        raise click.UsageError(f"{clean(error.format_message())} (see `{where} --help`)") from None


def telling(words: Callable[[click.Context], str], *names: str, help: str) -> Callable[[F], F]:
    """An option that says something on stdout, after which nothing else is done; click's own ignore a stdout closed."""

    def tell(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            with answering():
                click.echo(words(context))
            context.exit()

    return click.option(*names, is_flag=True, is_eager=True, expose_value=False, help=help, callback=tell)


helping = telling(click.Context.get_help, "-h", "--help", help="Show this message and exit.")
