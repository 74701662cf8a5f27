"""Figures of benchmark scores under layer plans: those of "Transformer Layers as Painters", and
scores against latency.

They know what the analyses degradation and latency give, and neither store nor plan. A number that
is not in the result is a hole in its line or a grey cell. Source: Sun et al. 2024, arXiv
2407.09298, figures 2 and 4 to 11.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from repsim.errors import RepsimError, printable
from repsim.plotting.curves import (
    FAMILIES,
    NARROW,
    WIDE,
    Sweep,
    affected,
    curve,
    guides,
    label_step,
    legend,
    look,
    look_of_family,
    look_of_task,
    note,
    number,
    number_of_starts,
    start_axes,
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
    name_of,
    wrapped,
)

LOOPS = 3  # of the looped_parallel that is a curve
SCORE = "normalised score"
COLUMNS = 3  # of panels
ASIDE = 0.25  # of a start, how far whiskers go to either side so that none hides another
LONG = 3  # times the full model's time, from which times are drawn on a logarithmic axis
# What such an axis labels.
TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
OF_ONE_LAYER = (
    Sweep("skip layer N", "drop", "layer"),
    Sweep("switch layers N and N+1", "switch", "layer"),
    Sweep("skip attention of N", "drop", "layer", "attn"),
    Sweep("skip MLP of N", "drop", "layer", "mlp"),
)
OF_THE_MIDDLE = {
    4: Sweep("skip", "skip"),
    5: Sweep("middle repeat", "middle_repeat"),
    6: Sweep("reverse", "reverse"),
    7: Sweep("random order", "random"),
    8: Sweep("parallel", "parallel"),
    9: Sweep(f"looped parallel, {LOOPS} loops", "looped_parallel", loops=LOOPS),
}
DONE = {
    4: "skipped",
    5: "each replaced by layer {centre}",
    6: "run backwards",
    7: "run in random order",
    8: "run in parallel, their outputs averaged",
    9: f"run in parallel {LOOPS} times, the average of their outputs fed back",
    10: "run in parallel, the average of their outputs fed back",
    11: "under each variant",
}


def degradation(found: xr.Dataset, figure: int) -> Figure:
    """Scores under layer plans, drawn as in one of the paper's figures.

    2: a layer skipped, or switched with the next, against the layer: the median over benchmarks,
    then each benchmark. 4 to 9: a variant of the middle against its start: each benchmark, and
    their median with its interval.
    10: parallel layers looped: the mean over benchmarks by width and loops; of each width, the best
    is framed.
    11: all variants of the middle against their start: the mean over benchmarks with its interval.

    Args:
        found: of `repsim.analyses.degradation`.
        figure: 2 or 4 to 11.
    Raises:
        RepsimError: there is no such figure, its variants are not in the result or have no score,
            or the full model is above chance in no benchmark, so that nothing can be normalised.
    """
    if figure != 2 and figure not in DONE:
        raise RepsimError(f"figure={figure}: choose 2 or one of {', '.join(map(str, DONE))}")
    if figure != 2 and not found["valid"].values.any():
        tasks = ", ".join(map(str, found["task"].values))
        raise RepsimError(
            f"figure {figure}: the full model is not above chance in any of {tasks}; draw figure 2"
        )
    if figure in OF_THE_MIDDLE:
        return _one_variant(found, figure)
    return {2: _single_layers, 10: _loops_by_width, 11: _all_variants}[figure](found)


def latency(found: xr.Dataset) -> Figure:
    """Mean normalised score of each plan against its critical path and against its measured time
    per token.

    Both are relative to the full model's. A plan that was not timed is in the left panel only.

    Args:
        found: of `repsim.analyses.latency`.
    Raises:
        RepsimError: the full model is not in the result, or nothing has a score.
    """
    families, scored = found["variant_family"].values, np.isfinite(found["mean"].values)
    if "baseline" not in families:
        raise RepsimError(
            "latency: the full model is not in the result; add --plan baseline --append"
        )
    if not scored.any():
        raise RepsimError(f"latency: none of {len(scored)} variants has a normalised score")
    full = found.isel(variant=int(np.flatnonzero(families == "baseline")[0]))
    steps, milliseconds = int(full["critical_path"]), float(full["milliseconds"])
    timed = np.isfinite(found["milliseconds"].values)
    with blank_page("page", 0.42, "constrained") as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _costs(left, found, found["critical_path"].values / steps)
        _costs(right, found, found["milliseconds"].values / milliseconds)
        left.set(ylabel=f"mean {SCORE}", xlabel=f"critical path / the full model's ({steps} steps)")
        time = f" ({milliseconds:.3g} ms)" if np.isfinite(milliseconds) else ""
        right.set_xlabel(f"time per token / the full model's{time}")
        legend(right, left)
        lines = (
            "scores against sequential steps and time",
            f"mean over {found.attrs['benchmarks']}" if found.attrs.get("benchmarks") else "",
            f"{scored.sum()} of {len(scored)} variants have a score, {timed.sum()} were timed · {_intervals(found)}",
        )
        _title(figure, found, *lines)
    return figure


# The paper's figures


def _single_layers(found: xr.Dataset) -> Figure:
    """Figure 2: a panel for the median of normalised scores, then one for each benchmark's own
    score.
    """
    sweeps = _present(found, 2, OF_ONE_LAYER, "value")
    layers, valid = int(found.attrs["layers"]), int(found["valid"].sum())
    tasks = [
        found.isel(task=task)
        for task in range(found.sizes["task"])
        if found["metric_of"].values[task]
    ]
    rows = -(-(1 + len(tasks)) // COLUMNS)
    with blank_page("page", 0.1 + 0.27 * rows, "constrained") as figure:
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        panels, free = grid[: 1 + len(tasks)], grid[1 + len(tasks) :]
        for index, sweep in enumerate(sweeps):
            curve(panels[0], found, "median", sweep, look(index), sweep.label)
            for axes, task in zip(panels[1:], tasks, strict=True):
                curve(axes, task, "value", sweep, look(index), sweep.label)
        guides(panels[0], 0, 1)
        panels[0].set(ylabel=SCORE, title=f"median of {valid} benchmark{'s' * (valid != 1)}")
        for axes, task in zip(panels[1:], tasks, strict=True):
            guides(axes, float(task["chance"]), float(task["baseline"]))
            axes.set(ylabel=str(task["metric_of"].values), title=_task_title(task))
        for axes in panels:
            number(axes, layers, NARROW)
            axes.title.set_fontsize(FONT)
        for axes in panels[-COLUMNS:]:
            axes.set_xlabel("layer N")
        for axes in free:
            axes.set_axis_off()
        if not valid:
            note(panels[0], "full model above\nchance in none")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, **COMPACT
        )
        places = {sweep: layers - (sweep.family == "switch") for sweep in sweeps}
        drawn = [
            f"{sweep.label}: {sweep.count(found, 'value')} of {many}"
            for sweep, many in places.items()
        ]
        _title(
            figure, found, "one layer skipped, or two switched", ", ".join(drawn), _intervals(found)
        )
    return figure


def _one_variant(found: xr.Dataset, number: int) -> Figure:
    """Figures 4 to 9: a thin line for each benchmark, a bold one for their median."""
    (sweep,) = _present(found, number, [OF_THE_MIDDLE[number]], "normalised")
    valid = np.flatnonzero(found["valid"].values).tolist()
    seeded = sweep.family == "random"
    with blank_page("page", 0.45, "constrained") as figure:
        axes = figure.subplots()
        for index, aside in zip(valid, np.linspace(-ASIDE, ASIDE, len(valid)), strict=True):
            task, look = found.isel(task=index), look_of_task(index)
            curve(axes, task, "normalised", sweep, look, _with_examples(task), band=False)
            if seeded:
                values, spread = (
                    sweep.values(task, name) for name in ("normalised", "normalised_spread")
                )
                style: dict[str, Any] = {"fmt": "none", "elinewidth": 0.6, "ecolor": look["color"]}
                axes.errorbar(np.arange(len(values)) + aside, values, spread, **style)
        curve(axes, found, "median", sweep, {"color": LINE, "marker": "o"}, "median", bold=True)
        guides(axes, 0, 1)
        axes.set_ylabel(SCORE)
        start_axes(axes, found)
        legend(axes, axes, title="benchmark (examples)")
        drawn = (
            f"{sweep.count(found, 'median')} of {number_of_starts(found.attrs['layers'])} starts"
        )
        lines = (
            " · ".join(
                [
                    drawn,
                    *([_seeds(found, sweep)] if seeded else []),
                    f"band: the median's {_interval(found)}",
                ]
            ),
            "whiskers, side by side: each benchmark's standard deviation over seeds" * seeded,
            _left_out(found),
        )
        _title(figure, found, _middle(found, number), *lines)
    return figure


def _all_variants(found: xr.Dataset) -> Figure:
    """Figure 11: a line for each variant of the middle, its mean over benchmarks."""
    sweeps = _present(found, 11, OF_THE_MIDDLE.values(), "mean")
    with blank_page("page", 0.45, "constrained") as figure:
        axes = figure.subplots()
        for sweep in sweeps:
            curve(axes, found, "mean", sweep, look_of_family(sweep.family), sweep.label)
        guides(axes, 0, 1)
        axes.set_ylabel(f"mean {SCORE}")
        start_axes(axes, found)
        legend(axes, axes)
        seeds = {
            sweep: f" ({_seeds(found, sweep)})" if sweep.family == "random" else ""
            for sweep in sweeps
        }
        drawn = ", ".join(
            f"{sweep.family} {sweep.count(found, 'mean')}{text}" for sweep, text in seeds.items()
        )
        lines = (
            f"starts drawn, of {number_of_starts(found.attrs['layers'])}: {drawn}",
            _intervals(found),
            _left_out(found),
        )
        _title(figure, found, _middle(found, 11), _benchmarks(found), *lines)
    return figure


def _loops_by_width(found: xr.Dataset) -> Figure:
    """Figure 10: a heat map, widths to the right and loops upwards; of equals, the fewest loops are
    framed.
    """
    of = {name: found[f"variant_{name}"].values for name in ("family", "start", "loops")}
    own = np.flatnonzero(of["family"] == "looped_parallel")
    widths, times = np.unique(of["start"][own], return_counts=True)
    # Of one number of loops, none is the best.
    own = own[np.isin(of["start"][own], widths[times > 1])]
    if not len(own):
        raise _missing(found, 10, "looped_parallel with several loops")
    starts, loops = of["start"][own], of["loops"][own]
    values = np.full((loops.max(), np.ptp(starts) + 1), np.nan)
    values[loops - 1, starts.max() - starts] = found["mean"].values[own]
    if np.isnan(values).all():
        raise _unfinished(10, "looped_parallel", len(own))
    with blank_page("page", 0.62, "constrained") as figure:
        axes = figure.subplots()
        palette = matplotlib.colormaps[PALETTE].with_extremes(bad=UNDEFINED)
        low, high = min(0, np.nanmin(values)), max(1, np.nanmax(values))
        image = axes.imshow(
            values,
            palette,
            vmin=low,
            vmax=high,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
        )
        for column in np.flatnonzero(np.isfinite(values).sum(0) > 1).tolist():
            corner = (column - 0.5, int(np.nanargmax(values[:, column])) - 0.5)
            frame = Rectangle(corner, 1, 1, fill=False, edgecolor=MARK, linewidth=1.2, zorder=3)
            # So that it is seen in grey.
            frame.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
            axes.add_patch(frame)
        bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(f"mean {SCORE}" + " (grey: no score)" * bool(np.isnan(values).any()))
        for level in {0, 1} - {low, high}:
            bar.ax.axhline(level, color="white", linewidth=0.8)
        columns = range(0, values.shape[1], label_step(values.shape[1], WIDE))
        axes.set_xticks(
            columns,
            [str(affected(found.attrs["layers"], starts.max() - column)) for column in columns],
        )
        step = label_step(len(values), WIDE)
        rows = [row for row in range(len(values)) if row == 0 or (row + 1) % step == 0]
        axes.set_yticks(rows, [str(row + 1) for row in rows])
        axes.set(xlabel="number of parallel layers M", ylabel="loops")
        lines = (
            f"{np.isfinite(values).sum()} of {values.size} cells · framed: the best number of loops for each M",
            "colours: the mean over benchmarks, from 0 (chance) to 1 (full model)",
            _left_out(found),
        )
        _title(figure, found, _middle(found, 10), _benchmarks(found), *lines)
    return figure


def _costs(axes: Axes, found: xr.Dataset, cost: NDArray[np.float64]) -> None:
    """Each plan's mean score against a cost as a share of the full model's, which is a star; rare
    families on top.
    """
    mean, families = found["mean"].values, found["variant_family"].values
    error = np.abs(np.stack([found["mean_low"].values, found["mean_high"].values]) - mean)
    for family, label in FAMILIES.items():
        if (own := families == family).any():
            look, order = look_of_family(family), 3 - own.mean()
            whiskers: dict[str, Any] = {
                "fmt": "none",
                "ecolor": look["color"],
                "elinewidth": 0.4,
                "alpha": 0.4,
            }
            axes.errorbar(cost[own], mean[own], error[:, own], **whiskers, zorder=order)
            axes.plot(
                cost[own],
                mean[own],
                **look,
                linestyle="none",
                markersize=2.5,
                label=label,
                zorder=order,
            )
    guides(axes, 0, 1)
    star: dict[str, Any] = {
        "color": MARK,
        "markersize": 8,
        "markeredgecolor": "black",
        "markeredgewidth": 0.4,
    }
    base = families == "baseline"
    axes.plot(cost[base], mean[base], "*", **star, label="full model", zorder=4)
    if np.isnan(cost).all():
        note(axes, "not measured")
        axes.set_xticks([])
    elif np.nanmax(cost) > LONG:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([time for time in TIMES if low <= time <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)


# What is in the result


def _present(found: xr.Dataset, number: int, sweeps: Iterable[Sweep], name: str) -> list[Sweep]:
    """The sweeps that are in the result.

    Raises:
        RepsimError: there is none, or none has a value.
    """
    wanted = list(sweeps)
    present = [sweep for sweep in wanted if sweep.rows(found)]
    if not present:
        raise _missing(found, number, " or ".join(dict.fromkeys(sweep.name for sweep in wanted)))
    if not any(sweep.count(found, name) for sweep in present):
        names = " and ".join(dict.fromkeys(sweep.name for sweep in present))
        raise _unfinished(number, names, sum(len(sweep.rows(found)) for sweep in present))
    return present


def _missing(found: xr.Dataset, number: int, asked: str) -> RepsimError:
    families = dict.fromkeys(
        str(family) or "plans of no family" for family in found["variant_family"].values
    )
    here = f"no {asked} among {', '.join(families)}"
    return RepsimError(f"figure {number}: {here}; evaluate with --plan fig{number} --append")


def _unfinished(number: int, names: str, variants: int) -> RepsimError:
    why = "the evaluation is unfinished, or their states became non-finite"
    return RepsimError(
        f"figure {number}: none of {variants} variants of {names} has a score: {why}"
    )


# Words


def _title(figure: Figure, found: xr.Dataset, *lines: str) -> None:
    """The model and what was done to it, then further lines; empty ones are left out."""
    texts = [f"{name_of(found)} · {lines[0]}", *filter(None, lines[1:])]
    figure.suptitle("\n".join(wrapped(text, figure.get_figwidth()) for text in texts))


def _middle(found: xr.Dataset, number: int) -> str:
    layers = int(found.attrs["layers"])
    return f"layers N+1 to {layers - 1}-N {DONE[number].format(centre=layers // 2)}"


def _with_examples(task: xr.Dataset) -> str:
    return printable(f"{task['task'].item()} ({int(task['examples'])})")


def _benchmarks(found: xr.Dataset) -> str:
    """The valid benchmarks and their numbers of examples."""
    valid = np.flatnonzero(found["valid"].values).tolist()
    return "mean over benchmarks (examples): " + ", ".join(
        _with_examples(found.isel(task=task)) for task in valid
    )


def _left_out(found: xr.Dataset) -> str:
    """The benchmarks that are not, if any."""
    tasks = found["task"].values[found["valid"].values == 0]
    return (
        f"left out, the full model not above chance: {', '.join(map(str, tasks))}"
        if len(tasks)
        else ""
    )


def _task_title(task: xr.Dataset) -> str:
    """The name of a benchmark, its examples, and a warning where the full model cannot do it."""
    title = wrapped(
        f"{task['task'].item()}, {int(task['examples'])} examples", WIDTHS["page"] / COLUMNS
    )
    if np.isnan(float(task["baseline"])):
        return title + "\n(full model without a score)"
    return title + "\n(full model not above chance)" * (not task["valid"].item())


def _seeds(found: xr.Dataset, sweep: Sweep) -> str:
    counts = found["variant_seeds"].values[list(sweep.rows(found).values())]
    fewest, most = int(counts.min()), int(counts.max())
    return f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"


def _interval(found: xr.Dataset) -> str:
    return f"interval, {found.attrs['interval']}"


def _intervals(found: xr.Dataset) -> str:
    return f"intervals: {found.attrs['interval']}"
