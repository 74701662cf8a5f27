"""A store that is opened once and handed along: what kind it is, how much of it counts, whether its
parts are sound.

Chunks carry checksums of their own, and its metadata digests (`repsim.storage.metadata`), so that a
flipped bit in a size, a name or an identity is noticed when the store is opened. A chunk that
should be there and is not is an error, never a fill value. The root's `extent` says how much of the
arrays counts; readers take the arrays as the extent has them. Attributes and arrays that others
have added are left alone, and not vouched for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import crc32c
import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from repsim.errors import StoreDamaged
from repsim.schema import PLAN, UNCHECKED_SCHEMAS, Kind, ReplayVerdict
from repsim.storage.finished_blocks import STATISTICS, FinishedBlocks
from repsim.storage.location import Location, one_line, one_line_errors
from repsim.storage.metadata import (
    CHECK_ADDRESS,
    GROWING,
    OWN_ATTRIBUTES,
    ROOT,
    SCHEMA_ATTRIBUTE,
    Document,
    check_current,
    damage,
    digest_of_array,
    digest_of_root,
    exists,
    kind_in,
    read_attributes,
    read_document,
    verdict_in,
)

FILLED = {"hidden", "logprob", "log_likelihood", "is_greedy", "response", "score", "aggregate"}
CODECS = {"bytes", "vlen-utf8", "zstd", "blosc", "crc32c"}
CHUNK_LIMIT = 1 << 28  # bytes of a chunk that anyone may declare
INDEX_LIMIT = 1 << 20  # bytes of an index array that is read when the store is opened
CHECKSUM = 4  # bytes of a crc32c


class StoreGroup:
    """A store that is open for reading.

    attributes: the root's, checked.
    arrays: name → metadata of repsim's own arrays, checked, with the shape that counts.
    foreign: attributes of the root that others have added.
    """

    def __init__(
        self, place: Location, attributes: Document, damaged: Callable[[str, str], None]
    ) -> None:
        """Args: `damaged` is told of each array (empty: the root's attributes) and what is wrong
        with its metadata.
        """
        self.place, self.attributes = place, attributes
        self.foreign = sorted(set(attributes) - OWN_ATTRIBUTES)
        self._checked = attributes[SCHEMA_ATTRIBUTE] not in UNCHECKED_SCHEMAS
        vouched = self._checked and attributes.get("digest") == digest_of_root(attributes)
        if self._checked and not vouched:
            damaged("", f"attributes in {ROOT}")
        self.arrays: dict[str, Document] = {}
        for name in self._array_names():
            try:
                document = read_document(place, f"{name}/{ROOT}")
            except StoreDamaged:
                if vouched or not self._checked:  # else the name may be what is wrong
                    damaged(name, f"{name}/{ROOT}")
                continue
            if vouched and digest_of_array(document) not in attributes["arrays"][name]:
                damaged(name, f"{name}/{ROOT}")
            elif (within := self._within(document)) is None:
                damaged(name, f"{name}/{ROOT} declares what repsim does not write")
            else:
                self.arrays[name] = within
        self._store = _CheckedStore(self)
        # Which chunks of a capture have to be there; known once its flags have been read.
        self._blocks: FinishedBlocks | None = None

    @classmethod
    def open(cls, place: Location) -> StoreGroup:
        """Opens a store and checks what describes it.

        Raises:
            RepsimError: nothing is there, or it is no store of repsim's, not begun, or of a schema
                it does not read.
            StoreDamaged: what describes it is not what was written.
        """

        def refuse(_array: str, what: str) -> None:
            raise damage(place, what)

        with one_line_errors(place, "cannot be read", CHECK_ADDRESS):
            return cls(place, read_attributes(place), refuse)

    @classmethod
    def find(cls, place: Location) -> StoreGroup | None:
        """The store at a place; None where nothing is there, or a start that was cut short.

        Raises:
            RepsimError: something else is there, or a store that cannot be opened.
        """
        return cls.open(place) if exists(place) else None

    @property
    def kind(self) -> Kind:
        """What the store holds."""
        return kind_in(self.attributes)

    @property
    def holds_scores(self) -> bool:
        return self.kind is Kind.SCORES

    @property
    def replay(self) -> ReplayVerdict:
        """How far replayed layers were proven to be the model itself."""
        return verdict_in(self.attributes)

    @property
    def extent(self) -> dict[str, int]:
        return dict(self.attributes["extent"])

    @property
    def is_checked(self) -> bool:
        """Whether its metadata have digests; those of older schemas have none."""
        return self._checked

    def _array_names(self) -> list[str]:
        """Names of the arrays that are repsim's own, as the attributes have them."""
        attributes = self.attributes
        arrays = attributes.get("arrays")
        if isinstance(arrays, dict):
            return sorted(arrays)
        if isinstance(arrays, list):  # scores of schema 2
            return sorted(map(str, arrays))
        names = [PLAN, "path", *attributes["coordinates"].split()]
        names += ["hidden"] if attributes["keep"] == "all" else []
        names += [f"{STATISTICS}/{name}" for name in attributes["statistics"]]
        return names + ["logprob"] * (self.place.read(f"logprob/{ROOT}") is not None)

    def _within(self, document: Document) -> Document | None:
        """An array's metadata with the names and sizes that count.

        None, so that nobody allocates it, where it is smaller than the extent or not made as repsim
        makes arrays.
        """
        dims = [str(dim).removesuffix(GROWING) for dim in document.get("dimension_names") or ()]
        shape: Any = document.get("shape")
        grid: Any = document.get("chunk_grid")
        codecs: Any = document.get("codecs")
        try:
            chunks = grid["configuration"]["chunk_shape"]
            sizes = [self.extent.get(dim, size) for dim, size in zip(dims, shape, strict=True)]
            known = {codec["name"] for codec in codecs} <= CODECS
            sound = len(chunks) == len(sizes) and all(size > 0 for size in chunks)
            cells = 1
            for size in chunks:
                cells *= size
            sound = sound and cells * 16 <= CHUNK_LIMIT
            sound = sound and all(
                0 <= size <= there for size, there in zip(sizes, shape, strict=True)
            )
        except (TypeError, KeyError, ValueError):
            known = sound = False
        if not (known and sound):
            return None
        return {**document, "shape": sizes, "dimension_names": dims}

    @property
    def zarr(self) -> zarr.Group:
        """The root as zarr has it, for reading; every chunk is checked, and misses are errors."""
        return zarr.open_group(self._store, mode="r", zarr_format=3)

    def dataset(self) -> xr.Dataset:
        """The store as xarray reads it, lazily, but for what says what is finished and where: that
        is read now.

        Raises:
            StoreDamaged: what was read is damaged or missing.
        """
        with one_line_errors(self.place, "cannot be read", CHECK_ADDRESS):
            try:
                dataset: xr.Dataset = xr.open_zarr(self._store, consolidated=False, chunks=None)
            except StoreDamaged:
                raise
            except (ValueError, KeyError, TypeError, RuntimeError) as problem:
                raise damage(self.place, one_line(problem)) from None
            dataset.attrs = {
                name: value
                for name, value in dataset.attrs.items()
                if name not in ("arrays", "digest")
            }
            flags = {"done", "predicted"} & set(dataset)
            for name in flags:  # what is finished before what it is
                dataset[name].load()
            for name in (set(self.arrays) & set(dataset.variables)) - flags:
                if not self.is_filled(name) and dataset.variables[name].nbytes <= INDEX_LIMIT:
                    self._store.keep(name)
        if not self.holds_scores:
            self._blocks = FinishedBlocks(dataset)
        return dataset

    def is_filled(self, name: str) -> bool:
        """Whether blocks fill an array as they are computed; the others describe the store."""
        return name in FILLED or name.startswith(f"{STATISTICS}/")

    def must_have(self, name: str, chunk: tuple[int, ...]) -> bool:
        """Whether a chunk has to be there.

        All chunks of scores are made when the store is. Of a capture, that holds for what describes
        it; of the arrays that blocks fill, a chunk has to be there if a finished block touches it.
        """
        if self.holds_scores or not self.is_filled(name):
            return True
        if self._blocks is None:
            return False
        length = self.arrays[name]["chunk_grid"]["configuration"]["chunk_shape"][1]
        done = self._blocks.of(name, chunk[0])
        return bool((done & self._blocks.touched(name, chunk[1], length)).any())

    def check_current(self) -> None:
        """Refuses to change a store of an older schema.

        Raises:
            StoreError: it is of a schema that is only read.
        """
        check_current(self.place, self.attributes)


class _CheckedStore(WrapperStore[Any]):
    """A store's objects for zarr: its own metadata as they were checked, its own chunks compared
    with their checksum.

    A chunk that has to be there and is not is an error; zarr would take it for one of fill values.
    """

    def __init__(self, of: StoreGroup) -> None:
        super().__init__(of.place.zarr.with_read_only(True))
        self._of = of
        root = {"zarr_format": 3, "node_type": "group", "attributes": of.attributes}
        documents = {
            ROOT: root,
            **{f"{name}/{ROOT}": document for name, document in of.arrays.items()},
        }
        self._metadata = {key: json.dumps(document).encode() for key, document in documents.items()}
        self._kept: dict[str, bytes] = {}
        self._aside = ThreadPoolExecutor(1)

    def with_read_only(self, read_only: bool = False) -> _CheckedStore:
        return self

    def keep(self, name: str) -> None:
        """Reads and checks an array's chunks now, and keeps them as they are until someone wants
        the values.
        """
        document = self._of.arrays[name]
        lengths = document["chunk_grid"]["configuration"]["chunk_shape"]
        counts = [
            -(-size // length) for size, length in zip(document["shape"], lengths, strict=True)
        ]
        for chunk in np.ndindex(*counts):
            key = "/".join(map(str, (name, "c", *chunk)))
            data = self._of.place.read(key)
            self._check(name, chunk, data)
            if data is not None:
                self._kept[key] = data

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        prototype = prototype or default_buffer_prototype()
        if key in self._metadata:
            return prototype.buffer.from_bytes(self._metadata[key])
        if key in self._kept and byte_range is None:
            return prototype.buffer.from_bytes(self._kept[key])
        value = await self._store.get(key, prototype, byte_range)
        name, separator, rest = key.rpartition("/c/")
        if not separator and key.endswith("/c"):
            name, rest = key.removesuffix("/c"), ""
        if byte_range is None and name in self._of.arrays:
            chunk = tuple(map(int, rest.split("/"))) if rest else ()
            # What may be missing is read through zarr, whose loop must not wait for itself.
            if value is None:
                await asyncio.wrap_future(self._aside.submit(self._check, name, chunk, None))
            else:
                self._check(name, chunk, value.as_numpy_array().data)
        return value

    def _check(self, name: str, chunk: tuple[int, ...], data: bytes | memoryview | None) -> None:
        where = f"{name}/c/{'/'.join(map(str, chunk))}"
        if data is None:
            if self._of.must_have(name, chunk):
                raise damage(self._of.place, f"{where} is missing")
            return
        if name == "hidden":  # zarr's codec compares it as well; states are too many to do it twice
            return
        if bytes(data[-CHECKSUM:]) != crc32c.crc32c(data[:-CHECKSUM]).to_bytes(CHECKSUM, "little"):
            raise damage(self._of.place, where)


# Making
