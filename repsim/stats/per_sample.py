"""What analyses add up: numbers of each sample, taken from its states, wherever the states come
from.

An analysis lists its statistics in `STATISTICS`: name → kernel. A capture that keeps no states
applies the kernels while it computes; one that keeps them applies the same kernels as it reads.
Either way a kernel sees one sample's whole states in the store's dtype, so the numbers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from repsim.errors import StoreError

Kernel = Callable[[NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class SampleStatistic:
    """Numbers that a kernel takes from one sample's states under one plan.

    name: `ANALYSIS.KERNEL`, e.g. `cosine.token`.
    kernel: `[state, token, unit]` → `[value]`; how many values depends on the number of states
    alone.
    """

    name: str
    kernel: Kernel

    def width(self, states: int, units: int) -> int:
        """How many values a plan of so many states gives."""
        return len(self.kernel(np.ones((states, 1, units), np.float32)))


class StateSource(Protocol):
    """What analyses of statistics ask of a capture; see `repsim.captures.reader.Capture`."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def steps(self, plan: str) -> list[str]: ...

    def plan_name(self, plan: str) -> str: ...

    def plan_text(self, plan: str) -> str: ...

    def lengths(self, *plans: str) -> NDArray[np.int64]: ...

    def each_sample(self, *plans: str) -> Iterable[NDArray[Any]]: ...

    def per_sample(
        self, plan: str | Sequence[str], statistic: SampleStatistic
    ) -> Iterable[tuple[int, NDArray[np.float64]]]: ...


def pack_symmetric(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A symmetric matrix's upper triangle, row by row: `[..., state, state]` → `[..., value]`."""
    rows, columns = np.triu_indices(matrix.shape[-1])
    packed: NDArray[np.float64] = matrix[..., rows, columns]
    return packed


def unpack_symmetric(packed: NDArray[np.float64], states: int) -> NDArray[np.float64]:
    """The symmetric matrix of an upper triangle: `[..., value]` → `[..., state, state]`."""
    matrix = np.empty((*packed.shape[:-1], states, states))
    rows, columns = np.triu_indices(states)
    matrix[..., rows, columns] = matrix[..., columns, rows] = packed
    return matrix


def collect(
    source: StateSource, plan: str | Sequence[str], statistic: SampleStatistic
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A statistic of every finished sample: its tokens, `[sample]`, and its values, `[sample,
    value]`.

    Raises:
        RepsimError: the plan is not in the capture, it lacks what the statistic needs, or nothing
            is finished.
    """
    rows = list(source.per_sample(plan, statistic))
    if not rows:
        raise StoreError(
            "this capture holds no finished tokens: run it to the end of a block at least"
        )
    return np.array([tokens for tokens, _ in rows]), np.stack([values for _, values in rows])


def collect_sums(
    source: StateSource, plan: str | Sequence[str], statistic: SampleStatistic, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """A statistic that is sums and, after them, of how many tokens each sum is: what is 0/0 is left
    out and counted.

    A capture that was made before counts were kept has sums alone: its counts are NaN, and a sum
    that a zero vector is part of is NaN as well.

    Args:
        source: an open capture.
        plan: as in `collect`.
        statistic: its kernel gives `size` sums, then as many counts.
        size: how many sums there are.
    Returns:
        Tokens, `[sample]`, sums, `[sample, value]`, and counts, `[sample, value]`.
    Raises:
        RepsimError: as `collect`.
    """
    tokens, values = collect(source, plan, statistic)
    lacking = max(0, 2 * size - values.shape[1])
    values = np.pad(values, ((0, 0), (0, lacking)), constant_values=np.nan)
    return tokens, values[:, :size], values[:, size : 2 * size]
