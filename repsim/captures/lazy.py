"""Arrays that are cast as they are read, so that asking for a dtype reads nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing


class CastArray(BackendArray):
    """What xarray reads through: a lazy variable in another dtype.

    shape: the variable's.
    dtype: what values are given as.
    """

    def __init__(self, variable: xr.Variable, dtype: np.dtype[Any]) -> None:
        self._variable = variable
        self.shape, self.dtype = variable.shape, dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        """Reads a piece and casts it; xarray makes other indices of these."""
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        piece: NDArray[Any] = self._variable[key].values.astype(self.dtype)
        return piece


def as_dtype(variable: xr.Variable, dtype: np.dtype[Any]) -> Any:
    """The variable's data in another dtype, read when they are asked for.

    Args:
        variable: of a store, not read.
        dtype: what values are given as.
    Returns:
        What `xarray.DataArray.copy(data=...)` takes.
    Source: xarray's guide "How to add a new backend" (`BackendArray`, `LazilyIndexedArray`).
    """
    return indexing.LazilyIndexedArray(CastArray(variable, dtype))
