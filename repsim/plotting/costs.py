"""The figure of scores against what plans cost: their sequential steps and their measured time.

It knows what the analysis latency gives, and neither store nor plan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.plotting.curves import (
    BASELINE,
    SCORE,
    describe_intervals,
    draw_guides,
    draw_legend,
    families_in_order,
    known_family,
    label_of_family,
    look_of_family,
    write_note,
    write_title,
)
from repsim.plotting.page import MARK, Figure, blank_page

LONG = 3  # times the full model's time, from which times are drawn on a logarithmic axis
# What such an axis labels.
TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def latency(result: xr.Dataset) -> Figure:
    """Mean normalised score of each plan against its critical path and against its measured time
    per token.

    Both are relative to the full model's. A plan that was not timed is in the left panel only.

    Args:
        result: of `repsim.analyses.latency`.
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
    with blank_page("page", 0.42, "constrained") as figure:
        # Two panels, which share the axis of scores.
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_costs(left, result, result["critical_path"].values / steps)
        _draw_costs(right, result, result["milliseconds"].values / milliseconds)
        left.set(ylabel=f"mean {SCORE}", xlabel=f"critical path / the full model's ({steps} steps)")
        time = f" ({milliseconds:.3g} ms)" if np.isfinite(milliseconds) else ""
        right.set_xlabel(f"time per token / the full model's{time}")
        draw_legend(right, left)

        # The title.
        timed = int(np.isfinite(result["milliseconds"].values).sum())
        benchmarks = result.attrs.get("benchmarks")
        lines = (
            "scores against sequential steps and time",
            f"mean over {benchmarks}" if benchmarks else "",
            f"{is_scored.sum()} of {len(mean)} variants have a score, {timed} were timed · "
            f"{describe_intervals(result)}",
        )
        write_title(figure, result, *lines)
    return figure


def _draw_costs(axes: Axes, result: xr.Dataset, cost: NDArray[np.float64]) -> None:
    """Each plan's mean score against a cost as a share of the full model's, which is a star; rare
    families on top.

    cost: `[variant]`.
    """
    # Points, one family after another; plans of no family that is known here are one as well.
    mean, families = result["mean"].values, result["variant_family"].values
    error = np.abs(np.stack([result["mean_low"].values, result["mean_high"].values]) - mean)
    drawn = np.array([known_family(family) for family in families], object)
    for family in families_in_order():
        if not (rows := drawn == family).any():
            continue
        style, order = look_of_family(family), 3 - rows.mean()
        whiskers: dict[str, Any] = {
            "fmt": "none",
            "ecolor": style["color"],
            "elinewidth": 0.4,
            "alpha": 0.4,
        }
        axes.errorbar(cost[rows], mean[rows], error[:, rows], **whiskers, zorder=order)
        axes.plot(
            cost[rows],
            mean[rows],
            **style,
            linestyle="none",
            markersize=2.5,
            label=label_of_family(family),
            zorder=order,
        )

    # The full model.
    draw_guides(axes, 0, 1)
    star: dict[str, Any] = {
        "color": MARK,
        "markersize": 8,
        "markeredgecolor": "black",
        "markeredgewidth": 0.4,
    }
    base = families == BASELINE
    axes.plot(cost[base], mean[base], "*", **star, label="full model", zorder=4)

    # The axis of costs.
    if np.isnan(cost).all():
        write_note(axes, "not measured")
        axes.set_xticks([])
    elif np.nanmax(cost) > LONG:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([time for time in TIMES if low <= time <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
