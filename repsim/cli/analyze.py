"""`repsim analyze`: a command per installed analysis, made from signature and docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from repsim.cli.options import (
    POSITIONAL,
    DeviceOption,
    FiguresOption,
    LabelOption,
    QuietOption,
    StoresArgument,
    parameter,
    parameters_of,
    set_parameters,
)
from repsim.cli.printing import MARKUP, literal, tell
from repsim.cli.progress import show_remarks
from repsim.cli.table import print_table
from repsim.errors import RepsimError
from repsim.options import FigureOptions, PlanOptions, options_of
from repsim.schema import ANALYSES, Kind

if TYPE_CHECKING:
    from types import ModuleType

    from repsim.analysis.run import Analysis


PLAN_HELP = (
    "A plan, family, sweep, named set, a name in the store, @FILE, or all of the store; repeatable."
)


class AnalysisGroup(TyperGroup):
    """One command per installed analysis, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the installed analyses."""
        return sorted(entry_points(group=ANALYSES).names)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The names that a shell may complete to, as a group of empty commands has them: to import
        the analyses would take seconds.
        """
        commands = {name: _single_command(name, _nothing) for name in self.list_commands(ctx)}
        group = TyperGroup(name=self.name, commands=commands)
        context = group.make_context(self.name, [], parent=ctx, resilient_parsing=True)
        return group.shell_complete(context, incomplete)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The analysis's command; where a package's analysis is broken, one that says how."""
        from repsim.registry import broken_analysis, installed, load_analysis

        entry = installed().get(cmd_name)
        if entry is None:
            return None
        try:
            return analysis_command(cmd_name, load_analysis(entry))
        except RepsimError as problem:
            return refusing_command(cmd_name, str(problem))
        except Exception as problem:
            # No command can be made of its signature or its docstring.
            return refusing_command(cmd_name, str(broken_analysis(entry, problem)))


def _nothing() -> None:
    pass


def analysis_command(name: str, module: ModuleType) -> Any:
    """The command of one analysis, its options read from signature and docstring of `compute` and
    `plot`.
    """
    from repsim.registry import figure_options_of, keywords_of, kind_of

    def command(
        stores: list[str],
        label: list[str],
        figures: Path,
        quiet: bool,
        **options: Any,
    ) -> None:
        import repsim

        def show(part: Analysis) -> None:
            if part.lines and not quiet:
                tell(*part.lines)
                for table in part.tables:
                    print_table(table)

        with show_remarks(quiet):
            repsim.analyze(
                name,
                stores,
                labels=label,
                figures=figures,
                progress=show,
                **options,
            )

    texts = argument_help(module.plot) | argument_help(module.compute)
    keywords = [*keywords_of(module.compute), *keywords_of(module.plot)]
    of_figures = figure_options_of(module)
    of_states = kind_of(module).reads is Kind.CAPTURE
    without = [name for name in options_of(FigureOptions) if name not in of_figures]
    set_parameters(
        command,
        parameter("stores", StoresArgument),
        *(_option(keyword, texts.get(keyword.name)) for keyword in keywords),
        parameter("label", LabelOption, []),
        parameter("figures", FiguresOption, Path("figures")),
        *([parameter("device", DeviceOption, "auto")] if of_states else []),
        *parameters_of(FigureOptions, without=without),
        parameter("quiet", QuietOption, False),
    )
    command.__doc__ = literal((inspect.getdoc(module.compute) or name).partition("\n")[0])
    return _single_command(name, command)


def refusing_command(name: str, reason: str) -> Any:
    """A command that takes anything and does nothing but say why it cannot be run."""

    def command() -> None:
        raise RepsimError(reason)

    command.__doc__ = literal(reason)
    return _single_command(name, command, ignore_unknown_options=True, allow_extra_args=True)


def argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """Name -> text of the entries under `Args:` in a function's docstring (Google style)."""
    from docstring_parser import DocstringStyle, parse

    entries = parse(inspect.getdoc(function) or "", DocstringStyle.GOOGLE).params
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in entries}


def _option(keyword: inspect.Parameter, text: str | None) -> inspect.Parameter:
    """A keyword of `compute` or `plot` as an option; `plan` is repeatable in every command."""
    from repsim.registry import option_name, takes_store

    if keyword.name == "plan":
        (plan,) = parameters_of(PlanOptions, plan=PLAN_HELP)
        default = keyword.default
        return plan.replace(default=[default] if isinstance(default, str) else list(default))
    about: dict[str, Any] = {"help": text and literal(text)}
    taken: Any = keyword.annotation
    spellings = [f"--{option_name(keyword.name)}"] if keyword.name.endswith("_") else []
    if takes_store(keyword):
        taken, about = str | None, {**about, "metavar": "STORE"}
    return keyword.replace(
        annotation=Annotated[taken, typer.Option(*spellings, **about)], kind=POSITIONAL
    )


def _single_command(name: str, command: Callable[..., None], **settings: Any) -> Any:
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=MARKUP
    )
    single.command(name, context_settings=settings)(command)
    return typer.main.get_command(single)
