"""Datasets of results as figures fit for a paper; nothing is computed or read here.

A figure takes its words and numbers from a Dataset, its style from this module and nothing from
the user's settings, so the same result gives the same bytes everywhere. pyplot is never imported.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Literal, get_args

import matplotlib
import matplotlib.figure
import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.text import Text
from numpy.typing import NDArray

from repsim.schema import RepsimError

Width = Literal["column", "page"]

WIDTHS = {"column": 3.35, "page": 6.9}  # inches; one and two columns of the usual templates
POINTS = 72  # an inch
FONT = 7  # points
MARGIN = 0.08  # inches of height around title and axes
STYLE = {
    "font.size": FONT,
    "figure.titlesize": FONT,
    "axes.linewidth": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.labelpad": 3,
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: text stays text, as journals ask
    "text.parse_math": False,  # a dollar in a corpus' name is a dollar
}
PALETTE = "viridis"  # even in lightness, so it survives grey printing and colour blindness
LINE = "#440154"  # the palette's darkest
UNDEFINED = "0.85"  # grey of a cell that has no value
LABEL_STEPS = (1, 2, 5, 10, 20, 50, 100)
MOST_LABELS = 13


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
    def text(self) -> str:
        """The label and how often, about 13 characters: of a wide parallel step, the two ends."""
        label, parts = self.label, self.label.split("|")
        times = f" ×{self.times}" if self.times > 1 else ""  # noqa: RUF001
        room = 13 - len(times)
        if len(label) > room:
            label = f"{parts[0]}|…|{parts[-1]}" if len(parts) > 2 else f"{label[: room - 1]}…"
        return label + times

    def follows(self, other: Run) -> bool:
        """Whether the two are neighbouring layers, up or down the stack."""
        layers = self.label.isdecimal() and other.label.isdecimal()
        return layers and abs(int(self.label) - int(other.label)) == 1


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png")
        return buffer.getvalue()


def similarity_matrix(result: xr.Dataset, *, width: Width = "column") -> Figure:
    """Heat map of a `cosine` matrix, the first state at the top left.

    The colour scale ends at 1 and begins at the smallest value, rounded down; where that is
    negative, a line in the colour bar marks zero. A cell without a value is grey.

    Args:
        result: `cosine` over (state, state_other) with coordinates `layer` and `layer_other`;
            attributes model, plan, corpus, tokens and average, for the title.
        width: `column` (3.35 in) or `page` (6.9 in).
    Raises:
        RepsimError: an unknown width.
    """
    _check_width(width)
    with _style():
        inches = WIDTHS[width]
        figure = Figure(figsize=(inches, 1.5 * inches), layout="compressed")
        title = figure.suptitle(_title(result, inches))
        axes = figure.add_subplot(xlabel="state after layer", ylabel="state after layer")
        _heat_map(figure, axes, result["cosine"].values)
        _fit(figure, axes, title, [str(label) for label in result["layer"].values])
    return figure


def profile(result: xr.Dataset, name: str, label: str, *, width: Width = "column") -> Figure:
    """A quantity of each state against the states, with a band of two standard errors; logarithmic if positive.

    Args:
        result: `name` and `standard_error` over state, with the coordinate `layer`; attributes model, plan, corpus and
            tokens, for the title.
        name: the quantity.
        label: what the y axis says.
        width: `column` (3.35 in) or `page` (6.9 in).
    Raises:
        RepsimError: an unknown width.
    """
    _check_width(width)
    with _style():
        inches = WIDTHS[width]
        figure = Figure(figsize=(inches, 0.75 * inches), layout="constrained")
        figure.suptitle(_title(result, inches))
        axes = figure.add_subplot(xlabel="state after layer", ylabel=label)
        values, error = result[name].values, 2 * result["standard_error"].values
        states = np.arange(len(values))
        axes.fill_between(states, values - error, values + error, color=LINE, alpha=0.3, linewidth=0)
        axes.plot(states, values, color=LINE, linewidth=1, marker="o", markersize=2)
        if (values > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,g}")  # powers of ten would need mathtext
        axes.set_xlim(-0.5, len(values) - 0.5)
        figure.draw_without_rendering()
        cell = axes.get_window_extent().width / figure.dpi * POINTS / len(values)
        runs = _labelled(_runs([str(text) for text in result["layer"].values]), cell)
        _label_x(axes, runs)
    return figure


def _check_width(width: str) -> None:
    if width not in get_args(Width):
        raise RepsimError(f"width={width!r}: choose {' or '.join(get_args(Width))}")


def save(figure: matplotlib.figure.Figure, path: str | Path) -> list[Path]:
    """Writes a figure as PNG (300 dpi) and PDF, without dates, and returns the two paths.

    Args:
        figure: any matplotlib figure.
        path: where to, without suffix; folders that are missing are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (path.with_name(path.name + suffix) for suffix in (".png", ".pdf"))
    with _style():
        figure.savefig(png, dpi=300)
        figure.savefig(pdf, dpi=600, metadata={"CreationDate": None})
    return [png, pdf]


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults with ours on top, for the length of a `with` block."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def _title(result: xr.Dataset, inches: float) -> str:
    """Model and plan; corpus, tokens and average: a line each, more where they are long."""
    of = result.attrs
    lines = (
        f"{of['model']} · {of['plan']}",
        f"{of['corpus']} · {of['tokens']:,} tokens" + (f" · {of['average']} average" if "average" in of else ""),
    )
    characters = int(inches * POINTS / (0.62 * FONT))
    return "\n".join(textwrap.fill(line, characters, break_on_hyphens=False) for line in lines)


def _heat_map(figure: Figure, axes: Axes, values: NDArray[np.float64]) -> None:
    """Square cells and a colour bar as high as they."""
    ticks = _scale(values)
    palette = matplotlib.colormaps[PALETTE].with_extremes(bad=UNDEFINED)
    image = axes.imshow(values, cmap=palette, vmin=ticks[0], vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.02, ticks=ticks)
    bar.outline.set_visible(False)
    bar.set_label("mean cosine similarity" + " (grey: undefined)" * bool(np.isnan(values).any()))
    if ticks[0] < 0:
        bar.ax.axhline(0, color="white", linewidth=0.8)


def _scale(values: NDArray[np.float64]) -> list[float]:
    """Ticks of the colour scale: its start, then round numbers at even distances up to 1.

    The start is the smallest value, rounded down to a tenth, or finer where all lie close to 1.
    """
    span = 1 - float(np.nanmin(values, initial=1))
    unit = min(0.1, 10.0 ** math.floor(math.log10(max(span, 0.01) / 2)))
    units = min(max(math.ceil(span / unit - 1e-3), 1), round(2 / unit))
    step = next(step for step in (1, 2, 5) if units / step <= 6)
    return [round(1 - i * unit, 6) for i in sorted({units, *range(0, units, step)}, reverse=True)]


def _fit(figure: Figure, axes: Axes, title: Text, labels: Sequence[str]) -> None:
    """Labels the axes and trims the figure's height; twice, as each changes the other."""
    for _ in range(2):
        figure.draw_without_rendering()
        side = axes.get_window_extent().height / figure.dpi * POINTS
        _label(axes, labels, side / len(labels))
        figure.draw_without_rendering()
        boxes = axes.get_tightbbox(), title.get_window_extent()
        figure.set_figheight(sum(box.height for box in boxes if box) / figure.dpi + MARGIN)


def _label(axes: Axes, labels: Sequence[str], cell: float) -> None:
    """Ticks at the states that are labelled; along x all but short labels stand upright."""
    runs = _labelled(_runs(labels), cell)
    axes.set_yticks([run.middle for run in runs], [run.text for run in runs])
    _label_x(axes, runs)


def _label_x(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_xticks([run.middle for run in runs], [run.text for run in runs])
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
    multiples = [run for run in runs if run.label.isdecimal() and int(run.label) % step == 0]
    chosen: list[Run] = []
    for run in (runs[0], runs[-1], *breaks, *multiples):
        if all(abs(run.middle - other.middle) * cell >= 1.6 * FONT for other in chosen):
            chosen.append(run)
    return sorted(chosen, key=attrgetter("middle"))
