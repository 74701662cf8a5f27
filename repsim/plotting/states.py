"""Figures of hidden states: similarity matrices, profiles along the stack, blocks, drift and
clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter
from typing import Any, cast

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from repsim.errors import PlanError, RepsimError, printable
from repsim.plans import Step, parse_step
from repsim.plotting.curves import look
from repsim.plotting.page import (
    COLOURS,
    COMPACT,
    FONT,
    LABEL_STEPS,
    LINE,
    MARGIN,
    MARK,
    MOST_LABELS,
    PALETTE,
    POINTS,
    UNDEFINED,
    Figure,
    Width,
    blank_page,
    name_of,
    names_of,
    wrapped,
)

FLATTEST = 0.8  # height of a panel as a share of its width, so that the colour bar has room
DISTANCE_TOKENS = {"last": "last token", "all": "mean over tokens"}


@dataclass(frozen=True)
class Run:
    """States in a row that are the output of the same step.

    label: the step, e.g. `7` or `(13|14|15|16)`.
    times: number of states.
    middle: their mean index.
    """

    label: str
    times: int
    middle: float

    @property
    def step(self) -> Step | None:
        """None where the label is no step: the states that enter the stack are its embeddings."""
        try:
            return parse_step(self.label)
        except PlanError:
            return None

    @property
    def layer(self) -> int | None:
        """The layer, where the step runs one whole layer."""
        return None if self.step is None else self.step.layer

    @property
    def text(self) -> str:
        """The label and how often, about 13 characters: of a wide parallel step, the two ends."""
        times = f" ×{self.times}" if self.times > 1 else ""  # noqa: RUF001
        room = 13 - len(times)
        if self.step is not None:
            return self.step.short_text(room) + times
        label = self.label if len(self.label) <= room else f"{self.label[: room - 1]}…"
        return label + times

    def follows(self, other: Run) -> bool:
        """Whether the two are neighbouring layers, up or down the stack."""
        if self.layer is None or other.layer is None:
            return False
        return abs(self.layer - other.layer) == 1


def similarity_matrices(*results: xr.Dataset, width: Width | None = None) -> Figure:
    """Heat map of each similarity matrix, side by side on one scale, the first state at the top
    left.

    The colour scale ends at 1 and begins at the smallest value, rounded down; where that is
    negative, a line in the colour bar marks zero. A cell without a value is grey. Of two captures,
    the states of one go down and those of the other across, and a dot marks the largest value of
    each row.

    Args:
        results: `cosine` or `similarity` over (state, state_other) with coordinates `layer` and
            `layer_other`; attributes analysis, description, model, plan, corpus and tokens.
        width: `column` (3.35 in) or `page` (6.9 in); by default a page for more than one.
    Raises:
        RepsimError: an unknown width, or results of different measures.
    """
    if len({_measured(result) for result in results}) > 1:
        raise RepsimError(
            f"side by side: {', '.join(map(_measured, results))}; draw one measure at a time"
        )
    with blank_page(
        width or ("column" if len(results) == 1 else "page"), 1.5 / len(results), "compressed"
    ) as figure:
        panels = figure.subplots(1, len(results), squeeze=False)[0]
        values = [result[_matrix_name(result)].values for result in results]
        ticks = _scale(np.concatenate([matrix.ravel() for matrix in values]))
        for axes, result, matrix, name in zip(
            panels, results, values, names_of(results), strict=True
        ):
            axes.set(
                xlabel="state after layer", ylabel="state after layer" if axes is panels[0] else ""
            )
            image = _heat_map(axes, matrix, ticks)
            if _is_of_two(result):
                _mark_pairs(axes, result, figure.get_figwidth() / len(results))
            if len(results) > 1:
                axes.set_title(
                    _title(result, figure.get_figwidth() / len(results), name), fontsize=FONT
                )
        undefined = any(np.isnan(matrix).any() for matrix in values)
        _colour_bar(figure, image, list(panels), ticks, _measured(results[0]), undefined)
        title = figure.suptitle(
            _title(results[0], figure.get_figwidth()) if len(results) == 1 else ""
        )
        labels = [
            [[str(label) for label in result[name].values] for name in ("layer", "layer_other")]
            for result in results
        ]
        _fit(figure, panels, title, labels)
    return figure


def profiles(
    results: Sequence[xr.Dataset],
    labels: Mapping[str, str],
    *,
    logarithmic: bool = False,
    width: Width | None = None,
) -> Figure:
    """Quantities of each state against the states, a panel each, a line for each result, with its
    interval as a band.

    One result is drawn against its layers; several, against depth as a share of their steps.

    Args:
        results: each name in `labels` over state, with `NAME_low` and `NAME_high` (or `low` and
            `high`) and the coordinate `layer`; attributes model, plan, corpus and tokens.
        labels: what the y axis of each quantity says.
        logarithmic: a logarithmic y axis, where all values are positive.
        width: `column` (3.35 in) or `page` (6.9 in); by default a page for more than one quantity.
    Raises:
        RepsimError: an unknown width.
    """
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    wide = width or ("column" if len(labels) == 1 else "page")
    with blank_page(wide, 0.75 * rows / columns, "constrained") as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, label) in zip(grid, labels.items(), strict=False):
            _lines(axes, results, name, logarithmic)
            axes.set_ylabel(label)
        for axes in grid[len(labels) :]:
            axes.set_axis_off()
        if len(results) == 1:
            figure.suptitle(_title(results[0], figure.get_figwidth()))
        else:
            free = grid[len(labels)] if len(grid) > len(labels) else grid[0]
            lines, texts = grid[0].get_legend_handles_labels()
            free.legend(
                lines, texts, loc="center" if free is not grid[0] else "best", frameon=False
            )
        for axes in grid[: len(labels)]:
            _label_states(figure, axes, results)
    return figure


def blocks(result: xr.Dataset, *, width: Width = "column") -> Figure:
    """Angular distance by size and place of a run of steps, the least of each size marked; Block
    Influence below.

    Args:
        result: of `repsim.analyses.blocks`.
        width: `column` (3.35 in) or `page` (6.9 in).
    Raises:
        RepsimError: an unknown width.
    """
    with blank_page(width, 1.3, "constrained") as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        distance, of = result["distance"].values, str(result.attrs["distance_tokens"])
        places, sizes = np.arange(distance.shape[1]), result["size"].values
        palette = matplotlib.colormaps[PALETTE].with_extremes(bad="none")
        image = upper.pcolormesh(places, sizes, distance, cmap=palette, rasterized=True)
        figure.colorbar(image, ax=upper, aspect=25, pad=0.02).set_label(
            f"angular distance (share of half a turn), {DISTANCE_TOKENS[of]}"
        )
        least = np.argmin(np.where(np.isnan(distance), 2, distance), axis=1)
        some = ~np.isnan(distance).all(1)
        upper.plot(
            least[some], sizes[some], "o", color=MARK, markersize=1.6, label="least of its size"
        )
        upper.set(ylabel="steps left out", xlim=(-0.5, len(places) - 0.5))
        upper.legend(loc="upper right", frameon=False)
        influence = result["influence"].values
        error = np.abs(
            np.stack([result["influence_low"].values, result["influence_high"].values]) - influence
        )
        lower.bar(places, influence, color=LINE, width=0.8)
        lower.errorbar(places, influence, error, fmt="none", ecolor=MARK, elinewidth=0.6)
        lower.set(ylabel="Block Influence", xlabel="first step left out")
        figure.suptitle(_title(result, figure.get_figwidth()))
        figure.draw_without_rendering()
        cell = lower.get_window_extent().width / figure.dpi * POINTS / len(places)
        _label_x(
            lower, _labelled(_runs([str(label) for label in result["step_layer"].values]), cell)
        )
    return figure


def drift(result: xr.Dataset, *, width: Width = "page") -> Figure:
    """A plan's states among the baseline's (cosine), and how far each is from its counterpart.

    Args:
        result: of `repsim.analyses.drift`.
        width: `column` (3.35 in) or `page` (6.9 in).
    Raises:
        RepsimError: an unknown width.
    """
    with blank_page(width, 0.45, "constrained") as figure:
        left, right = figure.subplots(1, 2)
        matrix = result["cosine"].values
        ticks = _scale(matrix)
        image = _heat_map(left, matrix, ticks)
        left.set_aspect("auto")
        left.set(
            xlabel="state of the baseline, after layer", ylabel="state of the plan, after layer"
        )
        _colour_bar(
            figure, image, [left], ticks, "mean cosine similarity", bool(np.isnan(matrix).any())
        )
        nearest = np.argmax(np.where(np.isnan(matrix), -2, matrix), axis=1)
        left.plot(nearest, np.arange(len(matrix)), "o", color=MARK, markersize=1.6)
        _lines(right, [result], "distance", logarithmic=False)
        right.set_ylabel("distance from the counterpart / its norm")
        right.set_ylim(bottom=0)
        figure.suptitle(
            _title(result, figure.get_figwidth()) + "\ndots: the baseline's most similar state"
        )
        figure.draw_without_rendering()
        box = left.get_window_extent()
        for axis, name, side in (
            (left.yaxis, "layer", box.height),
            (left.xaxis, "layer_baseline", box.width),
        ):
            labels = [str(label) for label in result[name].values]
            runs = _labelled(_runs(labels), side / figure.dpi * POINTS / len(labels))
            axis.set_ticks([run.middle for run in runs], [run.text for run in runs])
        _upright(left)
        _label_states(figure, right, [result])
    return figure


def clusters(result: xr.Dataset, *, width: Width = "page") -> Figure:
    """A similarity matrix with its groups framed; number of groups and boundaries beside it.

    Args:
        result: of `repsim.analyses.clusters`.
        width: `column` (3.35 in) or `page` (6.9 in).
    Raises:
        RepsimError: an unknown width.
    """
    with blank_page(width, 0.52, "constrained") as figure:
        left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(5, 4)))
        axes = left.subplots()
        upper, lower = right.subplots(2, 1)
        matrix, states = result["similarity"].values, result.sizes["state"]
        ticks = _scale(matrix)
        image = _heat_map(axes, matrix, ticks)
        axes.set_aspect("auto")  # nearly square, and as high as its colour bar
        _colour_bar(left, image, [axes], ticks, str(result.attrs["quantity"]), False)
        axes.set(xlabel="state after layer", ylabel="state after layer")
        edges = np.concatenate([[0], result["boundary"].values, [states]]) - 0.5
        for first, last in pairwise(edges.tolist()):
            axes.add_patch(
                Rectangle(
                    (first, first),
                    last - first,
                    last - first,
                    fill=False,
                    edgecolor=MARK,
                    linewidth=1,
                )
            )
        groups = result["groups"].values
        for name, style in (
            ("silhouette", "o-"),
            ("stability", "s--"),
            ("spectral_agreement", "^:"),
        ):
            label = {"spectral_agreement": "spectral check"}.get(name, name)
            colour = COLOURS[("silhouette", "stability", "spectral_agreement").index(name)]
            upper.plot(
                groups,
                result[name].values,
                style,
                label=label,
                color=colour,
                markersize=2.5,
                linewidth=0.8,
            )
        upper.axvline(result.attrs["chosen"], color="0.8", linewidth=3, zorder=0)
        upper.set(xlabel="number of groups", ylim=(min(0, *upper.get_ylim()), 1.05))
        upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, **COMPACT)
        lower.bar(np.arange(states) - 0.5, result["cut"].values, color=LINE, width=0.5)
        lower.set(
            xlabel="boundary before the state after layer",
            ylabel="share of resamples",
            ylim=(0, 1.05),
        )
        lower.set_xlim(-0.5, states - 0.5)
        figure.suptitle(f"{_title(result, figure.get_figwidth())}\n{_parts(result)}")
        figure.draw_without_rendering()
        labels = [str(label) for label in result["layer"].values]
        _label(axes, labels, axes.get_window_extent().height / figure.dpi * POINTS / states)
        cell = lower.get_window_extent().width / figure.dpi * POINTS / states
        _label_x(lower, _labelled(_runs(labels), cell))
    return figure


def _title(result: xr.Dataset, inches: float, name: str = "") -> str:
    """Model and plan; corpus, tokens and average: a line each, more where they are long."""
    of = result.attrs
    average = f" · {of['average']} average" if "average" in of else ""
    left_out = (
        f" · {of['left_out_tokens']:,} left out (zero vectors)" if of.get("left_out_tokens") else ""
    )
    over = f"{of['corpus']} · {of['tokens']:,} tokens{left_out}{average}"
    lines = (name or f"{name_of(result)} · {of['plan']}", over)
    return "\n".join(wrapped(line, inches) for line in lines)


def _parts(result: xr.Dataset) -> str:
    """Start, middle and end in words: the layers that their states come after."""
    runs = [
        (part, [label for label, _ in states])
        for part, states in groupby(
            zip(result["layer"].values, result["part"].values, strict=True), itemgetter(1)
        )
    ]
    return " · ".join(
        f"{part}: {labels[0]}{f' to {labels[-1]}' * (len(labels) > 1)}" for part, labels in runs
    )


def _is_of_two(result: xr.Dataset) -> bool:
    """Whether a similarity matrix is of two captures, its columns of the other one."""
    return "model_other" in result.attrs


def _mark_pairs(axes: Axes, result: xr.Dataset, inches: float) -> None:
    """Names both captures at their axes, and marks the most similar state of each row."""
    other = printable(result.attrs.get("label_other") or result.attrs["model_other"])
    axes.set_ylabel(wrapped(f"state of {name_of(result)}, after layer", 0.7 * inches))
    axes.set_xlabel(
        wrapped(f"state of {other}, after layer", 0.8 * inches) + "\ndot: largest value of its row"
    )
    matrix = result[_matrix_name(result)].values
    rows = np.flatnonzero(np.isfinite(matrix).any(1))
    axes.plot(np.nanargmax(matrix[rows], axis=1), rows, "o", color=MARK, markersize=1.6)
    axes.set_aspect("auto")
    axes.set_box_aspect(float(np.clip(matrix.shape[0] / matrix.shape[1], FLATTEST, 1)))


def _matrix_name(result: xr.Dataset) -> str:
    return "cosine" if "cosine" in result else "similarity"


def _measured(result: xr.Dataset) -> str:
    """What a similarity matrix holds, for its colour bar."""
    return "mean cosine similarity" if "cosine" in result else str(result.attrs["description"])


def _heat_map(axes: Axes, values: NDArray[np.float64], ticks: Sequence[float]) -> AxesImage:
    """Square cells on a scale from the first tick to 1."""
    palette = matplotlib.colormaps[PALETTE].with_extremes(bad=UNDEFINED)
    return axes.imshow(values, cmap=palette, vmin=ticks[0], vmax=1, interpolation="nearest")


def _colour_bar(
    figure: Any,
    image: AxesImage,
    panels: list[Axes],
    ticks: list[float],
    label: str,
    undefined: bool,
) -> None:
    """A colour bar as high as the panels, with a line at zero."""
    bar = figure.colorbar(image, ax=panels, aspect=25, pad=0.02, ticks=ticks)
    bar.outline.set_visible(False)
    bar.set_label(label + " (grey: undefined)" * undefined)
    if ticks[0] < 0:
        bar.ax.axhline(0, color="white", linewidth=0.8)


def _lines(axes: Axes, results: Sequence[xr.Dataset], name: str, logarithmic: bool) -> None:
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
        axes.plot(places, values, **style, linewidth=1, markersize=2, label=label)
        lowest = min(lowest, float(np.nanmin(values, initial=np.inf)))
    if logarithmic and lowest > 0:
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:,g}")  # powers of ten would need mathtext
        axes.yaxis.set_minor_formatter("{x:,g}" if top < 10 * bottom else NullFormatter())
    if len(results) == 1:
        axes.set_xlim(-0.5, len(values) - 0.5)


def _label_states(figure: Figure, axes: Axes, results: Sequence[xr.Dataset]) -> None:
    """The x axis of `_lines`: layers of the one result, or depth."""
    if len(results) > 1:
        axes.set_xlabel("depth (share of steps)")
        return
    axes.set_xlabel("state after layer")
    figure.draw_without_rendering()
    labels = [str(text) for text in results[0]["layer"].values]
    cell = axes.get_window_extent().width / figure.dpi * POINTS / len(labels)
    _label_x(axes, _labelled(_runs(labels), cell))


def _scale(values: NDArray[np.float64]) -> list[float]:
    """Ticks of the colour scale: its start, then round numbers at even distances up to 1.

    The start is the smallest value, rounded down to a tenth, or finer where all lie close to 1.
    """
    span = 1 - float(np.nanmin(values, initial=1))
    unit = min(0.1, 10.0 ** math.floor(math.log10(max(span, 0.01) / 2)))
    units = min(max(math.ceil(span / unit - 1e-3), 1), round(2 / unit))
    step = next(step for step in (1, 2, 5) if units / step <= 6)
    return [round(1 - i * unit, 6) for i in sorted({units, *range(0, units, step)}, reverse=True)]


def _fit(
    figure: Figure, panels: Sequence[Axes], title: Text, labels: Sequence[Sequence[Sequence[str]]]
) -> None:
    """Labels the axes and trims the figure's height; twice, as each changes the other.

    labels: of each panel's rows and columns.
    """
    for _ in range(2):
        figure.draw_without_rendering()
        for axes, (rows, columns) in zip(panels, labels, strict=True):
            box = axes.get_window_extent()
            height, width = (side / figure.dpi * POINTS for side in (box.height, box.width))
            runs = _labelled(_runs(rows), height / len(rows))
            axes.set_yticks([run.middle for run in runs], [run.text for run in runs])
            _label_x(axes, _labelled(_runs(columns), width / len(columns)))
        figure.draw_without_rendering()
        highest = max(axes.get_tightbbox().height for axes in panels)  # type: ignore[union-attr]
        figure.set_figheight((highest + title.get_window_extent().height) / figure.dpi + MARGIN)


def _label(axes: Axes, labels: Sequence[str], cell: float) -> None:
    """Ticks at the states that are labelled, along both axes."""
    runs = _labelled(_runs(labels), cell)
    axes.set_yticks([run.middle for run in runs], [run.text for run in runs])
    _label_x(axes, runs)


def _label_x(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_xticks([run.middle for run in runs], [run.text for run in runs])
    _upright(axes)


def _upright(axes: Axes) -> None:
    """All but short labels along x stand upright."""
    for text in axes.get_xticklabels():
        text.set_rotation(90 if len(text.get_text()) > 2 else 0)


def _runs(labels: Sequence[str]) -> list[Run]:
    """The states, those in a row with the same label taken together."""
    runs, first = [], 0
    for label, states in groupby(labels):
        times = len(list(states))
        runs.append(Run(label, times, first + (times - 1) / 2))
        first += times
    return runs


def _labelled(runs: Sequence[Run], cell: float) -> list[Run]:
    """The runs to label so that no two labels touch, in order.

    The first and the last one come first, then those that break the layers' order (parallel
    steps, halves, jumps), then layers that are multiples of 1, 2, 5, 10, ...

    Args:
        runs: all of them.
        cell: points between two states.
    """
    step = next(step for step in LABEL_STEPS if len(runs) / step <= MOST_LABELS)
    breaks = [run for before, run in pairwise(runs) if not run.follows(before)]
    multiples = [run for run in runs if run.layer is not None and run.layer % step == 0]
    chosen: list[Run] = []
    for run in (runs[0], runs[-1], *breaks, *multiples):
        if all(abs(run.middle - other.middle) * cell >= 1.6 * FONT for other in chosen):
            chosen.append(run)
    return sorted(chosen, key=attrgetter("middle"))
