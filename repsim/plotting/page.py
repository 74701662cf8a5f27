"""What all figures share: style, page, options and saving; nothing here knows what is drawn.

A figure takes its words and numbers from a Dataset, its style from this module and nothing from
the user's settings, so the same result gives the same bytes everywhere. pyplot is never used; only
seaborn, which draws one figure of scores, imports it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import matplotlib.figure
import matplotlib.style

from repsim.errors import RepsimError
from repsim.files import replacing
from repsim.options import FigureOptions

Width = Literal["column", "page", "slide"]

# Inches; one and two columns of the usual templates, and most of a slide.
WIDTHS = {"column": 3.35, "page": 6.9, "slide": 10.0}
SCALE = {"slide": 2.0}  # how much larger than in print text, lines and markers are
POINTS = 72  # an inch
FONT = 7  # points, in print
MARGIN = 0.08  # inches of height around title and axes
# Sizes in points, which grow with the text.
SIZES = {
    "font.size": FONT,
    "figure.titlesize": FONT,
    "axes.titlesize": FONT,
    "axes.linewidth": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.labelpad": 3,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
}
STYLE = {
    "axes.formatter.useoffset": False,
    "figure.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: text stays text, as journals ask
    "svg.hashsalt": "repsim",  # names in an SVG are made of its content, not of chance
    "text.parse_math": False,  # a dollar in a corpus' name is a dollar
}
PALETTE = "viridis"  # even in lightness, so it survives grey printing and colour blindness
LINE = "#440154"  # the palette's darkest
MARK = "#D55E00"  # stands out on all of the palette
# Okabe & Ito 2008, told apart by colour-blind readers; markers tell them apart in grey.
COLOURS = (LINE, "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
MARKERS = "os^Dv<>"
STYLES = ("-", "--", ":", "-.")
# Of a legend in one row.
COMPACT: dict[str, Any] = {"handlelength": 1.5, "handletextpad": 0.4, "columnspacing": 0.8}
UNDEFINED = "0.85"  # grey of a cell that has no value
LABEL_STEPS = (1, 2, 5, 10, 20, 50, 100)
MOST_LABELS = 13


@dataclass(frozen=True)
class Drawing:
    """How figures are drawn within a `with` block, and what is remarked on them.

    remarks: filled while figures are drawn, e.g. with the figures that were left out.
    """

    options: FigureOptions = field(default_factory=FigureOptions)
    remarks: list[str] = field(default_factory=list)


_drawing: ContextVar[Drawing | None] = ContextVar("drawing", default=None)
_scale: ContextVar[float] = ContextVar("scale", default=1.0)


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows without pyplot.

    caption: a paragraph that could stand under it in a paper; empty where nothing was said.
    metadata: what its files say of it: `Title`, `Subject` and `Keywords`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.caption = ""
        self.metadata: dict[str, str] = {}
        # The styles that it was drawn with, for what matplotlib makes of it later.
        self.styles: list[Any] = _styles(1)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.style.context(self.styles):
            self.savefig(buffer, format="png")
        return buffer.getvalue()


# How figures are drawn


def options_in_force() -> FigureOptions:
    """What figures that are drawn here and now are drawn with."""
    drawing = _drawing.get()
    return FigureOptions() if drawing is None else drawing.options


@contextmanager
def drawn_with(options: FigureOptions) -> Iterator[list[str]]:
    """Draws and saves with these options for the length of a `with` block.

    Yields:
        The remarks on what is drawn, as they come.
    Raises:
        RepsimError: there is no such style.
    """
    style = options.style
    try:
        with matplotlib.style.context([] if style is None else style):
            pass
    except OSError:
        known = ", ".join(name for name in matplotlib.style.available if not name.startswith("_"))
        raise RepsimError(
            f"style {str(style)!r}: no such file, and matplotlib knows {known}"
        ) from None
    drawing = Drawing(options)
    token = _drawing.set(drawing)
    try:
        yield drawing.remarks
    finally:
        _drawing.reset(token)


@contextmanager
def styled(style: str | Path) -> Iterator[None]:
    """Draws and saves with a matplotlib style on top of ours, for the length of a `with` block.

    Args:
        style: a name that matplotlib knows, or a style file.
    Raises:
        RepsimError: there is no such style.
    """
    with drawn_with(FigureOptions(style=style)):
        yield


def remark(text: str) -> None:
    """What whoever asked for the figures has to know of them, e.g. that one was left out."""
    drawing = _drawing.get()
    if drawing is not None:
        drawing.remarks.append(text)


def choose_width(width: str | None, default: Width) -> str:
    """The width that a function was called with, else that of the options, else the default.

    Raises:
        RepsimError: there is no such width.
    """
    if width is None:
        asked = options_in_force().width
        return default if asked == "auto" else asked
    if width not in get_args(Width):
        *others, last = get_args(Width)
        raise RepsimError(f"width={width!r}: choose {', '.join(others)} or {last}")
    return width


@contextmanager
def blank_page(width: str, height: float, layout: Any) -> Iterator[Figure]:
    """A figure of a known width and of a height that is a multiple of it, in our style."""
    scale = SCALE.get(width, 1.0)
    token = _scale.set(scale)
    try:
        with matplotlib.style.context(_styles(scale)):
            inches = WIDTHS[width]
            figure = Figure(figsize=(inches, height * inches), layout=layout)
            figure.styles = _styles(scale)
            yield figure
    finally:
        _scale.reset(token)


def _styles(scale: float) -> list[Any]:
    """matplotlib's defaults, ours on top, and the chosen one on top of both."""
    style = options_in_force().style
    ours = STYLE | {name: scale * size for name, size in SIZES.items()}
    return ["default", ours, *([] if style is None else [style])]


def points(size: float) -> float:
    """A size in print as points of the page that is drawn: more on a slide."""
    return size * _scale.get()


def font_size() -> float:
    """Points of the text of the page that is drawn."""
    return float(matplotlib.rcParams["font.size"])


# Files


def save(figure: matplotlib.figure.Figure, path: str | Path) -> list[Path]:
    """Writes a figure as PNG and PDF, or what the options ask for, and its caption beside it.

    Files carry title, caption and the facts behind the figure as metadata, and no dates. All of
    them are new and whole, or all are what they were before.

    Args:
        figure: any matplotlib figure; those of `repsim.plotting` have a caption.
        path: where to, without suffix; folders that are missing are made.
    Returns:
        The pictures, in the order of the formats, and the caption (`.txt`) where there is one.
    Raises:
        RepsimError: the files cannot be written, or the path names none.
    """
    path = Path(path)
    if not path.name:
        raise RepsimError(f"figure {str(path)!r}: no name of a file; name one without suffix")
    options = options_in_force()
    caption = getattr(figure, "caption", "")
    suffixes = [*options.formats, *(["txt"] if caption else [])]
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in suffixes]
    styles = getattr(figure, "styles", None) or _styles(1)
    with (
        replacing(paths, "choose another folder (--figures)") as beside,
        matplotlib.style.context(styles),
    ):
        for suffix, target in zip(suffixes, beside, strict=True):
            if suffix == "txt":
                target.write_text(f"{caption}\n", encoding="utf-8")
                continue
            # In a PDF or SVG only the cells of heat maps are pixels.
            dpi = options.dpi if suffix == "png" else max(600, options.dpi)
            figure.savefig(target, format=suffix, dpi=dpi, metadata=_metadata(figure, suffix))
    return paths


def _metadata(figure: matplotlib.figure.Figure, suffix: str) -> dict[str, Any]:
    """What a file of this format says of the figure, under the names that the format has."""
    said: dict[str, str] = getattr(figure, "metadata", {})
    undated: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    subject = "Subject" if suffix == "pdf" else "Description"
    named = {subject if name == "Subject" else name: text for name, text in said.items()}
    return undated.get(suffix, {}) | named
