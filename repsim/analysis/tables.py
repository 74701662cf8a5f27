"""Tables of numbers as text: for a terminal, a pipe, a page or a paper.

Columns are told by their names, which are those of all results: `NAME` is shown with what there is
of `NAME_low` and `NAME_high`, its interval, or else of `NAME_standard_error`. A number has as many
decimals as its error is worth. For programs (csv and json) columns stay apart and numbers whole.
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from repsim.errors import RepsimError, printable
from repsim.stats.results import tell_apart

if TYPE_CHECKING:
    from rich.table import Table

Format: TypeAlias = Literal["rich", "md", "csv", "latex", "json"]

FORMATS: tuple[Format, ...] = get_args(Format)
FOR_PROGRAMS = ("csv", "json")  # formats with every column and all digits
LEVEL = 0.05  # Holm-adjusted p-values below it are marked
MARK = "*"
NOTE = "note"  # attribute of a table: what the line below it says
ERROR, LOW, HIGH = "_standard_error", "_low", "_high"
MOST_DECIMALS = 4
LARGE, SMALL = 1e5, 1e-4  # beyond these, numbers are shown with powers of ten
ROWS = 24  # of a table that a command shows unasked
GAP = 2  # between columns
LEAST_TEXT = 8  # characters of a text that is wrapped
WIDE = 10_000  # columns, more than any table has


# From columns to cells


def merge_columns(frame: pd.DataFrame, *, latex: bool = False) -> pd.DataFrame:
    """The table as people read it: a column of text for each number with its interval or error.

    Args:
        frame: columns as the module describes them; others stay.
        latex: numbers as LaTeX sets them in mathematics; texts are left as they are.
    Returns:
        As many rows; columns that were merged are gone. Every cell is a string, an empty one where
        there is no number.
    Example:
        >>> row = {"plan": "skip", "cosine": 0.4231, "cosine_low": 0.33, "cosine_high": 0.51}
        >>> merge_columns(pd.DataFrame([row])).values.tolist()
        [['skip', '0.42 [0.33, 0.51]']]
    """
    merged: dict[str, list[str]] = {}
    for name, title in _titles(frame).items():
        values = frame[name].tolist()
        if name + LOW in frame and name + HIGH in frame:
            ends = zip(values, frame[name + LOW], frame[name + HIGH], strict=True)
            cells = [_with_interval(*each, latex=latex) for each in ends]
        elif name + ERROR in frame:
            errors = zip(values, frame[name + ERROR], strict=True)
            cells = [_with_error(*each, latex=latex) for each in errors]
        else:
            cells = [_alone(value, latex=latex) for value in values]
        merged[title] = cells
    return pd.DataFrame(merged, index=frame.index)


def _titles(frame: pd.DataFrame) -> dict[str, str]:
    """What heads each column that is not merged into another."""
    names = [str(name) for name in frame.columns]
    suffixes = {name + suffix for name in names for suffix in (ERROR, LOW, HIGH)}
    titles: dict[str, str] = {}
    for name in names:
        if name in suffixes:
            continue
        words = name.replace("_", " ")
        if name + LOW in names and name + HIGH in names:
            words = f"{words} [95 %]"
        elif name + ERROR in names:
            words = f"{words} ± standard error"
        titles[name] = printable(words)
    return titles


def _is_text(column: pd.Series[Any]) -> bool:
    return not pd.api.types.is_numeric_dtype(column)


def number_text(value: float, error: float = math.nan, *, latex: bool = False) -> str:
    """A number to as many decimals as its error is worth, or to four digits where it has none.

    Example:
        >>> number_text(0.52301, 0.0212), number_text(0.52301), number_text(1234567.0)
        ('0.523', '0.523', '1.235e+06')
        >>> number_text(-0.5, latex=True), number_text(1234567.0, latex=True)
        ('$-0.5$', '$1.235 \\\\times 10^{6}$')
    """
    if math.isnan(value):
        return ""
    if math.isinf(value):
        text = r"\infty" if latex else "inf"
        text = f"-{text}" if value < 0 else text
    elif abs(value) >= LARGE:
        text = f"{value:.{_decimals(error / 10 ** math.floor(math.log10(abs(value))))}e}"
    elif _is_spread(error):
        text = f"{value:.{_decimals(error)}f}"
    else:
        text = f"{value:.4g}" if abs(value) >= SMALL or value == 0 else f"{value:.1e}"
    if latex:
        text = re.sub(r"e[+]?(-?)0*(\d+)", r" \\times 10^{\1\2}", text)
    return f"${text}$" if latex else text


def _is_spread(error: float) -> bool:
    return math.isfinite(error) and error > 0


def _decimals(error: float) -> int:
    """Decimals that an error of this size is worth: two digits of 1.0 to 3.54, one up to 9.49.

    Three where there is no error.

    Source: Particle Data Group, Review of Particle Physics, section 5.3 of the introduction.
    """
    if not _is_spread(error):
        return 3
    exponent = math.floor(math.log10(error))
    leading = error / 10**exponent
    digits = 1 if 3.545 <= leading < 9.495 else 2
    exponent += leading >= 9.495  # it is rounded up to 10
    return min(max(digits - 1 - exponent, 0), MOST_DECIMALS)


def _with_error(value: float, error: float, *, latex: bool) -> str:
    number = number_text(value, error, latex=latex)
    if not number or math.isnan(error):
        return number
    spread = number_text(error, error, latex=latex)
    return f"{number[:-1]} \\pm {spread[1:]}" if latex else f"{number} ± {spread}"


def _with_interval(value: float, low: float, high: float, *, latex: bool) -> str:
    if math.isnan(low) or math.isnan(high):
        return number_text(value, latex=latex)
    half = (high - low) / 4  # about a standard error
    number, *ends = (number_text(each, half, latex=latex) for each in (value, low, high))
    if latex:
        return f"{number[:-1]} \\; [{ends[0][1:-1]}, {ends[1][1:-1]}]$"
    return f"{number} [{', '.join(ends)}]"


def _alone(value: Any, *, latex: bool) -> str:
    """A cell without error: texts and counts as they are."""
    if isinstance(value, float | np.floating):
        return number_text(float(value), latex=latex)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"${value}$" if latex else str(value)
    return str(value)


# From cells to text


def find_format(name: str) -> Format:
    """The format of this name.

    Raises:
        RepsimError: there is none.
    """
    for form in FORMATS:
        if form == name:
            return form
    *others, last = FORMATS
    raise RepsimError(f"format {name!r}: choose {', '.join(others)} or {last}")


def render(frame: pd.DataFrame, form: Format = "rich") -> str:
    """A table as text, with a line for its `attrs["note"]` below where people read it.

    Args:
        frame: one column per quantity; see the module.
        form: rich: aligned columns, without colour or lines (`rich_table` has these); md: a table
            of Markdown; latex: a tabular with the rules of booktabs; csv and json (records): every
            column and all digits. NaN is an empty cell, and null in json.
    Raises:
        RepsimError: there is no such format.
    Example:
        >>> row = {"plan": "a_b", "score": 0.523, "score_standard_error": 0.02}
        >>> table = pd.DataFrame([row])
        >>> print(render(table, "md"))
        | plan | score ± standard error |
        | --- | --- |
        | a_b | 0.523 ± 0.020 |
        >>> print(render(table, "latex").splitlines()[4])
        a\\_b & $0.523 \\pm 0.020$ \\\\
    """
    find_format(form)
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    if form == "json":
        text: str = frame.to_json(
            orient="records", indent=2, double_precision=15, force_ascii=False
        )
        return text
    drawn = {"md": _markdown, "latex": _latex, "rich": _aligned}[form](frame)
    note = printable(frame.attrs.get(NOTE, ""))
    between = {"md": "\n\n", "latex": "\n% ", "rich": "\n"}[form]
    return drawn + between + note if note else drawn


def rich_table(frame: pd.DataFrame, *, width: int | None = None) -> Table:
    """The table for a console of rich's.

    Args:
        frame: one column per quantity; see the module.
        width: columns of a terminal, where the head has a line below it, and heads and texts are
            wrapped before numbers are; None for plain lines of any length.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells, titles = merge_columns(frame), _titles(frame)
    texts = {title for name, title in titles.items() if _is_text(frame[name])}
    table = Table(
        box=None if width is None else box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP if width is None else GAP - 1, 0, 0),
    )
    widths = _share_width(cells, texts, WIDE if width is None else width)
    for (name, title), of_column in zip(titles.items(), widths, strict=True):
        is_plain_number = title == name and title not in texts
        justify: Literal["left", "right"] = "right" if is_plain_number else "left"
        table.add_column(Text(title), justify=justify, width=of_column, overflow="fold")
    for row in cells.itertuples(index=False):
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _share_width(cells: pd.DataFrame, texts: set[str], width: int) -> list[int | None]:
    """Columns of a terminal for each column of a table: numbers whole, words of heads whole, and of
    texts at least a few characters; None for each where that does not fit.
    """
    most, least = [], []
    for title in cells.columns:
        longest = max(map(len, cells[title]), default=0)
        most.append(max(longest, len(title)))
        whole = min(longest, LEAST_TEXT) if title in texts else longest
        least.append(max([whole, *map(len, title.split())]))
    spare = width - sum(least) - GAP * len(least)
    if spare < 0:
        return [None] * len(least)
    shared: list[int | None] = []
    for low, high in zip(least, most, strict=True):
        more = min(spare, high - low)
        spare -= more
        shared.append(low + more)
    return shared


def _aligned(frame: pd.DataFrame) -> str:
    """Plain lines, however long."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=WIDE, color_system=None, legacy_windows=False)
    console.print(rich_table(frame))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _markdown(frame: pd.DataFrame) -> str:
    """A table of Markdown; a text in it ends no cell and begins no emphasis."""
    cells = merge_columns(frame)
    rows = [list(cells.columns), ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
    escaped = [[re.sub(r"([|*<\\])", r"\\\1", printable(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _latex(frame: pd.DataFrame) -> str:
    """A tabular with the rules of booktabs; of texts every special character is escaped."""
    cells = merge_columns(frame, latex=True).map(printable)
    texts = [title for name, title in _titles(frame).items() if _is_text(frame[name])]
    styled = cells.style.hide(axis="index").format(escape="latex", subset=texts)
    styled = styled.format_index(escape="latex", axis=1)
    text: str = styled.to_latex(hrules=True, column_format="l" * len(cells.columns))
    return text.replace("±", r"$\pm$").rstrip("\n")


# Tables of stores


def shown_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """What of `Scores.to_frame()` people read: task, metric, plan, value with its error, difference
    with its interval, and a mark for differences that stand after Holm's correction.

    Args:
        frame: of `Scores.to_frame()`, all rows or some.
    Returns:
        Task by task, metric by metric, the plans in their order; `attrs["note"]` explains the mark.
    """
    shown = pd.DataFrame(
        {
            "task": frame["task"],
            "metric": frame["metric"],
            "plan": tell_apart(frame["plan_name"].tolist(), frame["plan"].tolist()),
            "value": frame["value"],
            "value" + ERROR: frame["standard_error"],
        }
    )
    if frame["difference"].notna().any():
        names = ["difference", "difference" + LOW, "difference" + HIGH]
        shown[names] = frame[names]
        shown[MARK] = np.where(frame["p_holm"] < LEVEL, MARK, "")
    # Rows of a task and metric together, in the order in which these come first.
    groups = shown.groupby(["task", "metric"], sort=False).ngroup().to_numpy()
    shown = shown.iloc[np.argsort(groups, kind="stable")].reset_index(drop=True)
    if MARK in shown:
        shown.attrs[NOTE] = (
            f"difference: from the baseline's value. {MARK} p < {LEVEL} after Holm's correction "
            "for all comparisons in the store."
        )
    return shown


def shown_plans(frame: pd.DataFrame) -> pd.DataFrame:
    """What of `Capture.table()` people read: as `shown_scores`, of log-probabilities.

    Args:
        frame: of `Capture.table()`.
    Returns:
        One row per plan; `attrs["note"]` explains the mark.
    """
    shown = frame.drop(columns="plan_name")
    shown["plan"] = tell_apart(frame["plan_name"].tolist(), frame["plan"].tolist())
    first = ["plan", "states", "samples", "tokens"]
    shown = shown[first + [name for name in shown.columns if name not in first]]
    if "difference" not in frame:
        return shown
    shown = shown.drop(columns=["difference" + ERROR, "p_value", "p_holm"])
    shown[MARK] = np.where(frame["p_holm"] < LEVEL, MARK, "")
    shown.attrs[NOTE] = (
        f"difference: of logprob, from the baseline's. {MARK} p < {LEVEL} after Holm's correction "
        "for all plans of the store."
    )
    return shown


def take_extract(frame: pd.DataFrame, rows: int = ROWS) -> pd.DataFrame:
    """The first plans of `Scores.to_frame()`, as many as give no more rows than these; of the first
    plan, the first rows, where it has more.
    """
    per_plan = int((frame["plan"] == frame["plan"].iloc[0]).sum()) if len(frame) else 1
    return frame.iloc[: max(rows // per_plan * per_plan, min(rows, per_plan))]
