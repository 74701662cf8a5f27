"""A sweep of variants as a line on axes: its places, its look, its holes, and the legend.

Nothing here knows which figure it is drawn in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from repsim.plotting.page import COLOURS, COMPACT, LABEL_STEPS, MARKERS, STYLES

GUIDE = "0.35"  # grey of the lines at chance and at the full model
NARROW, WIDE = 8, 16  # most labels along one of several panels, along a panel of its own
FAMILIES = {
    "skip": "skip",
    "middle_repeat": "middle repeat",
    "reverse": "reverse",
    "random": "random order",
    "parallel": "parallel",
    "looped_parallel": "looped parallel",
    "drop": "skip one layer",
    "switch": "switch two layers",
    "drop_block": "skip a block",
    "repeat": "repeat one layer",
    "": "other plans",
}


@dataclass(frozen=True)
class Sweep:
    """The variants of a family that make a line.

    label: what the legend calls it.
    along: start or layer, the parameter that the x axis shows.
    part, loops: what they have in common; empty and -1 where the family has none.
    """

    label: str
    family: str
    along: str = "start"
    part: str = ""
    loops: int = -1

    @property
    def name(self) -> str:
        return self.family + f" with loops={self.loops}" * (self.loops > 0)

    def rows(self, found: xr.Dataset) -> dict[int, int]:
        """Start or layer → where in the result that variant is."""
        member = np.ones(found.sizes["variant"], bool)
        for name in ("family", "part", "loops"):
            member &= found[f"variant_{name}"].values == getattr(self, name)
        rows = np.flatnonzero(member).tolist()
        return dict(zip(found[f"variant_{self.along}"].values[rows].tolist(), rows, strict=True))

    def values(self, found: xr.Dataset, name: str) -> NDArray[np.float64]:
        """A variable over variants for each start or layer of the model, NaN where there is no
        variant.
        """
        layers = int(found.attrs["layers"])
        placed = np.full(number_of_starts(layers) if self.along == "start" else layers, np.nan)
        rows = self.rows(found)
        placed[list(rows)] = found[name].values[list(rows.values())]
        return placed

    def count(self, found: xr.Dataset, name: str) -> int:
        """How many of the variants have a value, in one task at least."""
        values = found[name].transpose("variant", ...).values[list(self.rows(found).values())]
        return int(np.isfinite(values.reshape(len(values), -1)).any(1).sum())


def number_of_starts(layers: int) -> int:
    """How many starts a model has."""
    return (layers + 1) // 2


def affected(layers: int, start: int) -> int:
    """M, the number of layers that the variants of a start change."""
    return layers - 2 * start - 1


def look(index: int) -> dict[str, Any]:
    """Colour and marker; no two of the first 49 are alike, and after these the line's style changes
    as well.
    """
    turn, place = divmod(index, len(COLOURS) * len(MARKERS))
    shifted = place + place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[shifted % len(MARKERS)],
        **_line_style(turn),
    }


def look_of_family(family: str) -> dict[str, Any]:
    return look(list(FAMILIES).index(family))


def look_of_task(index: int) -> dict[str, Any]:
    """All but the colour of the median; no two of the first 42 are alike, and after these the
    line's style changes.
    """
    colours = COLOURS[1:]
    # No common divisor: each colour meets each marker once.
    turn, place = divmod(index, len(colours) * len(MARKERS))
    return {
        "color": colours[place % len(colours)],
        "marker": MARKERS[(place + 1) % len(MARKERS)],
        **_line_style(turn),
    }


def _line_style(turn: int) -> dict[str, Any]:
    return {"linestyle": STYLES[turn % len(STYLES)]} if turn else {}


def curve(
    axes: Axes,
    found: xr.Dataset,
    name: str,
    sweep: Sweep,
    look: dict[str, Any],
    label: str,
    *,
    band: bool = True,
    bold: bool = False,
) -> None:
    """A variable of a sweep's variants at their places, with its interval; missing ones are holes."""
    values = sweep.values(found, name)
    places = np.arange(len(values))
    if band:
        low, high = (sweep.values(found, f"{name}_{end}") for end in ("low", "high"))
        axes.fill_between(places, low, high, color=look["color"], alpha=0.2, linewidth=0)
        hole = np.isnan(np.concatenate([[np.nan], low + high, [np.nan]]))
        alone = hole[:-2] & ~hole[1:-1] & hole[2:]  # a band of one place has no width
        axes.vlines(
            places[alone], low[alone], high[alone], color=look["color"], alpha=0.4, linewidth=1.5
        )
    width, size = (1.8, 3.5) if bold else (0.8, 2.5)
    axes.plot(
        places,
        values,
        **look,
        linewidth=width,
        markersize=size,
        label=label,
        zorder=3 if bold else 2,
    )


def guides(axes: Axes, chance: float, full: float) -> None:
    axes.axhline(full, color=GUIDE, linewidth=0.8, linestyle="--", label="full model", zorder=1)
    axes.axhline(chance, color=GUIDE, linewidth=0.8, linestyle=":", label="chance", zorder=1)


def label_step(places: int, most: int) -> int:
    return next((step for step in LABEL_STEPS if places / step <= most), places)


def number(axes: Axes, places: int, most: int) -> range:
    """Labels the places of the x axis, as many as there is room for, and returns these."""
    ticks = range(0, places, label_step(places, most))
    axes.set_xlim(-0.5, places - 0.5)
    axes.set_xticks(ticks)
    return ticks


def start_axes(axes: Axes, found: xr.Dataset) -> None:
    """Starts below, the number of affected layers above."""
    layers = int(found.attrs["layers"])
    ticks = number(axes, number_of_starts(layers), WIDE)
    axes.set_xlabel("start layer N")
    above = axes.secondary_xaxis("top")
    above.set_xticks(ticks, [str(affected(layers, start)) for start in ticks])
    above.set_xlabel("number of affected layers M")


def legend(beside: Axes, of: Axes, **options: Any) -> None:
    """What the lines of a panel mean, to the right of one; of two with the same name, the last."""
    entries = dict(zip(*reversed(of.get_legend_handles_labels()), strict=True))
    place: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.01, 1),
        "borderaxespad": 0,
        "frameon": False,
    }
    beside.legend(entries.values(), entries.keys(), **place, **COMPACT, **options)


def note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")
