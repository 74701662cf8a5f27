"""`repsim plans`: which plans there are, and what one runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from repsim.cli.printing import console

DEFAULT_LAYERS = 30  # of the default model
LINE_WIDTH = 79  # columns of a drawing on a terminal


def plans(ctx: typer.Context) -> None:
    """Lists the plan families and the named sets."""
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table

    from repsim.plans import FAMILIES, SETS

    table = Table.grid(padding=(0, 2))
    for family in FAMILIES.values():
        table.add_row(family.usage, family.summary)
    table.add_row("")
    for named in SETS.values():
        table.add_row(named.name, named.summary)
    console().print(table)


def show(
    plan: Annotated[
        str, typer.Argument(help="A plan, family, sweep, named set or @FILE of plans.")
    ],
    layers: Annotated[
        int, typer.Option(help="The model's number of layers, T.", min=1, max=100_000)
    ] = DEFAULT_LAYERS,
) -> None:
    """Draws what a plan runs, step by step; counts plans, steps and trie nodes of a set."""
    from repsim.plans import PlanTrie, describe, draw, read_plans, resolve

    named_plans = resolve(read_plans(plan), layers)

    # One plan is drawn.
    if len(named_plans) == 1:
        (named,) = named_plans
        wrap = LINE_WIDTH if sys.stdout.isatty() else None
        print(
            f"{named.name}: {named.plan.text}",
            draw(named.plan, layers, wrap=wrap),
            *describe(named.plan),
            sep="\n",
        )
        return

    # A set is counted: what it costs plan by plan, and where shared beginnings run once.
    trie = PlanTrie.build(named.plan for named in named_plans)
    steps = sum(len(named.plan) for named in named_plans)
    applications = sum(named.plan.applications for named in named_plans)
    print(f"{plan}: {len(named_plans):,} plans of a {layers}-layer model")
    print(f"{steps:,} steps; {len(trie):,} trie nodes, the root included")
    print(
        f"{applications:,} layer applications plan by plan, {trie.applications:,} through the trie"
    )
