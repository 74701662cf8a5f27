"""Heat maps: the scale of their colours, the same for the same measure, and their colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.plotting.page import PALETTE, UNDEFINED, options_in_force, points

MOST_TICKS = 6  # steps between the ticks of a colour bar


@dataclass(frozen=True)
class ColourScale:
    """Where the colours of a heat map begin and end.

    extend: `neither`, `min`, `max` or `both`: on which sides there are values beyond the scale,
        which have the colour of its end; the colour bar has an arrow there.
    """

    low: float
    high: float
    extend: str = "neither"

    @property
    def ticks(self) -> list[float]:
        """Both ends, and round numbers between them.

        Example:
            >>> ColourScale(0, 1).ticks
            [0, 0.2, 0.4, 0.6, 0.8, 1]
        """
        span = self.high - self.low
        unit = 10.0 ** math.floor(math.log10(span))
        steps = (share * unit for share in (0.1, 0.2, 0.5, 1, 2))
        step = next(step for step in steps if span / step <= MOST_TICKS)
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        inner = (round(number * step, 12) for number in numbers)
        # No two labels on each other at the ends.
        near = 0.4 * step
        kept = [tick for tick in inner if self.low + near < tick < self.high - near]
        return [self.low, *kept, self.high]

    def describe(self, values: NDArray[np.float64]) -> str:
        """A sentence of a caption: the ends, and how far values are beyond them."""
        text = f"Colours run from {self.low:g} to {self.high:g}"
        if self.extend in ("min", "both"):
            text += f"; lower values, down to {np.nanmin(values):.2g}, have the colour of the least"
        if self.extend in ("max", "both"):
            text += f"; higher values, up to {np.nanmax(values):.2g}, have the colour of the most"
        return f"{text}."


def choose_scale(values: NDArray[np.float64], low: float = 0, high: float = 1) -> ColourScale:
    """The scale of a measure, or the one of the options, for these values.

    It does not depend on the values, so that figures of one measure can be compared; where these
    are beyond it, the scale says so.

    Args:
        values: all that one colour bar is for, NaN where there is none.
        low: where the measure's scale begins.
        high: where it ends.
    Raises:
        RepsimError: with what the options say, it ends before it begins.
    """
    options = options_in_force()
    low = low if options.vmin is None else options.vmin
    high = high if options.vmax is None else options.vmax
    if low >= high:
        raise RepsimError(f"the colours would run from {low:g} to {high:g}; give vmin and vmax")
    rounding = 1e-6 * (high - low)
    below, above = (
        bool(np.nanmin(values, initial=low) < low - rounding),
        bool(np.nanmax(values, initial=high) > high + rounding),
    )
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return ColourScale(low, high, extend.get((below, above), "neither"))


def palette(undefined: str = UNDEFINED) -> Colormap:
    """The palette of heat maps, with a colour for cells that have no value."""
    return matplotlib.colormaps[PALETTE].with_extremes(bad=undefined)


def draw_cells(axes: Axes, values: NDArray[np.float64], scale: ColourScale) -> AxesImage:
    """A matrix from the top left, its cells square unless the axes' aspect is changed."""
    image = axes.imshow(
        values,
        cmap=palette(),
        vmin=scale.low,
        vmax=scale.high,
        interpolation="nearest",
        origin="upper",
    )
    axes.grid(False, which="both")  # whatever the style says
    return image


def draw_colour_bar(
    figure: Any, image: Any, panels: Sequence[Axes], scale: ColourScale, label: str, **more: Any
) -> Any:
    """A colour bar as high as the panels, with a line at zero where the scale passes it.

    Args:
        figure: the figure, or a part of it.
        image: the cells.
        panels: whose colours it explains.
        scale: of the cells.
        label: what the colours are.
        **more: as matplotlib's `Figure.colorbar` takes it.
    """
    place: dict[str, Any] = {"aspect": 25, "pad": 0.02} | more
    bar = figure.colorbar(image, ax=panels, ticks=scale.ticks, extend=scale.extend, **place)
    bar.outline.set_visible(False)
    bar.set_label(label)
    finish_colour_bar(bar.ax, scale)
    return bar


def finish_colour_bar(axes: Axes, scale: ColourScale) -> None:
    """No grid across a colour bar, and a line at zero where the scale passes it."""
    axes.grid(False, which="both")
    axes.minorticks_off()
    if scale.low < 0 < scale.high:
        axes.axhline(0, color="white", linewidth=points(0.8))
