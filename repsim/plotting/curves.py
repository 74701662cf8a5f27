"""Variants as a line on axes: its places, its look, its holes, and the legend.

Nothing here knows which figure it is drawn in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from repsim.plans import FAMILIES
from repsim.plotting.page import (
    COLOURS,
    COMPACT,
    LABEL_STEPS,
    MARKERS,
    STYLES,
    Figure,
    points,
)
from repsim.studies.painters import CURVE_FAMILIES, Curve, count_affected, count_places

GUIDE = "0.35"  # grey of the lines at chance and at the full model
NARROW, WIDE = 8, 16  # most labels along one of several panels, along a panel of its own
SCORE = "normalised score"
BASELINE, OTHER = "baseline", ""  # the full model; plans of no family that is known here


# What is in a result


def find_rows(result: xr.Dataset, curve: Curve) -> dict[int, int]:
    """Start or layer → where in the result that variant of the curve is."""
    is_member = np.ones(result.sizes["variant"], bool)
    for name in ("family", "part", "loops"):
        is_member &= result[f"variant_{name}"].values == getattr(curve, name)
    rows = np.flatnonzero(is_member).tolist()
    return dict(zip(result[f"variant_{curve.along}"].values[rows].tolist(), rows, strict=True))


def place_values(result: xr.Dataset, curve: Curve, name: str) -> NDArray[np.float64]:
    """A variable over variants for each start or layer of the model, NaN where there is no
    variant.
    """
    layers = int(result.attrs["layers"])
    placed = np.full(
        count_places(curve.family, layers) if curve.along == "start" else layers, np.nan
    )
    rows = find_rows(result, curve)
    placed[list(rows)] = result[name].values[list(rows.values())]
    return placed


def count_scored(result: xr.Dataset, curve: Curve, name: str) -> int:
    """How many of a curve's variants have a value, in one task at least."""
    rows = list(find_rows(result, curve).values())
    values = result[name].transpose("variant", ...).values[rows]
    return int(np.isfinite(values.reshape(len(values), -1)).any(1).sum())


def find_own_plans(result: xr.Dataset) -> NDArray[np.bool_]:
    """Which variants are of no curve of the paper, `[variant]`: plans written out, repeated layers,
    skipped blocks.
    """
    return ~np.isin(result["variant_family"].values, [BASELINE, *CURVE_FAMILIES])


# Looks


def families_in_order() -> list[str]:
    """Families in the order of their looks and of legends; `OTHER` comes last."""
    return [*(name for name in FAMILIES if name != BASELINE), OTHER]


def known_family(family: str) -> str:
    """The family that a variant is drawn as: its own, or `OTHER` where none of that name is
    known.
    """
    return family if family in FAMILIES else OTHER


def label_of_family(family: str) -> str:
    """What legends call a family; `other plans` where none of that name is known."""
    return FAMILIES[family].label if family in FAMILIES else "other plans"


def look(index: int) -> dict[str, Any]:
    """Colour and marker of a line; no two of the first 49 are alike, and after these the line's
    style changes as well.
    """
    turn, place = divmod(index, len(COLOURS) * len(MARKERS))
    shifted = place + place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[shifted % len(MARKERS)],
        **_line_style(turn),
    }


def look_of_family(family: str) -> dict[str, Any]:
    return look(families_in_order().index(known_family(family)))


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


# Lines


def draw_curve(
    axes: Axes,
    result: xr.Dataset,
    name: str,
    curve: Curve,
    style: dict[str, Any],
    label: str,
    *,
    band: bool = True,
    bold: bool = False,
) -> None:
    """A variable of a curve's variants at their places, with its interval; missing ones are holes.

    style: colour and marker, see `look`.
    """
    values = place_values(result, curve, name)
    places = np.arange(len(values))
    if band:
        low, high = (place_values(result, curve, f"{name}_{end}") for end in ("low", "high"))
        axes.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)
        hole = np.isnan(np.concatenate([[np.nan], low + high, [np.nan]]))
        alone = hole[:-2] & ~hole[1:-1] & hole[2:]  # a band of one place has no width
        thick: dict[str, Any] = {"color": style["color"], "alpha": 0.4, "linewidth": points(1.5)}
        axes.vlines(places[alone], low[alone], high[alone], **thick)
    width, size = (1.8, 3.5) if bold else (0.8, 2.5)
    sizes: dict[str, Any] = {"linewidth": points(width), "markersize": points(size)}
    order = 3 if bold else 2
    axes.plot(places, values, **style, **sizes, label=label, zorder=order, clip_on=False)


def draw_guides(axes: Axes, chance: float, full: float) -> None:
    """Horizontal lines at the full model's score and at chance."""
    for place, name, dashes in ((full, "full model", "--"), (chance, "chance", ":")):
        line: dict[str, Any] = {"color": GUIDE, "linewidth": points(0.8), "linestyle": dashes}
        axes.axhline(place, **line, label=name, zorder=1)


# Axes and words


def label_step(places: int, most: int) -> int:
    """Every how many places there is a label, so that there are at most so many."""
    return next((step for step in LABEL_STEPS if places / step <= most), places)


def number_places(axes: Axes, places: int, most: int) -> range:
    """Labels the places of the x axis, as many as there is room for, and returns these."""
    ticks = range(0, places, label_step(places, most))
    axes.set_xlim(-0.5, places - 0.5)
    axes.set_xticks(ticks)
    return ticks


def label_starts(axes: Axes, result: xr.Dataset, most: int) -> None:
    """Starts below, the number of affected layers above; at most so many of each."""
    layers = int(result.attrs["layers"])
    ticks = number_places(axes, count_places("skip", layers), most)
    axes.set_xlabel("start layer N")
    above = axes.secondary_xaxis("top")
    affected = [count_affected("skip", {"start": start}, layers) for start in ticks]
    above.set_xticks(ticks, [str(count) for count in affected])
    above.set_xlabel("number of affected layers M")


def draw_legend(
    figure: Figure, beside: Axes, panel: Axes, *, below: int = 0, **options: Any
) -> None:
    """What the lines of a panel mean; of two with the same name, the last.

    Args:
        figure: the figure.
        beside: the panel to whose right the legend is.
        panel: whose lines it explains.
        below: in how many columns the legend is below all panels instead.
        **options: of matplotlib's legends.
    """
    entries = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    if below:
        under: dict[str, Any] = {"loc": "outside lower center", "ncols": below, "frameon": False}
        figure.legend(entries.values(), entries.keys(), **under, **COMPACT, **options)
        return
    place: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.01, 1),
        "borderaxespad": 0,
        "frameon": False,
    }
    beside.legend(entries.values(), entries.keys(), **place, **COMPACT, **options)


def write_note(axes: Axes, text: str) -> None:
    """A text in the middle of a panel."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")
