"""Figures of benchmark scores under layer plans: those of "Transformer Layers as Painters".

They know what the analysis degradation gives, and neither store nor plan. A number that is not in
the result is a hole in its line or a grey cell. Source: Sun et al. 2024, arXiv 2407.09298, figures
2 and 4 to 11.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from repsim.errors import RepsimError
from repsim.plotting.colours import choose_scale, finish_colour_bar, palette
from repsim.plotting.curves import (
    NARROW,
    SCORE,
    WIDE,
    count_scored,
    draw_curve,
    draw_guides,
    draw_legend,
    find_rows,
    label_starts,
    label_step,
    look,
    look_of_family,
    look_of_task,
    number_places,
    place_values,
    write_note,
)
from repsim.plotting.page import (
    COMPACT,
    LINE,
    MARK,
    Figure,
    Width,
    blank_page,
    choose_width,
    font_size,
    points,
)
from repsim.plotting.score_captions import (
    caption_all_variants,
    caption_loops_by_width,
    caption_one_variant,
    caption_single_layers,
    name_with_examples,
)
from repsim.plotting.words import describe, letter_panels, name_of, wrapped
from repsim.studies.painters import (
    FIGURE_NUMBERS,
    MIDDLE_CURVES,
    SINGLE_LAYER_CURVES,
    Curve,
    describe_middle,
)

COLUMNS = {"column": 2}  # of panels; 3 elsewhere
MISSING_PLANS = "missing plans"
ASIDE = 0.25  # of a start, how far whiskers go to either side so that none hides another


class NotDrawn(RepsimError):
    """A figure that a result does not give.

    reason: why, in a few words.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def degradation(result: xr.Dataset, figure: int, *, width: Width | None = None) -> Figure:
    """Scores under layer plans, drawn as in one of the paper's figures.

    2: a layer skipped, or switched with the next, against the layer: the median over benchmarks,
    then each benchmark. 4 to 9: a variant of the middle against its start: each benchmark, and
    their median with its interval.
    10: parallel layers looped: the mean over benchmarks by width and loops; of each width, the best
    is framed.
    11: all variants of the middle against their start: the mean over benchmarks with its interval.

    Args:
        result: of `repsim.analyses.degradation`.
        figure: 2 or 4 to 11.
        width: `column` (3.35 in), `page` (6.9 in, the default) or `slide` (10 in).
    Raises:
        NotDrawn: its variants are not in the result or have no score, or the full model is above
            chance in no benchmark, so that nothing can be normalised.
        RepsimError: there is no such figure, or width.
    """
    if figure not in FIGURE_NUMBERS:
        first, *others = map(str, FIGURE_NUMBERS)
        raise RepsimError(f"figure={figure}: choose {first} or one of {', '.join(others)}")
    if figure != 2 and not result["valid"].values.any():
        tasks = ", ".join(map(str, result["task"].values))
        raise NotDrawn(
            f"figure {figure}: the full model is not above chance in any of {tasks}; draw figure 2",
            "no benchmark can be normalised",
        )
    chosen = choose_width(width, "page")
    if figure in MIDDLE_CURVES:
        return _draw_one_variant(result, figure, chosen)
    draw = {2: _draw_single_layers, 10: _draw_loops_by_width, 11: _draw_all_variants}[figure]
    return draw(result, chosen)


# The paper's figures


def _draw_single_layers(result: xr.Dataset, width: str) -> Figure:
    """Figure 2: a panel for the median of normalised scores, then one for each benchmark's own
    score.
    """
    curves = _curves_with_scores(result, 2, SINGLE_LAYER_CURVES, "value")
    layers, valid = int(result.attrs["layers"]), int(result["valid"].sum())
    tasks = [
        result.isel(task=task)
        for task in range(result.sizes["task"])
        if result["metric_of"].values[task]
    ]
    columns = COLUMNS.get(width, 3)
    rows = -(-(1 + len(tasks)) // columns)
    with blank_page(width, 0.1 + 0.81 * rows / columns, "constrained") as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        panels, free = grid[: 1 + len(tasks)], grid[1 + len(tasks) :]

        # One line per curve in each panel.
        for index, curve in enumerate(curves):
            draw_curve(panels[0], result, "median", curve, look(index), curve.label)
            for axes, task in zip(panels[1:], tasks, strict=True):
                draw_curve(axes, task, "value", curve, look(index), curve.label)
        draw_guides(panels[0], 0, 1)
        for axes, task in zip(panels[1:], tasks, strict=True):
            draw_guides(axes, float(task["chance"]), float(task["baseline"]))

        # What the axes are.
        # Titles keep clear of the letters, which take more of a panel on a slide.
        room = (0.64 if width == "slide" else 0.82) * figure.get_figwidth() / columns
        median = wrapped(f"median of {valid} benchmark{'s' * (valid != 1)}", room)
        panels[0].set(ylabel=SCORE, title=median)
        if not valid:
            write_note(panels[0], "full model above\nchance in none")
        for axes, task in zip(panels[1:], tasks, strict=True):
            axes.set(ylabel=str(task["metric_of"].values), title=_title_of_task(task, room))
        for axes in panels:
            number_places(axes, layers, NARROW)
            axes.title.set_fontsize(font_size())
        for axes in panels[-columns:]:
            axes.set_xlabel("layer N")
        for axes in free:
            axes.set_axis_off()
        letter_panels(list(panels))

        # One legend below all panels, and the title.
        ncols = 2 if width == "column" else 3
        legend: dict[str, Any] = {"loc": "outside lower center", "ncols": ncols, "frameon": False}
        figure.legend(*panels[1].get_legend_handles_labels(), **legend, **COMPACT)
        title = f"{name_of(result)} · one layer skipped, or two switched"
        describe(figure, [title], caption_single_layers(result, curves, tasks), [result])
    return figure


def _draw_one_variant(result: xr.Dataset, number: int, width: str) -> Figure:
    """Figures 4 to 9: a thin line for each benchmark, a bold one for their median."""
    (curve,) = _curves_with_scores(result, number, [MIDDLE_CURVES[number]], "normalised")
    layers = int(result.attrs["layers"])
    valid = np.flatnonzero(result["valid"].values).tolist()
    has_seeds = curve.family == "random"
    with blank_page(width, _height(width), "constrained") as figure:
        axes = figure.subplots()

        # Benchmarks, with the spread over seeds where there are several, and their median.
        for index, aside in zip(valid, np.linspace(-ASIDE, ASIDE, len(valid)), strict=True):
            task, style = result.isel(task=index), look_of_task(index)
            draw_curve(axes, task, "normalised", curve, style, name_with_examples(task), band=False)
            if has_seeds:
                values, spread = (
                    place_values(task, curve, name) for name in ("normalised", "normalised_spread")
                )
                bars: dict[str, Any] = {
                    "fmt": "none",
                    "elinewidth": points(0.6),
                    "ecolor": style["color"],
                }
                axes.errorbar(np.arange(len(values)) + aside, values, spread, **bars)
        bold = {"color": LINE, "marker": "o"}
        draw_curve(axes, result, "median", curve, bold, "median", bold=True)
        draw_guides(axes, 0, 1)

        # Axes, legend and title.
        axes.set_ylabel(SCORE)
        label_starts(axes, result, _most_labels(width))
        below = 2 if width == "column" else 0
        draw_legend(figure, axes, axes, below=below, title="benchmark (examples)")
        title = f"{name_of(result)} · {describe_middle(number, layers)}"
        describe(figure, [title], caption_one_variant(result, curve, number), [result])
    return figure


def _draw_all_variants(result: xr.Dataset, width: str) -> Figure:
    """Figure 11: a line for each variant of the middle, its mean over benchmarks."""
    curves = _curves_with_scores(result, 11, MIDDLE_CURVES.values(), "mean")
    with blank_page(width, _height(width), "constrained") as figure:
        axes = figure.subplots()
        for curve in curves:
            draw_curve(axes, result, "mean", curve, look_of_family(curve.family), curve.label)
        draw_guides(axes, 0, 1)
        axes.set_ylabel(f"mean {SCORE}")
        label_starts(axes, result, _most_labels(width))
        draw_legend(figure, axes, axes, below=2 if width == "column" else 0)
        title = f"{name_of(result)} · {describe_middle(11, int(result.attrs['layers']))}"
        describe(figure, [title], caption_all_variants(result, curves), [result])
    return figure


def _height(width: str) -> float:
    """Of a figure with one panel, as a multiple of its width: more where the legend is below."""
    return 1.05 if width == "column" else 0.45


def _most_labels(width: str) -> int:
    """How many places of an axis as wide as the page can be labelled."""
    return NARROW if width == "column" else WIDE


def _draw_loops_by_width(result: xr.Dataset, width: str) -> Figure:
    """Figure 10: a heat map, widths to the right and loops upwards; of equals, the fewest loops are
    framed.
    """
    # seaborn remembers the settings it meets when it is first imported and imports pyplot, so it is
    # imported outside our style and by this figure only. It suits a table whose rows and columns
    # have one label each; the matrices of states have one per run of steps.
    import seaborn

    table = _tabulate_loops_by_width(result)
    scale, most = choose_scale(table.values), _most_labels(width)
    with blank_page(width, 0.8 if width == "column" else 0.62, "constrained") as figure:
        axes = figure.subplots()

        # Cells and their scale. In a PDF the cells are an image; shapes have hairlines between.
        label = f"mean {SCORE}" + " (grey: no score)" * bool(table.isna().any(axis=None))
        bar_options: dict[str, Any] = {
            "label": label,
            "aspect": 25,
            "pad": 0.02,
            "ticks": scale.ticks,
            "extend": scale.extend,
        }
        seaborn.heatmap(
            table,
            vmin=scale.low,
            vmax=scale.high,
            cmap=palette(),
            ax=axes,
            rasterized=True,
            xticklabels=label_step(table.shape[1], most),
            cbar_kws=bar_options,
        )
        axes.invert_yaxis()
        axes.spines[:].set_visible(True)
        axes.grid(False, which="both")
        _, bar = figure.axes
        finish_colour_bar(bar, scale)

        # The best of each width in a frame.
        for column in np.flatnonzero(table.count() > 1).tolist():
            _frame_cell(axes, column, int(np.nanargmax(table.values[:, column])))

        # Rows are labelled at round numbers. Then the title.
        step = label_step(len(table), most)
        rows = [row for row, loops in enumerate(table.index) if loops == 1 or loops % step == 0]
        axes.set_yticks([row + 0.5 for row in rows], table.index[rows].map(str), rotation=0)
        title = f"{name_of(result)} · {describe_middle(10, int(result.attrs['layers']))}"
        describe(figure, [title], caption_loops_by_width(result, table, scale), [result])
    return figure


def _tabulate_loops_by_width(result: xr.Dataset) -> pd.DataFrame:
    """Mean scores of the looped variants: a row per number of loops, a column per width, NaN where
    there is none.

    Raises:
        NotDrawn: no width has several numbers of loops, or none of these has a score.
    """
    names = {"variant_loops": "loops", "variant_affected": "number of parallel layers M"}
    loops, width = names.values()
    variants = result["mean"].to_dataframe().rename(columns=names)
    looped = variants[variants["variant_family"] == "looped_parallel"]
    # A width with a single number of loops has no best one: M = 1, say, whose loop is the baseline.
    looped = looped[looped.groupby(width)[loops].transform("count") > 1]
    if looped.empty:
        raise _missing_plans(result, 10, "looped_parallel with several loops")
    if looped["mean"].isna().all():
        raise _missing_scores(10, "looped_parallel", len(looped))
    # What was not evaluated has a row and a column as well; widths grow by a layer at both ends.
    rows = pd.RangeIndex(1, looped[loops].max() + 1, name=loops)
    columns = pd.RangeIndex(looped[width].min(), looped[width].max() + 1, 2, name=width)
    return looped.pivot(index=loops, columns=width, values="mean").reindex(rows, columns=columns)


def _frame_cell(axes: Axes, column: int, row: int) -> None:
    """A frame around a cell, with a white edge so that it is seen in grey."""
    edge: dict[str, Any] = {"edgecolor": MARK, "linewidth": points(1.2), "clip_on": False}
    frame = Rectangle((column, row), 1, 1, fill=False, zorder=3, **edge)
    frame.set_path_effects([withStroke(linewidth=points(2.4), foreground="white")])
    axes.add_patch(frame)


# What is in the result


def _curves_with_scores(
    result: xr.Dataset, number: int, curves: Iterable[Curve], name: str
) -> list[Curve]:
    """Those of a figure's curves that have a variant in the result.

    name: the variable that is drawn.

    Raises:
        NotDrawn: there is none, or none has a value.
    """
    wanted = list(curves)
    present = [curve for curve in wanted if find_rows(result, curve)]
    if not present:
        names = " or ".join(dict.fromkeys(curve.name for curve in wanted))
        raise _missing_plans(result, number, names)
    if not any(count_scored(result, curve, name) for curve in present):
        names = " and ".join(dict.fromkeys(curve.name for curve in present))
        raise _missing_scores(
            number, names, sum(len(find_rows(result, curve)) for curve in present)
        )
    return present


def _missing_plans(result: xr.Dataset, number: int, wanted: str) -> NotDrawn:
    families = dict.fromkeys(
        str(family) or "plans of no family" for family in result["variant_family"].values
    )
    here = f"no {wanted} among {', '.join(families)}"
    return NotDrawn(
        f"figure {number}: {here}; evaluate with --plan fig{number} --append", MISSING_PLANS
    )


def _missing_scores(number: int, names: str, variants: int) -> NotDrawn:
    why = "the evaluation is unfinished, or their states became non-finite"
    return NotDrawn(
        f"figure {number}: none of {variants} variants of {names} has a score: {why}", "no scores"
    )


def _title_of_task(task: xr.Dataset, inches: float) -> str:
    """The name of a benchmark, its examples, and a warning where the full model cannot do it."""
    title = wrapped(f"{task['task'].item()}, {int(task['examples'])} examples", inches)
    if np.isnan(float(task["baseline"])):
        return f"{title}\n" + wrapped("(full model without a score)", inches)
    if not task["valid"].item():
        return f"{title}\n" + wrapped("(full model not above chance)", inches)
    return title
