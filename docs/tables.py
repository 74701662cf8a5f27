"""The tables of README.md and docs/ that repeat what the program knows about itself.

Commands, options, analyses, plan families and named sets are each defined in one place in the code.
This script writes them between the marks `<!-- table: NAME -->` and `<!-- end of table -->`;
`make docs` runs it, and tests/docs/test_docs.py fails where a table is out of date.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

from repsim.cli.main import app
from repsim.options import FigureOptions, options_of
from repsim.plans import FAMILIES, SETS
from repsim.schema import ANALYSES

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- table: ([\w -]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
REPSIM = typer.main.get_command(app)
COMMANDS = ("capture", "evaluate", "table", "analyze", "info", "verify", "plans", "plans show")
# Options that every analysis has; they have a table of their own.
SHARED = ("plan", "label", "figures", "device", *options_of(FigureOptions), "quiet")


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and every page below docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command(path: str) -> Any:
    """The parser's object for a command such as `plans show`."""
    found: Any = REPSIM
    context = found.make_context("repsim", ["plans"])
    for name in path.split():
        found = found.get_command(context, name)
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _command_rows() -> Iterable[Sequence[object]]:
    for path in COMMANDS:
        text = " ".join((command(path).help or "").split())
        yield f"`repsim {path}`", text


def _option_rows(
    path: str, *, only: Sequence[str] | None = None, without: Sequence[str] = ()
) -> Iterable[Sequence[object]]:
    for parameter in command(path).params:
        if parameter.param_type_name != "option" or parameter.name in without:
            continue
        if only is not None and parameter.name not in only:
            continue
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        default = parameter.default
        if isinstance(default, list):
            default = " ".join(default)
        shown = "" if default is None or default is False or default == "" else f"`{default}`"
        yield names, shown, " ".join((parameter.help or "").split())


def _analysis_rows() -> Iterable[Sequence[object]]:
    for entry in sorted(entry_points(group=ANALYSES), key=lambda entry: entry.name):
        if not entry.value.startswith("repsim."):
            continue  # of another package
        specification = importlib.util.find_spec(entry.value)
        assert specification is not None
        assert specification.origin is not None
        text = ast.get_docstring(ast.parse(Path(specification.origin).read_text("utf-8"))) or ""
        yield f"`{entry.name}`", " ".join(text.partition("\n\n")[0].split())


def tables() -> dict[str, str]:
    """Name to Markdown of every table."""
    options = ("option", "default", "meaning")
    made = {
        "commands": table(("command", "what it does"), _command_rows()),
        "analyses": table(("`repsim analyze`", "question and answer"), _analysis_rows()),
        "families": table(
            ("family", "what runs"), ((f"`{f.usage}`", f.summary) for f in FAMILIES.values())
        ),
        "sets": table(("set", "plans"), ((f"`{s.name}`", s.summary) for s in SETS.values())),
        "options of capture": table(options, _option_rows("capture")),
        "options of evaluate": table(options, _option_rows("evaluate")),
        "options of table": table(options, _option_rows("table")),
        "options of every analysis": table(options, _option_rows("analyze cosine", only=SHARED)),
    }
    for name in sorted(entry_points(group=ANALYSES).names):
        made[f"options of {name}"] = table(options, _option_rows(f"analyze {name}", without=SHARED))
    return made


def filled(text: str, made: dict[str, str]) -> str:
    """A page with its tables replaced by those of today."""
    return TABLE.sub(lambda match: match[1] + made[match[2]] + match[3], text)


def main() -> None:
    """Writes every page whose tables have changed, and names it."""
    made = tables()
    for page in pages():
        text = page.read_text("utf-8")
        new = filled(text, made)
        if new != text:
            page.write_text(new, "utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
