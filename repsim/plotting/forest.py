"""The figure of any plans: a dot with its interval for each, the best first.

It knows what the analysis degradation gives, and neither store nor plan.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from repsim.errors import RepsimError, printable
from repsim.plotting.curves import BASELINE, GUIDE, SCORE, find_own_plans, look
from repsim.plotting.page import (
    COMPACT,
    FONT,
    LINE,
    POINTS,
    SCALE,
    WIDTHS,
    Figure,
    Width,
    blank_page,
    choose_width,
    points,
    remark,
)
from repsim.plotting.score_captions import caption_plans, name_with_examples
from repsim.plotting.words import describe, letter_panels, name_of, shortened, wrapped

MOST_ROWS = 40
COLUMNS = {"column": 1}  # of panels, where each benchmark has one; 3 elsewhere
LONGEST_NAME = {"column": 28}  # characters of a plan; 34 elsewhere
ROW = 1.35  # heights of a line of text from one plan to the next


def plan_scores(result: xr.Dataset, *, width: Width | None = None) -> Figure:
    """The mean normalised score of every plan with its interval, the best at the top; the full
    model and chance are lines.

    Where the full model is above chance in no benchmark, so that nothing can be normalised, each
    benchmark's own score has a panel. Of more than 40 plans, the plans of no curve of the paper are
    drawn, and of too many of these the best.

    Args:
        result: of `repsim.analyses.degradation`.
        width: `column` (3.35 in), `page` (6.9 in) or `slide` (10 in); by default a column for one
            panel.
    Raises:
        RepsimError: no plan but the full model has a score.
    """
    tasks = _panels_of(result)
    chosen = choose_width(width, "column" if len(tasks) < 2 else "page")
    scored = _find_scored(result, tasks)
    order, plans = _choose_rows(result, tasks, scored)
    if len(order) < len(scored):
        remark(f"plans: {len(order)} of {len(scored)} plans drawn; the data has all")

    # Panels as high as their rows.
    columns = min(COLUMNS.get(chosen, 3), len(tasks))
    rows = -(-len(tasks) // columns)
    height = _row_height(chosen)
    inches = rows * (len(order) + 5.5) * height / POINTS + 0.3
    with blank_page(chosen, inches / WIDTHS[chosen], "constrained") as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        panels = list(grid[: len(tasks)])
        for axes in grid[len(tasks) :]:
            axes.set_axis_off()
        names = _name_rows(result, order, LONGEST_NAME.get(chosen, 34))
        room = 0.7 * figure.get_figwidth() / columns
        for axes, task in zip(panels, tasks, strict=True):
            _draw_rows(axes, task, order)
            axes.set_yticks(range(len(order)), names)
            if "task" not in task.dims:
                axes.set_title(wrapped(name_with_examples(task), room))
        panels[0].set_ylim(len(order) - 0.5, -0.5)  # the first row at the top
        letter_panels(panels)
        legend: dict[str, Any] = {"loc": "outside lower center", "ncols": 2, "frameon": False}
        figure.legend(*panels[0].get_legend_handles_labels(), **legend, **COMPACT)
        title = f"{name_of(result)} · scores of {len(order)} plans"
        describe(figure, [title], caption_plans(result, plans), [result])
    return figure


def _row_height(width: str) -> float:
    """Points from one row to the next on a page of that width."""
    return FONT * SCALE.get(width, 1) * ROW


def _panels_of(result: xr.Dataset) -> list[xr.Dataset]:
    """What each panel shows: all benchmarks together, or each by itself."""
    if result["valid"].values.any():
        return [result]
    return [
        result.isel(task=task)
        for task in range(result.sizes["task"])
        if result["metric_of"].values[task]
    ]


def _value_of(panel: xr.Dataset) -> NDArray[np.float64]:
    """What a panel shows of every variant, `[variant]`."""
    values: NDArray[np.float64] = panel[_name_of_value(panel)].values
    return values


def _name_of_value(panel: xr.Dataset) -> str:
    return "mean" if "task" in panel.dims else "value"


def _find_scored(result: xr.Dataset, panels: list[xr.Dataset]) -> NDArray[np.int64]:
    """The variants with a score, the full model aside, as rows of the result.

    Raises:
        RepsimError: there is none.
    """
    has_score = np.any([np.isfinite(_value_of(panel)) for panel in panels], axis=0)
    has_score = has_score & (result["variant_family"].values != BASELINE)
    if not has_score.any():
        raise RepsimError(
            f"figure plans: none of {result.sizes['variant'] - 1} plans beside the full model has "
            "a score; evaluate with --plan PLAN --append"
        )
    return np.flatnonzero(has_score)


def _choose_rows(
    result: xr.Dataset, panels: list[xr.Dataset], scored: NDArray[np.int64]
) -> tuple[list[int], str]:
    """The variants that are drawn, the best first; and which these are, in words."""
    rows, which = scored, f"{len(scored)} plans"
    if len(rows) > MOST_ROWS:
        own = np.intersect1d(rows, np.flatnonzero(find_own_plans(result)))
        rows = own if len(own) else rows
        which = f"{len(rows)} of {which}, those of no curve of the paper" if len(own) else which
    if len(rows) > MOST_ROWS:
        which = f"the best {MOST_ROWS} of {which}"
    shares = np.stack([_value_of(panel)[rows] for panel in panels])
    means = np.nanmean(shares, axis=0)
    order = np.argsort(-means, kind="stable")[:MOST_ROWS]
    return [int(row) for row in rows[order]], which


def _name_rows(result: xr.Dataset, rows: list[int], most: int) -> list[str]:
    """The plans' names, shortened; those that are then alike get a number."""
    names = [shortened(str(result["variant"].values[row]), most) for row in rows]
    total, seen = Counter(names), Counter[str]()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return unique


def _draw_rows(axes: Axes, panel: xr.Dataset, rows: list[int]) -> None:
    """A dot and its interval for each of these variants, and lines at the full model and chance."""
    name, places = _name_of_value(panel), np.arange(len(rows))
    value, low, high = (panel[f"{name}{end}"].values[rows] for end in ("", "_low", "_high"))
    full, chance = (1.0, 0.0) if name == "mean" else (panel["baseline"].item(), panel["chance"])
    for place, label, dashes in ((full, "full model", "--"), (float(chance), "chance", ":")):
        line: dict[str, Any] = {"color": GUIDE, "linewidth": points(0.8), "linestyle": dashes}
        axes.axvline(place, **line, label=label, zorder=1)
    whiskers: dict[str, Any] = {"color": LINE, "linewidth": points(0.8), "alpha": 0.6}
    axes.hlines(places, low, high, **whiskers)
    dots = look(0) | {"linestyle": "none", "markersize": points(3), "clip_on": False}
    axes.plot(value, places, **dots)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"mean {SCORE}" if name == "mean" else printable(panel["metric_of"].item()))
