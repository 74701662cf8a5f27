"""The figure of several stores' scores: side by side, and as differences to the first.

Source: the forest plots of meta-analysis, Lewis & Clarke 2001, and of ArviZ, `plot_forest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from repsim.errors import RepsimError, printable
from repsim.plotting.captions import describe_interval, join_sentences
from repsim.plotting.curves import GUIDE, look
from repsim.plotting.page import (
    COMPACT,
    FONT,
    POINTS,
    SCALE,
    WIDTHS,
    Figure,
    Width,
    blank_page,
    choose_width,
    points,
)
from repsim.plotting.words import WIDEST, describe, letter_panels, wrapped

MEAN = "mean over tasks"
MOST_ROWS = 48  # of a figure that fits a page
ROW, STORE = 0.09, 0.06  # inches of height: of a row, and for each store in it
BESIDE, LEGEND = 0.62, 0.14  # around the rows: title and axes, and per row of the legend
APART = 0.7  # of a row's height that its stores are spread over
TICKS = {"column": 3}  # most along x; 6 elsewhere
HANDLE = 8  # characters that a legend's line is as wide as
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ForestRow:
    """A line of the figure: a task, the mean over tasks, or a heading without numbers.

    label: what stands at the left.
    place: on the y axis, downwards from 0.
    values: the result at this plan and task, its variables over store; None for a heading.
    prefix: of the names of its variables: `score` and `difference`, or those of the mean.
    """

    label: str
    place: float
    values: xr.Dataset | None = None
    prefix: str = ""

    def estimate(self, name: str) -> np.ndarray[Any, Any]:
        """Value, low and high of `score` or `difference`, `[3, store]`."""
        assert self.values is not None
        variable = {"score": "mean", "difference": "mean_difference"}[name] if self.prefix else name
        return np.stack([self.values[f"{variable}{end}"].values for end in ("", "_low", "_high")])


def compare(result: xr.Dataset, *, width: Width | None = None) -> Figure:
    """Scores of several stores side by side, and their paired differences to the first store.

    A row per task, one for the mean over tasks, and a group of rows per plan. Dots with intervals,
    filled where the difference is certain: an adjusted p-value below 0.05. Where there are too many
    rows for a page, only the means are drawn.

    Args:
        result: of `repsim.analyses.compare`.
        width: `column` (3.35 in), `page` (6.9 in) or `slide` (10 in); by default a page.
    Raises:
        RepsimError: an unknown width, more rows than fit a page, or no score at all.
    """
    if not np.isfinite(result["score"].values).any():
        raise RepsimError("compare: no score on examples that every store has finished")
    rows = list(_rows(result))
    if len(rows) > MOST_ROWS:
        rows = list(_rows(result, only_means=True))
    if not 0 < len(rows) <= MOST_ROWS:
        raise RepsimError(
            f"compare: {result.sizes['plan']} plans on {result.sizes['task']} tasks do not fit a "
            "page; name some with --plan"
        )

    stores = [printable(name) for name in result["store"].values]
    chosen = choose_width(width, "page")
    labels, inches = _legend_labels(stores), WIDTHS[chosen] / SCALE.get(chosen, 1)
    lines = -(-len(labels) // _legend_columns(labels, inches))
    height = BESIDE + LEGEND * lines + len(rows) * (ROW + STORE * len(stores))
    with blank_page(chosen, height / inches, "constrained") as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))

        # Scores with chance, then differences with a line where there is none.
        _draw_dots(left, rows, "score", stores)
        _draw_chance(left, rows)
        right.axvline(0, color=GUIDE, linewidth=points(0.8), linestyle="--", zorder=1)
        _draw_dots(right, rows, "difference", stores)

        # What the rows, the axes and the dots are.
        left.set_yticks([row.place for row in rows], [row.label for row in rows])
        left.set_ylim(rows[-1].place + 0.6, rows[0].place - 0.6)
        for tick, row in zip(left.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if row.values is None else "normal")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=TICKS.get(chosen, 6))
            axes.spines[["top", "right"]].set_visible(False)
        left.set_xlabel(_score_label(result))
        right.set_xlabel(wrapped(f"difference from {stores[0]}", figure.get_figwidth() / 2))
        _draw_legend(figure, stores)
        letter_panels([left, right])
        title = _title(result, rows)
        describe(figure, [title], _caption(result, title, stores), [result])
    return figure


def _rows(result: xr.Dataset, *, only_means: bool = False) -> Iterator[ForestRow]:
    """The rows from the top; plans have headings where there are several."""
    has_mean, place = result.sizes["task"] > 1, 0.0
    several = result.sizes["plan"] > 1
    metrics = set(result["metric_of"].values.tolist())
    for row, plan in enumerate(result["plan"].values):
        of_plan = result.isel(plan=row)
        if only_means:
            if has_mean:
                yield ForestRow(printable(plan), place, of_plan, "mean")
                place += 1
            continue
        if several:
            yield ForestRow(printable(plan), place)
            place += 1
        for column, task in enumerate(result["task"].values):
            of_task = of_plan.isel(task=column)
            yield ForestRow(_task_label(task, of_task, len(metrics) > 1), place, of_task)
            place += 1
        if has_mean:
            yield ForestRow(MEAN, place, of_plan, "mean")
            place += 1


def _draw_dots(axes: Axes, rows: Sequence[ForestRow], name: str, stores: Sequence[str]) -> None:
    """A dot with its interval per row and store, those of a row below each other."""
    shifts = np.linspace(-0.5, 0.5, len(stores)) * APART * (len(stores) - 1) / len(stores)
    for row in rows:
        if row.values is None:
            continue
        values, low, high = row.estimate(name)
        p_holm = row.values["mean_p_holm" if row.prefix else "p_holm"].values
        for store, shift in enumerate(shifts):
            if np.isnan(values[store]):
                continue
            style = look(store)
            is_certain = name == "score" or p_holm[store] < SIGNIFICANT
            ends = [[values[store] - low[store]], [high[store] - values[store]]]
            axes.errorbar(
                [values[store]],
                [row.place + shift],
                xerr=np.nan_to_num(np.maximum(ends, 0)),
                color=style["color"],
                marker=style["marker"],
                markersize=points(3),
                markerfacecolor=style["color"] if is_certain else "white",
                markeredgewidth=points(0.8),
                elinewidth=points(0.8),
                clip_on=False,
                zorder=3,
            )


def _draw_chance(axes: Axes, rows: Sequence[ForestRow]) -> None:
    """A dotted line across the row of each task at what guessing scores."""
    for row in rows:
        if row.values is not None and not row.prefix:
            chance = float(row.values["chance"])
            axes.vlines(
                chance, row.place - 0.5, row.place + 0.5, color=GUIDE, linestyle=":", lw=points(0.8)
            )


def _draw_legend(figure: Figure, stores: Sequence[str]) -> None:
    """Below both panels: the stores, chance, and what a hollow dot says."""
    handles = [
        Line2D(
            [],
            [],
            color=look(store)["color"],
            marker=look(store)["marker"],
            markersize=points(3),
            lw=points(0.8),
        )
        for store in range(len(stores))
    ]
    hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    handles += [
        Line2D([], [], color=GUIDE, linestyle=":", lw=points(0.8)),
        Line2D([], [], color=GUIDE, markersize=points(3), markeredgewidth=points(0.8), **hollow),
    ]
    labels = _legend_labels(stores)
    columns = _legend_columns(labels, figure.get_figwidth() / points(1))
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
    figure.legend(handles, labels, ncols=columns, **place, **COMPACT)


def _legend_labels(stores: Sequence[str]) -> list[str]:
    return [*stores, "chance", f"hollow: adjusted p ≥ {SIGNIFICANT}"]


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    """One row where all labels fit, else columns as wide as the longest.

    inches: width of the figure, in print.
    """
    room = int(inches * POINTS / (WIDEST * FONT))
    lengths = [len(label) + HANDLE for label in labels]
    return len(labels) if sum(lengths) <= room else max(1, room // max(lengths))


# Words


def _task_label(name: Any, task: xr.Dataset, with_metric: bool) -> str:
    """The task, its metric where tasks have several, and the number of pairs."""
    facts = [str(task["metric_of"].item())] if with_metric else []
    return printable(", ".join([f"{name} ({int(task['examples']):,})", *facts]))


def _score_label(result: xr.Dataset) -> str:
    metrics = sorted(set(result["metric_of"].values.tolist()))
    return f"score ({metrics[0]})" if len(metrics) == 1 else "score"


def _title(result: xr.Dataset, rows: Sequence[ForestRow]) -> str:
    """What is drawn, in one line."""
    plan = f"{printable(result['plan'].values[0])} · " if result.sizes["plan"] == 1 else ""
    tasks = result.sizes["task"]
    only_means = all(row.prefix for row in rows)
    what = f"mean scores over {tasks} tasks" if only_means else "scores on common examples"
    return f"{plan}{what}"


def _caption(result: xr.Dataset, title: str, stores: Sequence[str]) -> str:
    """What stands under the figure."""
    others = " and ".join(stores[1:])
    return join_sentences(
        f"(a) {title[0].upper()}{title[1:]} of {stores[0]} and {others}, on the examples that all "
        f"have finished (numbers in brackets); (b) paired differences from {stores[0]}.",
        f"Whiskers: {describe_interval(result)}.",
        f"Hollow dots: p at least {SIGNIFICANT} after Holm's correction over all comparisons.",
        "Dotted: chance.",
    )
