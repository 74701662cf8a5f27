"""What a figure for print must be, and made-up similarities to draw."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib.figure
import numpy as np
import xarray as xr
from matplotlib.axis import Axis

from repsim import plotting

LONG = "(13|14|15|16)"
STACKS = {
    "2": ["embed", "0"],
    "7": ["embed", *map(str, range(6))],
    "31": ["embed", *map(str, range(30))],
    "81": ["embed", *map(str, range(80))],
    "looped": ["embed", *map(str, range(13)), *[LONG] * 3, *map(str, range(17, 30))],
    "skip": ["embed", *"0123", *map(str, range(26, 30))],
    "repeat": ["embed", "0", *["15"] * 28, "29"],
    "all": ["embed", "0", f"({'|'.join(map(str, range(1, 29)))})", "29"],
    "half": ["embed", *map(str, range(7)), "7.mlp", *map(str, range(8, 30))],
    "random": ["embed", *map(str, np.random.default_rng(0).permutation(30))],
}


def make_similarity(labels: Sequence[str], lowest: float = 0.1, **attrs: Any) -> xr.Dataset:
    """What the analysis cosine gives of states with these labels, from 1 down to the lowest."""
    distance = np.abs(np.subtract.outer(np.arange(len(labels)), np.arange(len(labels))))
    values = 1 - (1 - lowest) * distance / distance.max()
    return xr.Dataset(
        {"cosine": (("state", "state_other"), values)},
        coords={"layer": ("state", list(labels)), "layer_other": ("state_other", list(labels))},
        attrs={"model": "smollm2-135m", "plan": "baseline", "corpus": "easel", "tokens": 12345}
        | {"average": "token"}
        | attrs,
    )


def draw(labels: Sequence[str], **attrs: Any) -> plotting.Figure:
    """The figure of a made-up similarity."""
    figure = plotting.similarity_matrices(make_similarity(labels, **attrs))
    figure.draw_without_rendering()
    return figure


def tick_texts(axis: Axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def assert_nothing_is_clipped_or_overlaps(figure: matplotlib.figure.Figure) -> None:
    figure.draw_without_rendering()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            boxes = [
                text.get_window_extent()
                for text in axis.get_ticklabels()
                if text.get_text() and text.get_visible()
            ]
            low, high = sorted(
                axes.transAxes.transform([(0, 0), (1, 1)])[:, int(axis is axes.yaxis)]
            )
            side = "y" if axis is axes.yaxis else "x"
            middles = [(getattr(box, side + "0") + getattr(box, side + "1")) / 2 for box in boxes]
            boxes = [
                box
                for box, middle in zip(boxes, middles, strict=True)
                if low - 1 <= middle <= high + 1
            ]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= figure.get_figwidth()
    assert inside.y1 <= figure.get_figheight()
