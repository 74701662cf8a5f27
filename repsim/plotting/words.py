"""What figures say: names of results, titles of one line, letters of panels, facts in files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.text import Text

from repsim.errors import printable
from repsim.plotting.labels import tell_apart
from repsim.plotting.page import POINTS, Figure, font_size, options_in_force, points

WIDEST = 0.62  # of a character, as a share of the size of the text
# Attributes of a result that its name holds already, or that say nothing in a few words.
NO_PART = ("analysis", "description", "interval", "label", "model", "plan", "plan_text")


# Texts that fit


def characters(inches: float) -> int:
    """How many characters of the page's text fit on a line of that length."""
    return int(inches * POINTS / (WIDEST * font_size()))


def wrapped(line: str, inches: float) -> str:
    """A line, in several where it is too long."""
    return textwrap.fill(printable(line), characters(inches), break_on_hyphens=False)


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters: of a longer one the beginning and the end.

    Example:
        >>> shortened("0, 1, (2|3|4|5|6|7|8), 9, 10", 14)
        '0, 1, (2|…, 10'
    """
    text = printable(text)
    if len(text) <= most:
        return text
    tail = max(0, (most - 1) // 3)
    return text[: most - 1 - tail] + "…" + text[len(text) - tail :]


# Names of results


def name_of(result: xr.Dataset) -> str:
    """What a figure calls what a result is of: the label it was given, or the model."""
    return printable(result.attrs.get("label") or result.attrs["model"])


def is_of_two(result: xr.Dataset) -> bool:
    """Whether a similarity matrix is of two captures, its columns of the other one."""
    return "model_other" in result.attrs


def name_of_other(result: xr.Dataset) -> str:
    """What a figure calls the second capture of a similarity matrix."""
    return printable(result.attrs.get("label_other") or result.attrs["model_other"])


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


# What is said of a figure


def describe(
    figure: Figure,
    titles: Sequence[str],
    caption: str,
    results: Iterable[xr.Dataset],
    *,
    shown: bool = True,
) -> Text:
    """Writes the title over a figure, and gives the figure its caption and the facts behind it.

    The title is of one line, however narrow the figure, or what the options say: none, or a text of
    the user's.

    Args:
        figure: the figure.
        titles: its title in full, then shorter ones for figures that are too narrow for it.
        caption: a paragraph that could stand under it.
        results: what is drawn; their attributes go into the figure's files.
        shown: False where panels have titles of their own.
    Returns:
        The title, empty where there is none.
    """
    figure.caption = printable(caption)
    facts = " | ".join(_facts(result) for result in results)
    figure.metadata = {"Title": printable(titles[0]), "Subject": figure.caption, "Keywords": facts}
    asked = options_in_force().title
    if asked not in ("auto", "none"):
        return figure.suptitle(wrapped(asked, figure.get_figwidth()))
    most = characters(figure.get_figwidth())
    line = next((title for title in titles if len(title) <= most), shortened(titles[-1], most))
    return figure.suptitle(printable(line) if asked == "auto" and shown else "")


def _facts(result: xr.Dataset) -> str:
    """The attributes of a result, each once, as a file of a figure carries them."""
    facts = {key: value for key, value in result.attrs.items() if key != "description"}
    return "; ".join(printable(f"{key}: {value}") for key, value in facts.items())


def letter_panels(panels: Sequence[Axes]) -> None:
    """A bold letter at the top left of each panel, where there are several."""
    for row, axes in enumerate(panels if len(panels) > 1 else []):
        axes.annotate(
            letter_of(row),
            (0, 1),
            (-points(3), points(4.5)),  # clear of a tick's label at the top
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontweight="bold",
        )


def letter_of(panel: int) -> str:
    """The letter of a panel, counted from 0; two letters from the 27th on.

    Example:
        >>> letter_of(0), letter_of(25), letter_of(26)
        ('a', 'z', 'aa')
    """
    row, place = divmod(panel, len(ascii_lowercase))
    return (letter_of(row - 1) if row else "") + ascii_lowercase[place]


def span_of_letters(count: int, first: int = 0) -> str:
    """The letters of panels as a caption names them.

    Example:
        >>> span_of_letters(1), span_of_letters(2, first=1), span_of_letters(3, first=1)
        ('a', 'b, c', 'b to d')
    """
    letters = [letter_of(panel) for panel in range(first, first + count)]
    return ", ".join(letters) if len(letters) < 3 else f"{letters[0]} to {letters[-1]}"
