"""What all figures share: style, page and saving; nothing here knows what is drawn.

A figure takes its words and numbers from a Dataset, its style from this module and nothing from
the user's settings, so the same result gives the same bytes everywhere. pyplot is never used; only
seaborn, which draws one figure of scores, imports it.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import matplotlib.figure
import matplotlib.style
import xarray as xr

from repsim.errors import RepsimError, printable
from repsim.files import replacing
from repsim.plotting.labels import tell_apart

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
MARK = "#D55E00"  # stands out on all of the palette
# Okabe & Ito 2008, told apart by colour-blind readers; markers tell them apart in grey.
COLOURS = (LINE, "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
MARKERS = "os^Dv<>"
STYLES = ("-", "--", ":", "-.")
# Attributes of a result that its name holds already, or that say nothing in a few words.
NO_PART = ("analysis", "description", "interval", "label", "model", "plan", "plan_text")
# Of a legend in one row.
COMPACT: dict[str, Any] = {"handlelength": 1.5, "handletextpad": 0.4, "columnspacing": 0.8}
UNDEFINED = "0.85"  # grey of a cell that has no value
LABEL_STEPS = (1, 2, 5, 10, 20, 50, 100)
MOST_LABELS = 13
_chosen: ContextVar[tuple[str | Path, ...]] = ContextVar("style", default=())


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png")
        return buffer.getvalue()


@contextmanager
def blank_page(width: str, height: float, layout: Any) -> Iterator[Figure]:
    """A figure of a known width and of a height that is a multiple of it, in our style."""
    if width not in get_args(Width):
        raise RepsimError(f"width={width!r}: choose {' or '.join(get_args(Width))}")
    with _style():
        inches = WIDTHS[width]
        yield Figure(figsize=(inches, height * inches), layout=layout)


def save(figure: matplotlib.figure.Figure, path: str | Path) -> list[Path]:
    """Writes a figure as PNG (300 dpi) and PDF, without dates, and returns the two paths.

    Both files are new and whole, or both are what they were before.

    Args:
        figure: any matplotlib figure.
        path: where to, without suffix; folders that are missing are made.
    Raises:
        RepsimError: the files cannot be written, or the path names none.
    """
    path = Path(path)
    if not path.name:
        raise RepsimError(f"figure {str(path)!r}: no name of a file; name one without suffix")
    paths = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    with replacing(paths, "choose another folder (--figures)") as (png, pdf), _style():
        figure.savefig(png, format="png", dpi=300)
        figure.savefig(pdf, format="pdf", dpi=600, metadata={"CreationDate": None})
    return paths


@contextmanager
def styled(style: str | Path) -> Iterator[None]:
    """Draws and saves with a matplotlib style on top of ours, for the length of a `with` block.

    Args:
        style: a name that matplotlib knows, or a style file.
    Raises:
        RepsimError: there is no such style.
    """
    try:
        with matplotlib.style.context(style):
            pass
    except OSError:
        known = ", ".join(name for name in matplotlib.style.available if not name.startswith("_"))
        raise RepsimError(
            f"style {str(style)!r}: no such file, and matplotlib knows {known}"
        ) from None
    token = _chosen.set((style,))
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults, ours on top, and the chosen one on top of both, for the length of a
    `with` block.
    """
    with matplotlib.style.context(["default", STYLE, *_chosen.get()]):
        yield


def wrapped(line: str, inches: float) -> str:
    """A line of a title, in several where it is too long."""
    return textwrap.fill(
        printable(line), int(inches * POINTS / (0.62 * FONT)), break_on_hyphens=False
    )


def name_of(result: xr.Dataset) -> str:
    """What a figure calls what a result is of: the label it was given, or the model."""
    return printable(result.attrs.get("label") or result.attrs["model"])


def names_of(results: Sequence[xr.Dataset]) -> list[str]:
    """A name for each result of a figure, no two alike: model and plan, and what else it takes to
    tell them apart.
    """
    names = [printable(f"{name_of(result)} · {result.attrs['plan']}") for result in results]
    known = dict.fromkeys(
        ("corpus", *(key for result in results for key in result.attrs if key not in NO_PART))
    )
    parts = [
        {key: _part(key, result.attrs[key]) if key in result.attrs else "" for key in known}
        for result in results
    ]
    return [
        f"{name} ({more})" if more else name
        for name, more in zip(names, tell_apart(names, parts), strict=True)
    ]


def _part(key: str, value: Any) -> str:
    """An attribute of a result as a part of its name."""
    return printable(value if key == "corpus" else f"{key} {value}")
