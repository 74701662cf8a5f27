"""Lines on a terminal or into a pipe, safe to show.

Names in them may come from a stranger's store, and a terminal obeys what it is sent. Help is drawn
on a terminal; what goes into a pipe has one line per option and command, so that grep finds it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from repsim.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

UNWRAPPED = 10_000  # columns, more than any line of ours has
MARKUP: Literal["rich"] | None = "rich" if sys.stdout.isatty() else None


def tell(*lines: object) -> None:
    """Prints each as one line on standard output."""
    print(*map(printable, lines), sep="\n")


def show_names(names: Sequence[str]) -> None:
    """Names in columns on a terminal, and one per line elsewhere."""
    from rich.columns import Columns

    if sys.stdout.isatty():
        console().print(Columns(map(printable, names), column_first=True, padding=(0, 2)))
    else:
        tell(*names)


def warn(line: object) -> None:
    """Prints one line on standard error."""
    print(printable(line), file=sys.stderr)


def literal(text: str) -> str:
    """A help text in which rich, which draws the help, finds no markup."""
    from rich.markup import escape

    return escape(text) if MARKUP else text


def console(stderr: bool = False) -> Console:
    """A console that wraps at a terminal's width, and nowhere else: a pipe gets whole lines."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else UNWRAPPED
    )
