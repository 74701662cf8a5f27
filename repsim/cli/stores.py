"""`repsim info` and `repsim verify`: what a store is, and whether it is sound."""

from __future__ import annotations

import typer

from repsim.cli.options import StoreArgument
from repsim.cli.printing import tell
from repsim.errors import printable


def info(store: StoreArgument) -> None:
    """Prints what a store is: identity, plans, tokens or tasks, completeness, versions."""
    import repsim

    for name, value in repsim.open(store).info.items():
        print(f"{name + ':':<15} {printable(value)}")


def verify(store: StoreArgument) -> None:
    """Reads a whole store; names every damaged or missing chunk, and exits with 1 for any."""
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
    tell(*repsim.stores.repair_advice(store, report))
    raise typer.Exit(1)
