"""The figure of scores against what plans cost: their sequential steps and their measured time.

It knows what the analysis latency gives, and neither store nor plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.plotting.curves import (
    BASELINE,
    NARROW,
    SCORE,
    draw_guides,
    draw_legend,
    families_in_order,
    find_own_plans,
    known_family,
    label_of_family,
    look,
    look_of_family,
    write_note,
)
from repsim.plotting.page import MARK, Figure, Width, blank_page, choose_width, points
from repsim.plotting.score_captions import caption_latency
from repsim.plotting.words import describe, letter_panels, name_of, shortened

LONG = 3  # times the full model's time, from which times are drawn on a logarithmic axis
# What such an axis labels.
TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


MOST_NAMED = NARROW  # plans of no curve that the legend names one by one
LONGEST_NAME = 28  # characters of a plan in the legend
# By width: rows and columns of panels, height as a multiple of the width, columns of the legend
# where it is below.
LAYOUTS = {
    "column": ((2, 1), 1.75, 2),
    "page": ((1, 2), 0.42, 0),
    "slide": ((1, 2), 0.62, 3),
}
COSTS = ("critical_path", "milliseconds")


@dataclass(frozen=True, eq=False)
class Group:
    """Variants that look alike and have one entry in the legend.

    rows: which of the result, `[variant]`, bool.
    """

    label: str
    rows: NDArray[np.bool_]
    style: dict[str, Any]


def latency(result: xr.Dataset, *, width: Width | None = None) -> Figure:
    """Mean normalised score of each plan against its critical path and against its measured time
    per token.

    Both are relative to the full model's. A plan that was not timed is in the first panel only.
    Plans of no curve of the paper are named one by one where they are few.

    Args:
        result: of `repsim.analyses.latency`.
        width: `column` (3.35 in), `page` (6.9 in, the default) or `slide` (10 in).
    Raises:
        RepsimError: the full model is not in the result, or nothing has a score.
    """
    families, mean = result["variant_family"].values, result["mean"].values
    is_scored = np.isfinite(mean)
    if BASELINE not in families:
        raise RepsimError(
            "latency: the full model is not in the result; add --plan baseline --append"
        )
    if not is_scored.any():
        raise RepsimError(f"latency: none of {len(mean)} variants has a normalised score")
    full = result.isel(variant=int(np.flatnonzero(families == BASELINE)[0]))
    steps, milliseconds = int(full["critical_path"]), float(full["milliseconds"])
    chosen = choose_width(width, "page")
    shape, height, below = LAYOUTS[chosen]
    with blank_page(chosen, height, "constrained") as figure:
        # Two panels, which share the axis of scores.
        panels = left, right = figure.subplots(*shape, sharey=True)
        for axes, cost in zip(panels, COSTS, strict=True):
            _draw_costs(axes, result, cost, float(full[cost]))
            if axes is left or chosen == "column":
                axes.set_ylabel(f"mean {SCORE}")
        left.set_xlabel(f"critical path / full model's ({steps} steps)")
        time = f" ({milliseconds:.3g} ms)" if np.isfinite(milliseconds) else ""
        right.set_xlabel(f"time per token / full model's{time}")
        letter_panels(panels)
        draw_legend(figure, right, left, below=below)
        title = f"{name_of(result)} · scores against sequential steps and time"
        describe(figure, [title], caption_latency(result), [result])
    return figure


def _draw_costs(axes: Axes, result: xr.Dataset, name: str, full: float) -> None:
    """Each plan's mean score against a cost as a share of the full model's, which is a star; rare
    families on top.

    Args:
        axes: the panel.
        result: what is drawn.
        name: of the cost; its spread has `_low` and `_high`.
        full: the full model's.
    """
    mean, cost = result["mean"].values, result[name].values / full
    score_error = np.abs(np.stack([result["mean_low"].values, result["mean_high"].values]) - mean)
    cost_error = np.zeros((2, len(cost)))
    if f"{name}_low" in result:
        ends = np.stack([result[f"{name}_{end}"].values for end in ("low", "high")])
        cost_error = np.nan_to_num(np.abs(ends / full - cost))

    # Points, one group after another.
    for group in _group_variants(result):
        rows, order = group.rows, 3 - group.rows.mean()
        whiskers: dict[str, Any] = {
            "fmt": "none",
            "ecolor": group.style["color"],
            "elinewidth": points(0.4),
            "alpha": 0.4,
        }
        errors: dict[str, Any] = {"yerr": score_error[:, rows], "xerr": cost_error[:, rows]}
        axes.errorbar(cost[rows], mean[rows], **errors, **whiskers, zorder=order)
        dots: dict[str, Any] = {"linestyle": "none", "markersize": points(2.5), "clip_on": False}
        style = group.style | dots
        axes.plot(cost[rows], mean[rows], **style, label=group.label, zorder=order)

    # The full model.
    draw_guides(axes, 0, 1)
    star: dict[str, Any] = {
        "color": MARK,
        "markersize": points(8),
        "markeredgecolor": "black",
        "markeredgewidth": points(0.4),
        "clip_on": False,
    }
    base = result["variant_family"].values == BASELINE
    axes.plot(cost[base], mean[base], "*", **star, label="full model", zorder=1.5)

    # The axis of costs begins and ends with what was measured.
    if np.isnan(cost).all():
        write_note(axes, "not measured")
        axes.set_xticks([])
    elif np.nanmax(cost) > LONG:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([time for time in TIMES if low <= time <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())


def _group_variants(result: xr.Dataset) -> list[Group]:
    """The variants but for the full model: family by family, and plans of no curve by their names
    where these are few.

    Plans of no family that is known here are a group as well, so that none vanishes.
    """
    families, names = result["variant_family"].values, result["variant"].values
    is_own = find_own_plans(result)
    if is_own.sum() > MOST_NAMED:
        is_own[:] = False
    drawn = np.array([known_family(family) for family in families], object)
    groups = [
        Group(label_of_family(family), rows, look_of_family(family))
        for family in families_in_order()
        if (rows := (drawn == family) & ~is_own).any()
    ]
    first = len(families_in_order())
    for index, row in enumerate(np.flatnonzero(is_own).tolist()):
        rows = np.arange(len(names)) == row
        groups.append(Group(shortened(str(names[row]), LONGEST_NAME), rows, look(first + index)))
    return groups
