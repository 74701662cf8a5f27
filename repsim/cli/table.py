"""`repsim table`, and the tables that other commands end with."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from repsim.cli.options import StoreArgument
from repsim.cli.printing import console, tell, warn
from repsim.cli.progress import show_remarks

if TYPE_CHECKING:
    import pandas as pd

    from repsim.evaluation.reader import Scores


def table(
    store: StoreArgument,
    form: Annotated[
        str, typer.Option("--format", "-f", help="rich, md, csv, latex (booktabs) or json.")
    ] = "rich",
    plan: Annotated[
        list[str],
        typer.Option("--plan", "-p", metavar="PLAN", help="Of these plans alone; repeatable."),
    ] = [],  # noqa: B006
    task: Annotated[
        list[str],
        typer.Option("--task", "-t", metavar="TASK", help="Of these tasks alone; repeatable."),
    ] = [],  # noqa: B006
) -> None:
    """Prints a store's numbers as a table: scores, or log-probabilities of a capture's plans."""
    import repsim
    from repsim.analysis import tables

    chosen = tables.find_format(form)
    opened = repsim.open(store)
    with show_remarks(quiet=False):
        frame = repsim.table(opened, plan=plan, task=task)
    if opened.remark:
        warn(f"incomplete: {opened.remark}")
    if chosen not in tables.FOR_PROGRAMS:
        frame = tables.shown_scores(frame) if "task" in frame else tables.shown_plans(frame)
    if chosen == "rich":
        print_table(frame)
    else:
        print(tables.render(frame, chosen))


def print_table(frame: pd.DataFrame) -> None:
    """Draws a table on a terminal; a pipe gets plain lines."""
    from repsim.analysis import tables

    screen = console()
    if not screen.is_terminal:
        print(tables.render(frame))
        return
    screen.print(tables.rich_table(frame, width=screen.width))
    if note := frame.attrs.get(tables.NOTE):
        tell(note)


def print_scores(scores: Scores) -> None:
    """The table of scores; of hundreds of rows an extract, and how to see them all."""
    from repsim.analysis import tables

    frame = scores.to_frame()
    extract = tables.take_extract(frame)
    if len(extract):
        print_table(tables.shown_scores(extract))
    if len(extract) < len(frame):
        command = f"repsim table {shlex.quote(str(scores.path))}"
        tell(f"{len(extract):,} of {len(frame):,} rows; all of them: {command}")
