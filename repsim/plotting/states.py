"""Figures of hidden states: similarity matrices, and profiles along the stack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter

from repsim.errors import RepsimError
from repsim.plotting.captions import caption_matrices, caption_profiles
from repsim.plotting.colours import choose_scale, draw_cells, draw_colour_bar
from repsim.plotting.curves import look
from repsim.plotting.layer_labels import label_states_x, label_states_y
from repsim.plotting.page import MARGIN, Figure, Width, blank_page, choose_width, points
from repsim.plotting.words import describe, letter_panels, name_of, names_of, wrapped

MATRICES = {"column": 2}  # most in a row
PANELS = {"column": 2}  # most profiles in a row; 3 elsewhere


def similarity_matrices(*results: xr.Dataset, width: Width | None = None) -> Figure:
    """Heat map of each similarity matrix, side by side on one scale, the first state at the top
    left.

    Colours run from 0 to 1 unless the options say otherwise, so that figures can be compared; where
    a value is below, the colour bar has an arrow. A cell without a value is grey.

    Args:
        results: `cosine` or `similarity` over (state, state_other) with coordinates `layer` and
            `layer_other`; attributes analysis, description, model, plan, corpus and tokens.
        width: `column` (3.35 in), `page` (6.9 in) or `slide` (10 in); by default a page for more
            than one.
    Raises:
        RepsimError: an unknown width, or results of different measures.
    """
    if len({_measured(result) for result in results}) > 1:
        raise RepsimError(
            f"side by side: {', '.join(map(_measured, results))}; draw one measure at a time"
        )
    chosen = choose_width(width, "column" if len(results) == 1 else "page")
    columns = min(len(results), MATRICES.get(chosen, len(results)))
    rows = -(-len(results) // columns)
    with blank_page(chosen, 1.5 * rows / columns, "compressed") as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        panels = list(grid[: len(results)])
        for axes in grid[len(results) :]:
            axes.remove()
        name, measured = _matrix_name(results[0]), _measured(results[0])
        values = np.concatenate([result[_matrix_name(result)].values.ravel() for result in results])
        scale = choose_scale(values)

        # A panel for each matrix, with a title where there are several.
        names = names_of(results)
        for row, (axes, result) in enumerate(zip(panels, results, strict=True)):
            axes.set_xlabel("state after layer")
            axes.set_ylabel("state after layer" if row % columns == 0 else "")
            image = draw_cells(axes, result[_matrix_name(result)].values, scale)
            if len(results) > 1:
                axes.set_title(wrapped(names[row], 0.8 * figure.get_figwidth() / columns))
        undefined = " (grey: undefined)" * bool(np.isnan(values).any())
        draw_colour_bar(figure, image, panels, scale, measured + undefined)
        letter_panels(panels)

        # The title of one, the caption of all; then the labels, which change the layout.
        titles = [" | ".join(names)] if len(results) > 1 else _titles(results[0])
        caption = caption_matrices(results, name, measured, scale)
        text = describe(figure, titles, caption, results, shown=len(results) == 1)
        _fit(figure, panels, text, results, columns)
    return figure


def profiles(
    results: Sequence[xr.Dataset],
    labels: Mapping[str, str],
    *,
    logarithmic: Collection[str] = (),
    width: Width | None = None,
) -> Figure:
    """Quantities of each state against the states, a panel each, a line for each result, with its
    interval as a band.

    One result is drawn against its layers; several, against depth as a share of their steps.

    Args:
        results: each name in `labels` over state, with `NAME_low` and `NAME_high` (or `low` and
            `high`) and the coordinate `layer`; attributes model, plan, corpus and tokens.
        labels: what the y axis of each quantity says.
        logarithmic: names of the quantities with a logarithmic y axis, where all values are
            positive.
        width: `column` (3.35 in), `page` (6.9 in) or `slide` (10 in); by default a page for more
            than one quantity.
    Raises:
        RepsimError: an unknown width.
    """
    chosen = choose_width(width, "column" if len(labels) == 1 else "page")
    columns = min(PANELS.get(chosen, 3), len(labels))
    rows = -(-len(labels) // columns)
    with blank_page(chosen, 0.75 * rows / columns, "constrained") as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        panels, free = list(grid[: len(labels)]), grid[len(labels) :]
        names = names_of(results)
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            draw_profiles(axes, results, name, logarithmic=name in logarithmic)
            axes.set_ylabel(label)
        for axes in free:
            axes.set_axis_off()
        letter_panels(panels)
        titles = _titles(results[0]) if len(results) == 1 else [" | ".join(names)]
        caption = caption_profiles(results, labels, names)
        describe(figure, titles, caption, results, shown=len(results) == 1)
        if len(results) > 1:
            _explain_lines(figure, panels[0], free[0] if len(free) else None, chosen)
        for axes in panels:
            label_depths(figure, axes, results)
    return figure


def draw_profiles(
    axes: Axes, results: Sequence[xr.Dataset], name: str, *, logarithmic: bool = False
) -> None:
    """A quantity of each result with its interval, against states; of several results, depth."""
    lowest = np.inf
    for row, (result, label) in enumerate(zip(results, names_of(results), strict=True)):
        values = result[name].values
        places = np.arange(len(values)) if len(results) == 1 else np.linspace(0, 1, len(values))
        low, high = (
            result[f"{name}_{end}" if f"{name}_{end}" in result else end].values
            for end in ("low", "high")
        )
        style = look(row)
        axes.fill_between(places, low, high, color=style["color"], alpha=0.3, linewidth=0)
        sizes: dict[str, Any] = {"linewidth": points(1), "markersize": points(2)}
        axes.plot(places, values, **style, **sizes, label=label, clip_on=False)
        lowest = min(lowest, float(np.nanmin(values, initial=np.inf)))
    if logarithmic and lowest > 0:
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:,g}")  # powers of ten would need mathtext
        axes.yaxis.set_minor_formatter("{x:,g}" if top < 10 * bottom else NullFormatter())
    if len(results) == 1:
        axes.set_xlim(-0.5, len(values) - 0.5)


def label_depths(figure: Figure, axes: Axes, results: Sequence[xr.Dataset]) -> None:
    """The x axis of `draw_profiles`: layers of the one result, or depth."""
    if len(results) > 1:
        axes.set_xlabel("depth (share of steps)")
        return
    axes.set_xlabel("state after layer")
    figure.draw_without_rendering()
    label_states_x(axes, layers_of(results[0]))


def layers_of(result: xr.Dataset, name: str = "layer") -> list[str]:
    """What the states of a result are the output of."""
    return [str(label) for label in result[name].values]


def _titles(result: xr.Dataset) -> list[str]:
    """Model and plan, first with the kind of average where there are several."""
    title = f"{name_of(result)} · {result.attrs['plan']}"
    average = result.attrs.get("average")
    return [f"{title} · {average} average", title] if average else [title]


def _matrix_name(result: xr.Dataset) -> str:
    return "cosine" if "cosine" in result else "similarity"


def _measured(result: xr.Dataset) -> str:
    """What a similarity matrix holds, for its colour bar."""
    return "mean cosine similarity" if "cosine" in result else str(result.attrs["description"])


def _explain_lines(figure: Figure, panel: Axes, free: Axes | None, width: str) -> None:
    """What the lines are: in a free cell, below all panels of a column, or in the only panel."""
    lines, texts = panel.get_legend_handles_labels()
    if width == "column" and len(figure.axes) > 1:
        figure.legend(lines, texts, loc="outside lower center", frameon=False)
    elif free is not None:
        free.legend(lines, texts, loc="center", frameon=False)
    else:
        panel.legend(lines, texts, loc="best", frameon=False)


def _fit(
    figure: Figure,
    panels: Sequence[Axes],
    title: Text,
    results: Sequence[xr.Dataset],
    columns: int,
) -> None:
    """Labels the axes and trims the figure's height; twice, as each changes the other."""
    for _ in range(2):
        figure.draw_without_rendering()
        for axes, result in zip(panels, results, strict=True):
            label_states_y(axes, layers_of(result))
            label_states_x(axes, layers_of(result, "layer_other"))
        figure.draw_without_rendering()
        heights = [axes.get_tightbbox().height for axes in panels]  # type: ignore[union-attr]
        rows = [max(heights[row : row + columns]) for row in range(0, len(heights), columns)]
        inches = (sum(rows) + title.get_window_extent().height) / figure.dpi
        figure.set_figheight(inches + points(MARGIN) * len(rows))
