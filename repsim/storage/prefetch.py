"""Reads the states of a capture sample by sample, the next chunk while the last one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from repsim.errors import StoreDamaged
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.finished_blocks import STATISTICS
from repsim.storage.group import StoreGroup
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import one_line_errors
from repsim.storage.metadata import VERIFY


class SamplePrefetcher:
    """States of the samples that end in each chunk of tokens, read ahead into a ring of memory.

    A chunk goes to the place `chunk % ring`. While the samples that end in chunk k are used, chunk
    k + 1 is on its way, and the samples that ended in chunk k - 1 may still be in use:

        chunk    k-3   k-2   k-1    k    k+1
        memory    .     b     b     a     r       r: being read, a: handed out, b: before, or the
                                                  beginning of a sample that ends in chunk k

    Invariant: no chunk is read into memory that a list handed out now, or just before, shows. The
    ring has room for the chunk being read, the current one, the one before, and as many more as the
    longest sample reaches back.
    """

    def __init__(
        self, group: StoreGroup, nodes: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> None:
        """Args: `nodes`, indices, each once; `ends`, where each sample ends, from token 0 on."""
        self._place, self._nodes = group.place, nodes
        self._starts, self._ends = np.concatenate([[0], ends[:-1]]), ends
        root: Any = group.zarr
        self._array = root["hidden"]
        self._size, units = self._array.chunks[1:]
        self._ring = 3 + -(-int((ends - self._starts).max()) // self._size)
        self._memory = np.empty((len(nodes), self._ring * self._size, units), self._array.dtype)
        is_plain = group.attributes["compression"] == "none"
        self._files = (
            ChunkFiles(self._place) if isinstance(self._place, LocalFolder) and is_plain else None
        )

    def __iter__(self) -> Iterator[list[NDArray[Any]]]:
        """`[node, token, unit]` for each sample that ends in a chunk, chunk by chunk; an array is
        valid until the next but one list is asked for.

        Raises:
            StoreError: a chunk cannot be read.
            StoreDamaged: it is not what was written.
        """
        size, chunks = self._size, -(-int(self._ends[-1]) // self._size)
        with ThreadPoolExecutor(1, "repsim-read") as reader:
            coming = reader.submit(self._read, 0)
            for chunk in range(chunks):
                coming.result()
                if chunk + 1 < chunks:
                    coming = reader.submit(self._read, chunk + 1)
                ending = (self._ends > chunk * size) & (self._ends <= (chunk + 1) * size)
                spans = zip(self._starts[ending], self._ends[ending], strict=True)
                yield [self._sample(int(first), int(last)) for first, last in spans]

    def _read(self, chunk: int) -> None:
        """Reads a chunk at all nodes to its place in the ring."""
        size = self._size
        rows = self._memory[:, chunk % self._ring * size :][:, :size]
        with one_line_errors(self._place, "cannot be read", VERIFY):
            try:
                if self._files is not None:
                    folder = self._files.place
                    paths = [chunk_path(folder, self._array, node, chunk) for node in self._nodes]
                    buffers = [row.reshape(-1).view(np.uint8) for row in rows]
                    self._files.get(list(zip(paths, buffers, strict=True)))
                else:
                    first = chunk * size
                    length = min(size, int(self._ends[-1]) - first)
                    rows[:, :length] = self._array.oindex[self._nodes, first : first + length]
            except StoreDamaged:
                raise
            except ValueError as problem:
                raise StoreDamaged(
                    f"{self._place}: a chunk of hidden is damaged ({problem}); {VERIFY}"
                ) from None

    def _sample(self, first: int, last: int) -> NDArray[Any]:
        """A sample's states out of the ring, in two pieces where it passes the ring's end."""
        begin = first % (self._ring * self._size)
        states = self._memory[:, begin : begin + last - first]
        wrapped = last - first - states.shape[1]
        if not wrapped:
            return states
        return np.concatenate([states, self._memory[:, :wrapped]], axis=1)


def chunk_path(place: LocalFolder, array: zarr.Array[Any], node: int, chunk: int) -> Path:
    """Where a chunk of states lies on a local disk."""
    return place.path / "hidden" / array.metadata.encode_chunk_key((int(node), chunk, 0))


def read_statistic(group: StoreGroup, name: str, plan: int, samples: slice) -> NDArray[np.float64]:
    """One plan's values of a statistic, `[sample, value]`; NaN past the plan's own."""
    root: Any = group.zarr
    return np.asarray(root[f"{STATISTICS}/{name}"][plan, samples])
