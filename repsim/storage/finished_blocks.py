"""Which blocks of a capture are finished: its flags, and what they say of the chunks on disk."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.schema import BLOCK

STATISTICS = "statistics"


class FinishedBlocks:
    """Which blocks are finished of each row of the arrays that blocks fill: states,
    log-probabilities, statistics.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def bounds(self, name: str) -> NDArray[np.int64]:
        """Where each block begins along an array's second dimension, and the last one ends, `[block
        + 1]`.
        """
        tokens, samples = self._bounds
        return samples if name.startswith(STATISTICS) else tokens

    def flags(self, name: str, row: int) -> tuple[str, int]:
        """The array that says what is finished of a row, and the node that it says it of."""
        told = "predicted" if name == "logprob" and "predicted" in self._dataset else "done"
        return told, int(self.ends[row]) if name.startswith(STATISTICS) else row

    def of(self, name: str, row: int) -> NDArray[np.bool_]:
        """Which blocks of a row are finished, `[block]`; of log-probabilities, none where no plan
        ends.
        """
        told, node = self.flags(name, row)
        done: NDArray[np.bool_] = self._dataset[told].values[node]
        return done & (name != "logprob" or node in self.ends)

    def touched(self, name: str, chunk: int, length: int) -> NDArray[np.bool_]:
        """The blocks that a chunk of so many tokens, or samples, holds a part of, `[block]`."""
        bounds = self.bounds(name)
        touched: NDArray[np.bool_] = (bounds[:-1] < (chunk + 1) * length) & (
            bounds[1:] > chunk * length
        )
        return touched

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The node where each plan ends, `[plan]`."""
        return plan_ends(self._dataset)

    @cached_property
    def _bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return block_starts(self._dataset)


def plan_ends(dataset: xr.Dataset) -> NDArray[np.int64]:
    """The node where each plan ends, `[plan]`."""
    path: NDArray[np.int64] = dataset["path"].values
    ends: NDArray[np.int64] = path[np.arange(len(path)), (path >= 0).sum(1) - 1]
    return ends


def block_starts(dataset: xr.Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the first token and of the first sample of each block, and how many there are,
    `[block + 1]`.
    """
    block = dataset["block"].values
    blocks = np.arange(dataset.sizes[BLOCK] + 1)
    tokens, samples = (
        np.searchsorted(of, blocks) for of in (block[dataset["sample"].values], block)
    )
    return tokens, samples
