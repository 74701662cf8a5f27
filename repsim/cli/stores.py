"""`repsim info` and `repsim verify`: what a store is, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repsim.cli.options import StoreArgument
from repsim.cli.printing import tell
from repsim.cli.progress import show_remarks
from repsim.cli.table import print_scores
from repsim.errors import printable


def info(store: StoreArgument) -> None:
    """Prints what a store is: identity, plans, tokens or tasks, completeness, versions; scores."""
    import repsim

    opened = repsim.open(store)
    for name, value in opened.info.items():
        print(f"{name + ':':<15} {printable(value)}")
    if isinstance(opened, repsim.Scores):
        print()
        with show_remarks(quiet=False):
            print_scores(opened)


def verify(
    store: StoreArgument,
    model: Annotated[
        Path | None, typer.Option(exists=True, help="Where its model is, for the repair command.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(exists=True, help="Where its corpus is, likewise.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where its tasks' data are, likewise."),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where tasks of one's own are, likewise."),
    ] = None,
) -> None:
    """Reads a whole store; names every damaged or missing chunk, and exits with 1 for any."""
    from rich import filesize

    import repsim

    report = repsim.verify(store)

    # Damage first, then what could not be checked.
    for damage in report.damages:
        tell(damage)
    if report.foreign:
        tell(f"not repsim's, not read: {', '.join(report.foreign)}")
    if report.unchecked:
        tell(f"without checksums, not checked: {report.unchecked}")

    # The verdict, and how to repair.
    read = f"{report.chunks:,} chunks, {filesize.decimal(report.bytes)} read"
    if not report.damages:
        tell(f"{store}: sound; {read}")
        return
    parts = "1 part" if len(report.damages) == 1 else f"{len(report.damages):,} parts"
    tell(f"{store}: {parts} damaged or missing; {read}")
    places = {
        "model": model,
        "corpus": corpus,
        "data_dir": data_dir,
        "include_path": include_path,
    }
    tell(*repsim.stores.repair_advice(store, report, **places))
    raise typer.Exit(1)
