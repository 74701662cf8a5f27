"""The commands, put together: capture, evaluate, analyze, table, plans, info and verify."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from repsim.cli.analyze import AnalysisGroup
from repsim.cli.capture import capture
from repsim.cli.evaluate import evaluate
from repsim.cli.options import dashed
from repsim.cli.plans import plans, show
from repsim.cli.printing import MARKUP, UNWRAPPED
from repsim.cli.stores import info, verify
from repsim.cli.table import table

ANALYZE_HELP = "Analyses a store and draws the figure."

# Of all commands: each hands them down to those below it.
SETTINGS: dict[str, Any] = {
    "token_normalize_func": dashed,
    "help_option_names": ["--help", "-h"],
}
if MARKUP is None:
    SETTINGS["terminal_width"] = UNWRAPPED

app = typer.Typer(
    help="Representation analysis of transformers under layer plans.",
    rich_markup_mode=MARKUP,
    context_settings=SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (capture, evaluate, table, info, verify):
    app.command()(command)

analyze_app = typer.Typer(
    cls=AnalysisGroup, help=ANALYZE_HELP, no_args_is_help=True, rich_markup_mode=MARKUP
)
app.add_typer(analyze_app, name="analyze")

plans_app = typer.Typer(
    help="Lists plan families and sets; `show` draws a plan.",
    invoke_without_command=True,
    rich_markup_mode=MARKUP,
)
plans_app.callback()(plans)
plans_app.command()(show)
app.add_typer(plans_app, name="plans")


def _say_version(wanted: bool) -> None:
    if wanted:
        from repsim import __version__

        print(f"repsim {__version__}")
        raise typer.Exit


@app.callback()
def _repsim(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """What `repsim` takes before a command."""


@analyze_app.callback(help=ANALYZE_HELP)
def _analyze() -> None:
    """Makes a group of it, though it has no command before an analysis is asked for."""
