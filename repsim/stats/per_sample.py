"""Numbers per sample, taken from its states, which analyses add up.

An analysis lists its statistics in `STATISTICS`: name → kernel. A capture that keeps no states
applies the kernels while it computes; one that keeps them applies the same kernels as it reads.
Either way a kernel sees one sample's whole states in the store's dtype, so the numbers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array
from numpy.typing import NDArray

from repsim.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

Kernel = Callable[[Any], Any]
"""`[state, token, unit]`, the store's dtype → `[value]`, float64.

One marked `runs_anywhere` takes arrays of any library, and of another than numpy samples of one
length together: `[sample, state, token, unit]` → `[sample, value]`.
"""


def runs_anywhere(kernel: Kernel) -> Kernel:
    """Marks a kernel that takes arrays of any library, as torch's on a graphics card; see `Kernel`.

    Others get numpy arrays, wherever the states were made.
    """
    kernel.runs_anywhere = True  # type: ignore[attr-defined]
    return kernel


@dataclass(frozen=True)
class SampleStatistic:
    """Numbers that a kernel computes from one sample's states under one plan.

    name: `ANALYSIS.KERNEL`, e.g. `cosine.token`.
    kernel: `[state, token, unit]`, the store's dtype → `[value]`, float64. The number of values
        depends on the number of states alone.
    """

    name: str
    kernel: Kernel

    @property
    def runs_anywhere(self) -> bool:
        """Whether the kernel takes arrays of any library; see `Kernel`."""
        return getattr(self.kernel, "runs_anywhere", False)

    def width(self, states: int, units: int) -> int:
        """How many values the kernel gives.

        Args:
            states: of the plan.
            units: of a state.
        Example:
            >>> SampleStatistic("norms.sum", lambda states: states.sum((1, 2))).width(5, units=8)
            5
        """
        return len(self.kernel(np.ones((states, 1, units), np.float32)))


class PlanSource(Protocol):
    """What an analysis of any kind needs to say what its numbers are of.

    A plan is given by its name or its text.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """`model` and `corpus`: what the numbers were computed from."""
        ...

    def plan_name(self, plan: str) -> str:
        """The plan's name, e.g. `skip:start=1`."""
        ...

    def plan_text(self, plan: str) -> str:
        """The layers that the plan runs, e.g. `0-3, 5-7`."""
        ...


class StateSource(PlanSource, Protocol):
    """What analyses of states need of a capture; `repsim.captures.reader.Capture` is one.

    Only finished samples count, always in the same order.
    """

    def steps(self, plan: str) -> list[str]:
        """What each state of the plan is the output of, `embed` first."""
        ...

    def lengths(self, *plans: str) -> NDArray[np.int64]:
        """Tokens per sample that is finished under all these plans, `[sample]`, int64."""
        ...

    def each_sample(self, *plans: str) -> Iterable[NDArray[Any]]:
        """Each sample's states, `[state, token, unit]`, the store's dtype, plan after plan.

        An array is valid only until the next one is read.
        """
        ...

    def per_sample(
        self, plan: str | Sequence[str], statistic: SampleStatistic
    ) -> Iterable[tuple[int, NDArray[np.float64]]]:
        """Each sample's number of tokens, and its values of the statistic, `[value]`, float64."""
        ...


class TextSource(StateSource, Protocol):
    """What an analysis of two captures needs of each, to know what they have in common."""

    @property
    def samples(self) -> xr.DataArray:
        """Keys of the samples, `[sample]`: the finished ones first, in their order."""
        ...

    @property
    def tokens(self) -> xr.Dataset:
        """`token_id` and `position` of every kept token, `[token]`, sample after sample."""
        ...


def pack_symmetric(matrix: Any) -> Any:
    """A symmetric matrix's upper triangle, row by row.

    Args:
        matrix: `[..., state, state]`, float64, of numpy or any other library.
    Returns:
        `[..., value]`, float64, states (states + 1) / 2 values.
    Example:
        >>> import numpy as np
        >>> pack_symmetric(np.array([[1.0, 2], [2, 3]])).tolist()
        [1.0, 2.0, 3.0]
    """
    states = matrix.shape[-1]
    if is_numpy_array(matrix):
        rows, columns = np.triu_indices(states)
        return matrix[..., rows, columns]
    xp = array_namespace(matrix)
    flat = xp.reshape(matrix, (*matrix.shape[:-2], states * states))
    return xp.take(flat, _upper_triangle(states, xp, device(matrix)), axis=-1)


@lru_cache(maxsize=64)
def _upper_triangle(states: int, xp: Any, where: Any) -> Any:
    """Places of the upper triangle in a matrix as one row, on a device."""
    rows, columns = np.triu_indices(states)
    return xp.asarray(rows * states + columns, device=where)


def unpack_symmetric(packed: NDArray[np.float64], states: int) -> NDArray[np.float64]:
    """The symmetric matrix of an upper triangle, the inverse of `pack_symmetric`.

    Args:
        packed: `[..., value]`, float64, states (states + 1) / 2 values.
        states: rows of the matrix.
    Returns:
        `[..., state, state]`, float64.
    Example:
        >>> import numpy as np
        >>> unpack_symmetric(np.array([1.0, 2, 3]), states=2).tolist()
        [[1.0, 2.0], [2.0, 3.0]]
    """
    matrix = np.empty((*packed.shape[:-1], states, states))
    rows, columns = np.triu_indices(states)
    matrix[..., rows, columns] = matrix[..., columns, rows] = packed
    return matrix


def collect(
    source: StateSource, plan: str | Sequence[str], statistic: SampleStatistic
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A statistic of every finished sample.

    Args:
        source: an open capture.
        plan: whose states; several plans' states follow each other.
        statistic: what to compute from each sample's states.
    Returns:
        Tokens per sample, `[sample]`, int64, and values, `[sample, value]`, float64.
    Raises:
        RepsimError: the plan is not in the capture, the capture lacks what the statistic needs, or
            no sample is finished.
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
    """A statistic made of sums, and of how many tokens each sum is over.

    Tokens at which a number is 0/0 are in neither. A capture made before counts were kept has sums
    alone: its counts are NaN, and so is any sum that a zero vector is part of.

    Args:
        source: an open capture.
        plan: as in `collect`.
        statistic: its kernel gives `size` sums, then as many counts.
        size: how many sums there are.
    Returns:
        Tokens per sample, `[sample]`, int64, sums and counts, `[sample, value]` each, float64.
    Raises:
        RepsimError: as `collect`.
    """
    tokens, values = collect(source, plan, statistic)
    lacking = max(0, 2 * size - values.shape[1])
    values = np.pad(values, ((0, 0), (0, lacking)), constant_values=np.nan)
    return tokens, values[:, :size], values[:, size : 2 * size]
