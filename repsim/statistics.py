"""What analyses add up: numbers of each sample, taken from its states, wherever the states come from.

An analysis lists its statistics in `STATISTICS`: name → kernel. A capture that keeps no states applies the kernels
while it computes; one that keeps them applies the same kernels as it reads. Either way a kernel sees one sample's whole
states in the store's dtype, so the numbers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from repsim.schema import ANALYSES, RepsimError

Kernel = Callable[[NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class Statistic:
    """Numbers that a kernel takes from one sample's states under one plan.

    name: `ANALYSIS.KERNEL`, e.g. `cosine.token`.
    kernel: `[state, token, unit]` → `[value]`; how many values depends on the number of states alone.
    """

    name: str
    kernel: Kernel

    def width(self, states: int, units: int) -> int:
        """How many values a plan of so many states gives."""
        return len(self.kernel(np.ones((states, 1, units), np.float32)))


class Source(Protocol):
    """What analyses of statistics ask of a capture; see `repsim.captures.Capture`."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def steps(self, plan: str) -> list[str]: ...

    def plan_name(self, plan: str) -> str: ...

    def plan_text(self, plan: str) -> str: ...

    def per_sample(self, plan: str, statistic: Statistic) -> Iterable[tuple[int, NDArray[np.float64]]]: ...


def statistics_of(analyses: Iterable[str]) -> tuple[Statistic, ...]:
    """Every statistic of these analyses, by name.

    Raises:
        RepsimError: no such analysis is installed, or it cannot do without the states.
    """
    found = []
    for analysis in dict.fromkeys(analyses):
        installed = {entry.name: entry for entry in entry_points(group=ANALYSES)}
        if analysis not in installed:
            raise RepsimError(f"statistics {analysis!r}: no such analysis; there are {', '.join(sorted(installed))}")
        kernels = getattr(installed[analysis].load(), "STATISTICS", None)
        if not kernels:
            raise RepsimError(f"statistics {analysis!r}: it needs the states themselves; capture with --keep all")
        found += [Statistic(f"{analysis}.{name}", kernel) for name, kernel in kernels.items()]
    return tuple(found)
