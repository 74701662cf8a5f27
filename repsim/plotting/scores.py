"""Figures of benchmark scores under layer plans: those of "Transformer Layers as Painters".

They know what the analysis degradation gives, and neither store nor plan. A number that is not in
the result is a hole in its line or a grey cell. Source: Sun et al. 2024, arXiv 2407.09298, figures
2 and 4 to 11.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from repsim.errors import RepsimError, printable
from repsim.plotting.curves import (
    NARROW,
    SCORE,
    WIDE,
    count_scored,
    describe_intervals,
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
    write_title,
)
from repsim.plotting.page import (
    COMPACT,
    FONT,
    LINE,
    MARK,
    PALETTE,
    UNDEFINED,
    WIDTHS,
    Figure,
    blank_page,
    wrapped,
)
from repsim.studies.painters import (
    FIGURE_NUMBERS,
    MIDDLE_CURVES,
    SINGLE_LAYER_CURVES,
    Curve,
    count_places,
    describe_middle,
)

COLUMNS = 3  # of panels
ASIDE = 0.25  # of a start, how far whiskers go to either side so that none hides another


def degradation(result: xr.Dataset, figure: int) -> Figure:
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
    Raises:
        RepsimError: there is no such figure, its variants are not in the result or have no score,
            or the full model is above chance in no benchmark, so that nothing can be normalised.
    """
    if figure not in FIGURE_NUMBERS:
        first, *others = map(str, FIGURE_NUMBERS)
        raise RepsimError(f"figure={figure}: choose {first} or one of {', '.join(others)}")
    if figure != 2 and not result["valid"].values.any():
        tasks = ", ".join(map(str, result["task"].values))
        raise RepsimError(
            f"figure {figure}: the full model is not above chance in any of {tasks}; draw figure 2"
        )
    if figure in MIDDLE_CURVES:
        return _draw_one_variant(result, figure)
    draw = {2: _draw_single_layers, 10: _draw_loops_by_width, 11: _draw_all_variants}[figure]
    return draw(result)


# The paper's figures


def _draw_single_layers(result: xr.Dataset) -> Figure:
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
    rows = -(-(1 + len(tasks)) // COLUMNS)
    with blank_page("page", 0.1 + 0.27 * rows, "constrained") as figure:
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
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
        panels[0].set(ylabel=SCORE, title=f"median of {valid} benchmark{'s' * (valid != 1)}")
        if not valid:
            write_note(panels[0], "full model above\nchance in none")
        for axes, task in zip(panels[1:], tasks, strict=True):
            axes.set(ylabel=str(task["metric_of"].values), title=_title_of_task(task))
        for axes in panels:
            number_places(axes, layers, NARROW)
            axes.title.set_fontsize(FONT)
        for axes in panels[-COLUMNS:]:
            axes.set_xlabel("layer N")
        for axes in free:
            axes.set_axis_off()

        # One legend below all panels, and the title.
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, **COMPACT
        )
        counts = [
            f"{curve.label}: {count_scored(result, curve, 'value')} of "
            f"{count_places(curve.family, layers)}"
            for curve in curves
        ]
        title = "one layer skipped, or two switched"
        write_title(figure, result, title, ", ".join(counts), describe_intervals(result))
    return figure


def _draw_one_variant(result: xr.Dataset, number: int) -> Figure:
    """Figures 4 to 9: a thin line for each benchmark, a bold one for their median."""
    (curve,) = _curves_with_scores(result, number, [MIDDLE_CURVES[number]], "normalised")
    layers = int(result.attrs["layers"])
    valid = np.flatnonzero(result["valid"].values).tolist()
    has_seeds = curve.family == "random"
    with blank_page("page", 0.45, "constrained") as figure:
        axes = figure.subplots()

        # Benchmarks, with the spread over seeds where there are several, and their median.
        for index, aside in zip(valid, np.linspace(-ASIDE, ASIDE, len(valid)), strict=True):
            task, style = result.isel(task=index), look_of_task(index)
            draw_curve(
                axes, task, "normalised", curve, style, _name_with_examples(task), band=False
            )
            if has_seeds:
                values, spread = (
                    place_values(task, curve, name) for name in ("normalised", "normalised_spread")
                )
                bars: dict[str, Any] = {"fmt": "none", "elinewidth": 0.6, "ecolor": style["color"]}
                axes.errorbar(np.arange(len(values)) + aside, values, spread, **bars)
        bold = {"color": LINE, "marker": "o"}
        draw_curve(axes, result, "median", curve, bold, "median", bold=True)
        draw_guides(axes, 0, 1)

        # Axes, legend and title.
        axes.set_ylabel(SCORE)
        label_starts(axes, result)
        draw_legend(axes, axes, title="benchmark (examples)")
        starts = count_places(curve.family, layers)
        facts = [
            f"{count_scored(result, curve, 'median')} of {starts} starts",
            *([_describe_seeds(result, curve)] if has_seeds else []),
            f"band: the median's interval, {result.attrs['interval']}",
        ]
        whiskers = "whiskers, side by side: each benchmark's standard deviation over seeds"
        lines = (" · ".join(facts), whiskers * has_seeds, _describe_left_out(result))
        write_title(figure, result, describe_middle(number, layers), *lines)
    return figure


def _draw_all_variants(result: xr.Dataset) -> Figure:
    """Figure 11: a line for each variant of the middle, its mean over benchmarks."""
    curves = _curves_with_scores(result, 11, MIDDLE_CURVES.values(), "mean")
    layers = int(result.attrs["layers"])
    with blank_page("page", 0.45, "constrained") as figure:
        axes = figure.subplots()
        for curve in curves:
            draw_curve(axes, result, "mean", curve, look_of_family(curve.family), curve.label)
        draw_guides(axes, 0, 1)
        axes.set_ylabel(f"mean {SCORE}")
        label_starts(axes, result)
        draw_legend(axes, axes)
        counts = [
            f"{curve.family} {count_scored(result, curve, 'mean')}"
            + (f" ({_describe_seeds(result, curve)})" if curve.family == "random" else "")
            for curve in curves
        ]
        lines = (
            f"starts drawn, of {count_places('skip', layers)}: {', '.join(counts)}",
            describe_intervals(result),
            _describe_left_out(result),
        )
        title = describe_middle(11, layers)
        write_title(figure, result, title, _describe_benchmarks(result), *lines)
    return figure


def _draw_loops_by_width(result: xr.Dataset) -> Figure:
    """Figure 10: a heat map, widths to the right and loops upwards; of equals, the fewest loops are
    framed.
    """
    # seaborn remembers the settings it meets when it is first imported and imports pyplot, so it is
    # imported outside our style and by this figure only. It suits a table whose rows and columns
    # have one label each; the matrices of states have one per run of steps.
    import seaborn

    table = _tabulate_loops_by_width(result)
    layers = int(result.attrs["layers"])
    with blank_page("page", 0.62, "constrained") as figure:
        axes = figure.subplots()

        # Cells and their scale. In a PDF the cells are an image; shapes have hairlines between.
        palette = matplotlib.colormaps[PALETTE].with_extremes(bad=UNDEFINED)
        low, high = min(0, table.min(axis=None)), max(1, table.max(axis=None))
        label = f"mean {SCORE}" + " (grey: no score)" * bool(table.isna().any(axis=None))
        seaborn.heatmap(
            table,
            vmin=low,
            vmax=high,
            cmap=palette,
            ax=axes,
            rasterized=True,
            xticklabels=label_step(table.shape[1], WIDE),
            cbar_kws={"label": label, "aspect": 25, "pad": 0.02},
        )
        axes.invert_yaxis()
        axes.spines[:].set_visible(True)
        _, bar = figure.axes
        for level in {0, 1} - {low, high}:
            bar.axhline(level, color="white", linewidth=0.8)

        # The best of each width in a frame.
        for column in np.flatnonzero(table.count() > 1).tolist():
            _frame_cell(axes, column, int(np.nanargmax(table.values[:, column])))

        # Rows are labelled at round numbers. Then the title.
        step = label_step(len(table), WIDE)
        rows = [row for row, loops in enumerate(table.index) if loops == 1 or loops % step == 0]
        axes.set_yticks([row + 0.5 for row in rows], table.index[rows].map(str), rotation=0)
        lines = (
            f"{table.count().sum()} of {table.size} cells · "
            "framed: the best number of loops for each M",
            "colours: the mean over benchmarks, from 0 (chance) to 1 (full model)",
            _describe_left_out(result),
        )
        title = describe_middle(10, layers)
        write_title(figure, result, title, _describe_benchmarks(result), *lines)
    return figure


def _tabulate_loops_by_width(result: xr.Dataset) -> pd.DataFrame:
    """Mean scores of the looped variants: a row per number of loops, a column per width, NaN where
    there is none.

    Raises:
        RepsimError: no width has several numbers of loops, or none of these has a score.
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
    frame = Rectangle((column, row), 1, 1, fill=False, edgecolor=MARK, linewidth=1.2, zorder=3)
    frame.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
    axes.add_patch(frame)


# What is in the result


def _curves_with_scores(
    result: xr.Dataset, number: int, curves: Iterable[Curve], name: str
) -> list[Curve]:
    """Those of a figure's curves that have a variant in the result.

    name: the variable that is drawn.

    Raises:
        RepsimError: there is none, or none has a value.
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


def _missing_plans(result: xr.Dataset, number: int, wanted: str) -> RepsimError:
    families = dict.fromkeys(
        str(family) or "plans of no family" for family in result["variant_family"].values
    )
    here = f"no {wanted} among {', '.join(families)}"
    return RepsimError(f"figure {number}: {here}; evaluate with --plan fig{number} --append")


def _missing_scores(number: int, names: str, variants: int) -> RepsimError:
    why = "the evaluation is unfinished, or their states became non-finite"
    return RepsimError(
        f"figure {number}: none of {variants} variants of {names} has a score: {why}"
    )


# Words


def _name_with_examples(task: xr.Dataset) -> str:
    return printable(f"{task['task'].item()} ({int(task['examples'])})")


def _describe_benchmarks(result: xr.Dataset) -> str:
    """The valid benchmarks and their numbers of examples."""
    valid = np.flatnonzero(result["valid"].values).tolist()
    names = [_name_with_examples(result.isel(task=task)) for task in valid]
    return f"mean over benchmarks (examples): {', '.join(names)}"


def _describe_left_out(result: xr.Dataset) -> str:
    """The benchmarks that are not valid; empty where all are."""
    tasks = result["task"].values[result["valid"].values == 0]
    if not len(tasks):
        return ""
    return f"left out, the full model not above chance: {', '.join(map(str, tasks))}"


def _title_of_task(task: xr.Dataset) -> str:
    """The name of a benchmark, its examples, and a warning where the full model cannot do it."""
    title = wrapped(
        f"{task['task'].item()}, {int(task['examples'])} examples", WIDTHS["page"] / COLUMNS
    )
    if np.isnan(float(task["baseline"])):
        return title + "\n(full model without a score)"
    return title + "\n(full model not above chance)" * (not task["valid"].item())


def _describe_seeds(result: xr.Dataset, curve: Curve) -> str:
    counts = result["variant_seeds"].values[list(find_rows(result, curve).values())]
    fewest, most = int(counts.min()), int(counts.max())
    return f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
