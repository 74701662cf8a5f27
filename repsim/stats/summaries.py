"""From a result to the few numbers that its figure is about: rows of a small table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

ROWS = 7  # of many states


def pick(result: xr.Dataset, name: str, **places: int) -> dict[str, float]:
    """One number of a result with its interval, as columns of a table.

    Args:
        result: of an analysis; its interval is `NAME_low` and `NAME_high`, or `low` and `high`.
        name: of the number.
        **places: where it stands, dimension → index.
    Returns:
        `NAME`, `NAME_low` and `NAME_high`.
    Example:
        >>> values = {"norm": ("state", [3.0, 4]), "low": ("state", [2.5, 3])}
        >>> pick(xr.Dataset({**values, "high": ("state", [3.5, 5])}), "norm", state=1)
        {'norm': 4.0, 'norm_low': 3.0, 'norm_high': 5.0}
    """
    prefix = f"{name}_" if f"{name}_low" in result else ""
    numbers = {name: name, f"{name}_low": f"{prefix}low", f"{name}_high": f"{prefix}high"}
    return {title: result[of].isel(places).item() for title, of in numbers.items()}


def spread_places(count: int, most: int = ROWS) -> list[int]:
    """At most so many places, evenly from the first to the last.

    Example:
        >>> spread_places(31), spread_places(3)
        ([0, 5, 10, 15, 20, 25, 30], [0, 1, 2])
    """
    return sorted(set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


def span(labels: Sequence[Any]) -> str:
    """A run of layers by its first and its last.

    Example:
        >>> span(["embed", "0", "1"]), span(["29"])
        ('embed to 1', '29')
    """
    first, last = labels[0], labels[-1]
    return str(first) if len(labels) == 1 else f"{first} to {last}"


def with_interval(name: str, numbers: dict[str, float], digits: int = 3) -> str:
    """A number in a sentence.

    Example:
        >>> with_interval("norm", {"norm": 4.0, "norm_low": 3.5, "norm_high": np.nan})
        '4'
        >>> with_interval("norm", {"norm": 4.0, "norm_low": 3.5, "norm_high": 4.5})
        '4 [3.5, 4.5]'
    """
    value, low, high = (numbers[key] for key in (name, f"{name}_low", f"{name}_high"))
    text = f"{value:.{digits}g}"
    return text if np.isnan([low, high]).any() else f"{text} [{low:.{digits}g}, {high:.{digits}g}]"
