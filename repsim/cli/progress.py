"""How far a run is, and what the library remarks on the way, on standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from repsim.cli.printing import console
from repsim.errors import printable

if TYPE_CHECKING:
    from repsim.jobs.interruption import Progress

SECONDS_BETWEEN_LINES = 10  # where there is no terminal

log = logging.getLogger("repsim")


class OneLine(logging.Formatter):
    """A remark of the library as one line that is safe to show."""

    def format(self, record: logging.LogRecord) -> str:
        """The message alone; a level or a time would say nothing to a user."""
        return printable(record.getMessage())


@contextmanager
def show_remarks(quiet: bool) -> Iterator[None]:
    """Shows the library's remarks for the length of a `with` block; only errors where quiet."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def show_progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What shows a run's progress: a bar on a terminal, a line now and then elsewhere.

    Remarks of the library are shown as well.
    """
    with show_remarks(quiet):
        if quiet:
            yield lambda _: None
        elif sys.stderr.isatty():
            with progress_bar() as show:
                yield show
        else:
            yield progress_lines()


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar with the rate and the time left."""
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]} tokens/s"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="-")
        start = 0.0

        def show(state: Progress) -> None:
            nonlocal start
            start = start or time.monotonic()  # loading the model is no part of the rate
            rate = f"{state.tokens / (time.monotonic() - start):,.0f}" if state.tokens else "-"
            bar.update(task, completed=state.tokens, total=state.total, rate=rate)

        yield show


def progress_lines() -> Callable[[Progress], None]:
    """A line every ten seconds, and one at the end."""
    start = last_line = 0.0

    def show(state: Progress) -> None:
        nonlocal start, last_line
        now = time.monotonic()
        if not state.tokens:
            start = last_line = now  # loading the model is no part of the rate
            return
        if now - last_line < SECONDS_BETWEEN_LINES and state.tokens < state.total:
            return
        last_line = now
        rate = state.tokens / (now - start)
        seconds_left = (state.total - state.tokens) / rate
        line = (
            f"{state.tokens:,} of {state.total:,} tokens, {rate:,.0f} tokens/s, "
            f"{seconds_left:,.0f} s left"
        )
        print(line, file=sys.stderr, flush=True)

    return show
