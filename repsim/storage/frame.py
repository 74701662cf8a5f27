"""What captures and scores share on disk: the layout of a store, its arrays, and who writes them.

A store is made, and grows, in one order: what describes it, the arrays that blocks fill, the
attributes last. Nothing counts before the attributes say so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from repsim.plans import NamedPlan
from repsim.schema import (
    BLOCK,
    CHOICE,
    EXAMPLE,
    METRIC,
    NODE,
    PLAN,
    REQUEST,
    SAMPLE,
    STATE,
    TASK,
    TOKEN,
    Identity,
    ReplayVerdict,
)
from repsim.storage.location import Location, one_line_errors
from repsim.storage.lock import WriterLock
from repsim.storage.metadata import (
    BATCH_LIMIT,
    REPLAY,
    array_digests,
    grow,
    is_growing,
    put_attributes,
    verdict_in,
)
from repsim.storage.starting import open_or_create

# Chunks of what describes the store, so large that each array is one or a few, and fixed, so that
# an array can grow.
CHUNKS = {NODE: 4096, TOKEN: 65536, PLAN: 1024, STATE: 64, SAMPLE: 4096, BLOCK: 4096}
CHUNKS |= {TASK: 1024, METRIC: 8, EXAMPLE: 4096, REQUEST: 4096, CHOICE: 16}
CODECS = (ZstdCodec(level=1), Crc32cCodec())
# Otherwise zarr compares every chunk with NaN, which takes longer than writing it.
WHOLE_CHUNKS: Any = {"write_empty_chunks": True}
GO_ON = "make that good, and the same command goes on"


@dataclass(frozen=True)
class ArraySpec:
    """An array that blocks fill.

    dims, shape, dtype, chunks: as zarr takes them.
    fill: what stands where nothing was written; by default NaN for floats, else zero or False.
    codecs: how chunks are packed; a checksum comes last.
    attributes: units and a long name.
    is_flag: whether it says what is finished. All chunks of a flag are written when the store is
        made, so that a missing one is noticed.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    chunks: tuple[int, ...]
    fill: Any = None
    codecs: tuple[Any, ...] = CODECS
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_flag: bool = False


@dataclass(frozen=True)
class StoreLayout(ABC):
    """What a store is to hold.

    identity: what the numbers depend on.
    layers: the model's T.
    plans: with their names.
    """

    identity: Identity
    layers: int
    plans: tuple[NamedPlan, ...]

    @property
    @abstractmethod
    def extent(self) -> dict[str, int]:
        """Size of each dimension of the store."""

    @abstractmethod
    def coordinates(self) -> xr.Dataset:
        """What describes the store: plans, and what the numbers are of."""

    @abstractmethod
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays that blocks fill, by name."""

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """The root's attributes, `extent` among them."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups within the store."""
        return ()


class StoreWriter:
    """A store that is open for writing, under a lock."""

    def __init__(self, place: Location, group: zarr.Group, lock: WriterLock) -> None:
        self._place, self._group, self._lock = place, group, lock

    def note_replay(self, verdict: ReplayVerdict) -> None:
        """Adds how far the replay was proven to be the model to what earlier runs have proven."""
        before = verdict_in(self._group.attrs)
        if (merged := before.merged(verdict)) == before:
            return
        with one_line_errors(self._place, advice=GO_ON):
            replay = {"error": merged.error, "kinds": list(merged.kinds)}
            put_attributes(self._group, {REPLAY: replay})

    @property
    def batch_limit(self) -> int | None:
        """The most positions of a batch, where memory has run out with more; None otherwise."""
        limit: Any = self._group.attrs.asdict().get(BATCH_LIMIT)
        return None if limit is None else int(limit)

    def note_batch_limit(self, positions: int) -> None:
        """Keeps the most positions of a batch for runs that go on."""
        with one_line_errors(self._place, advice=GO_ON):
            put_attributes(self._group, {BATCH_LIMIT: positions})


def open_for_writing(
    place: Location,
    layout: StoreLayout,
    values: Mapping[str, NDArray[Any]] | None = None,
    *,
    rewrite: bool = False,
) -> zarr.Group:
    """The store of a layout: made where there is none, grown where it holds a part of the layout.

    Args:
        place: the store's.
        layout: what it is to hold; what it holds already comes first in every dimension.
        values: arrays to write whole where the store is made or grows.
        rewrite: write what describes the store, and `values`, in any case.
    Raises:
        RepsimError: it cannot be written, or is of a schema that is only read.
    """
    with one_line_errors(place):
        group = open_or_create(place)
        attributes = group.attrs.asdict()
        is_same = all(attributes.get(key) == value for key, value in layout.attributes().items())
        # An extension may have been cut short, and now another layout, or the one before, is
        # asked for.
        if rewrite or not is_same or is_growing(attributes):
            write_frame(place, group, layout, values)
    return group


def write_frame(
    place: Location,
    group: zarr.Group,
    layout: StoreLayout,
    values: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Writes what describes the store, and its arrays in the right sizes; the attributes last."""
    described, specs = layout.coordinates(), layout.arrays()
    names = [*map(str, described.variables), *specs]
    grow(place, group, {name: layout.extent for name in names if name in group})
    # What describes the store.
    for key, variable in described.variables.items():
        dims = tuple(map(str, variable.dims))
        chunks = tuple(CHUNKS[dim] for dim in dims)
        spec = ArraySpec(dims, variable.shape, variable.dtype, chunks)
        create_or_resize(group, str(key), spec)[...] = variable.values
    for name in layout.groups:
        group.require_group(name)
    # The arrays that blocks fill, flags first: what is lost must not pass for finished if this is
    # cut short.
    for name, spec in sorted(specs.items(), key=lambda item: not item[1].is_flag):
        array = create_or_resize(group, name, spec)
        if values is not None:
            array[...] = values[name]
        elif spec.is_flag:
            array[...] = array[...]
    # Whatever reads the store goes by the attributes. xarray keeps coordinates that are no
    # dimension's own under `coordinates`.
    flags = [name for name, spec in specs.items() if spec.is_flag]
    others = [str(name) for name, of in described.coords.items() if of.dims != (name,)]
    put_attributes(
        group,
        {
            **layout.attributes(),
            "coordinates": " ".join([*others, *flags]),
            "arrays": array_digests(place, names),
        },
    )


def create_or_resize(group: zarr.Group, name: str, spec: ArraySpec) -> Any:
    """An array of the store for writing, made if it is not there; `grow` resizes one that is."""
    if name in group:
        return writable(group, name)
    fill = np.nan if spec.fill is None and np.issubdtype(spec.dtype, np.floating) else spec.fill
    array = group.create_array(
        name,
        shape=spec.shape,
        chunks=spec.chunks,
        dtype=spec.dtype,
        fill_value=fill,
        compressors=spec.codecs,
        dimension_names=spec.dims,
        attributes=dict(spec.attributes),
    )
    return array.with_config(WHOLE_CHUNKS)


def writable(group: zarr.Group, name: str) -> Any:
    """An array of the store for writing; None where there is none of that name."""
    array: Any = group.get(name)
    return None if array is None else array.with_config(WHOLE_CHUNKS)


def region_of(
    chunk: Sequence[int], chunks: Sequence[int], shape: Sequence[int]
) -> tuple[slice, ...]:
    """What a chunk covers of an array.

    Example:
        >>> region_of((1, 0), (4, 4), (6, 3))
        (slice(4, 6, None), slice(0, 3, None))
    """
    corners = zip(chunk, chunks, shape, strict=True)
    return tuple(
        slice(index * size, min((index + 1) * size, length)) for index, size, length in corners
    )
