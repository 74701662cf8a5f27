"""Figures of what layers do for a model: runs that do least, drift under a plan, groups."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from repsim.plotting.captions import caption_blocks, caption_clusters, caption_drift, list_groups
from repsim.plotting.colours import ColourScale, choose_scale, draw_cells, draw_colour_bar, palette
from repsim.plotting.layer_labels import label_states_x, label_states_y
from repsim.plotting.page import (
    COLOURS,
    COMPACT,
    LINE,
    MARK,
    Figure,
    Width,
    blank_page,
    choose_width,
    points,
)
from repsim.plotting.states import draw_profiles, label_depths, layers_of
from repsim.plotting.words import describe, letter_panels, name_of

# What half a turn is shared into: states are hardly ever further apart than a right angle.
MOST_DISTANCE = 0.5
OF_TOKENS = {"last": "last token", "all": "mean over tokens"}
EVIDENCE = {"silhouette": "o-", "stability": "s--", "spectral_agreement": "^:"}


def blocks(result: xr.Dataset, *, width: Width | None = None) -> Figure:
    """Angular distance by size and place of a run of steps, the least of each size marked; Block
    Influence below.

    Args:
        result: of `repsim.analyses.blocks`.
        width: `column` (3.35 in, the default), `page` (6.9 in) or `slide` (10 in).
    Raises:
        RepsimError: an unknown width.
    """
    chosen = choose_width(width, "column")
    with blank_page(chosen, 1.3 if chosen == "column" else 0.8, "constrained") as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        distance = result["distance"].values
        places, sizes = np.arange(distance.shape[1]), result["size"].values

        # Distances; runs that would pass the end of the stack are empty, which leaves room for the
        # legend.
        scale = choose_scale(distance, 0, MOST_DISTANCE)
        image = upper.pcolormesh(
            places,
            sizes,
            distance,
            cmap=palette("none"),
            vmin=scale.low,
            vmax=scale.high,
            rasterized=True,
        )
        upper.grid(False, which="both")
        of = OF_TOKENS[str(result.attrs["distance_tokens"])]
        label = f"angular distance (half turns), {of}"
        draw_colour_bar(figure, image, [upper], scale, label)
        least = np.argmin(np.where(np.isnan(distance), 2, distance), axis=1)
        some = ~np.isnan(distance).all(1)
        upper.plot(least[some], sizes[some], **_dots(), label="least of its size")
        upper.set(ylabel="steps left out", xlim=(-0.5, len(places) - 0.5))
        upper.legend(loc="upper right", frameon=False, **COMPACT)

        # Block Influence of each step.
        influence = result["influence"].values
        ends = np.stack([result["influence_low"].values, result["influence_high"].values])
        lower.bar(places, influence, color=LINE, width=0.8)
        whiskers: dict[str, Any] = {"fmt": "none", "ecolor": MARK, "elinewidth": points(0.6)}
        lower.errorbar(places, influence, np.abs(ends - influence), **whiskers)
        lower.grid(False, axis="x", which="both")
        lower.set(ylabel="Block Influence", xlabel="first step left out")

        letter_panels([upper, lower])
        describe(figure, [_title(result)], caption_blocks(result, scale), [result])
        figure.draw_without_rendering()
        label_states_x(lower, layers_of(result, "step_layer"))
    return figure


def drift(result: xr.Dataset, *, width: Width | None = None) -> Figure:
    """A plan's states among the baseline's (cosine), and how far each is from its counterpart.

    Args:
        result: of `repsim.analyses.drift`.
        width: `column` (3.35 in), `page` (6.9 in, the default) or `slide` (10 in).
    Raises:
        RepsimError: an unknown width.
    """
    chosen = choose_width(width, "page")
    shape, height = ((2, 1), 1.6) if chosen == "column" else ((1, 2), 0.48)
    with blank_page(chosen, height, "constrained") as figure:
        left, right = figure.subplots(*shape)

        # The plan's states among the baseline's.
        matrix = result["cosine"].values
        scale = choose_scale(matrix)
        image = draw_cells(left, matrix, scale)
        left.set_aspect("auto")
        left.set(
            xlabel="state of the baseline, after layer", ylabel="state of the plan, after layer"
        )
        undefined = " (grey: undefined)" * bool(np.isnan(matrix).any())
        draw_colour_bar(figure, image, [left], scale, f"mean cosine similarity{undefined}")
        nearest = np.argmax(np.where(np.isnan(matrix), -2, matrix), axis=1)
        left.plot(nearest, np.arange(len(matrix)), **_dots())

        # Their distance from their counterparts.
        draw_profiles(right, [result], "distance")
        right.set_ylabel("distance / counterpart's norm")
        right.set_ylim(bottom=0)

        letter_panels([left, right])
        describe(figure, [_title(result)], caption_drift(result, scale), [result])
        figure.draw_without_rendering()
        label_states_y(left, layers_of(result))
        label_states_x(left, layers_of(result, "layer_baseline"))
        label_depths(figure, right, [result])
    return figure


def clusters(result: xr.Dataset, *, width: Width | None = None) -> Figure:
    """A similarity matrix with its groups framed; number of groups and boundaries beside it.

    Args:
        result: of `repsim.analyses.clusters`.
        width: `column` (3.35 in), `page` (6.9 in, the default) or `slide` (10 in).
    Raises:
        RepsimError: an unknown width.
    """
    chosen = choose_width(width, "page")
    with blank_page(chosen, 2 if chosen == "column" else 0.52, "constrained") as figure:
        # A column has the evidence below the matrix.
        if chosen == "column":
            parts = figure.subfigures(2, 1, height_ratios=(5, 6))
        else:
            parts = figure.subfigures(1, 2, width_ratios=(5, 4 if chosen == "page" else 5))
        left, right = cast(Any, parts)
        axes = left.subplots()
        upper, lower = right.subplots(2, 1)
        matrix, states = result["similarity"].values, result.sizes["state"]
        scale = choose_scale(matrix)
        _draw_groups(left, axes, result, scale)
        _draw_evidence(upper, result, columns=2 if chosen == "slide" else 3)

        # How often resamples have a boundary at each state.
        lower.bar(np.arange(states) - 0.5, result["cut"].values, color=LINE, width=0.5)
        lower.set(
            xlabel="boundary before the state after layer",
            ylabel="share of resamples",
            ylim=(0, 1.05),
            xlim=(-0.5, states - 0.5),
        )
        lower.grid(False, axis="x", which="both")

        letter_panels([axes, upper, lower])
        groups = list_groups(result)
        title = f"{_title(result)} · {len(groups)} groups"
        titles = [f"{title}: {', '.join(groups)}", title]
        describe(figure, titles, caption_clusters(result, scale), [result])
        figure.draw_without_rendering()
        for each in (axes, lower):
            label_states_x(each, layers_of(result))
        label_states_y(axes, layers_of(result))
    return figure


def _draw_groups(figure: Any, axes: Axes, result: xr.Dataset, scale: ColourScale) -> None:
    """The matrix, with a box around each group of states."""
    image = draw_cells(axes, result["similarity"].values, scale)
    axes.set_aspect("auto")  # nearly square, and as high as its colour bar
    draw_colour_bar(figure, image, [axes], scale, str(result.attrs["quantity"]))
    axes.set(xlabel="state after layer", ylabel="state after layer")
    edges = np.concatenate([[0], result["boundary"].values, [result.sizes["state"]]]) - 0.5
    edge: dict[str, Any] = {"fill": False, "edgecolor": MARK, "linewidth": points(1)}
    for first, last in pairwise(edges.tolist()):
        # Boxes at the edges of the matrix are seen whole, and a white edge shows them in grey.
        side = last - first
        box = Rectangle((first, first), side, side, **edge, clip_on=False, zorder=3)
        box.set_path_effects([withStroke(linewidth=points(1.8), foreground="white")])
        axes.add_patch(box)


def _draw_evidence(axes: Axes, result: xr.Dataset, columns: int) -> None:
    """What speaks for each number of groups; the number that is drawn has a grey line.

    columns: of the legend.
    """
    for colour, (name, style) in zip(COLOURS, EVIDENCE.items(), strict=False):
        label = "spectral check" if name == "spectral_agreement" else name
        sizes: dict[str, Any] = {"markersize": points(2.5), "linewidth": points(0.8)}
        axes.plot(
            result["groups"].values,
            result[name].values,
            style,
            label=label,
            color=colour,
            clip_on=False,
            **sizes,
        )
    axes.axvline(result.attrs["chosen"], color="0.8", linewidth=points(3), zorder=0)
    axes.set(xlabel="number of groups", ylim=(min(0, *axes.get_ylim()), 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    axes.legend(ncols=columns, **above, **COMPACT)


def _dots() -> dict[str, Any]:
    """How cells are marked: with a white edge, so that the marks are seen in grey."""
    return {
        "color": MARK,
        "marker": "o",
        "linestyle": "none",
        "markersize": points(2.4),
        "markeredgecolor": "white",
        "markeredgewidth": points(0.4),
        "clip_on": False,
    }


def _title(result: xr.Dataset) -> str:
    return f"{name_of(result)} · {result.attrs['plan']}"
