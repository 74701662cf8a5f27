"""Is a store what was written? Reads every chunk against its checksum, and misses what ought to be
there.

What is damaged can be declared unfinished; the capture that made the store then computes it again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from repsim.errors import RepsimError, StoreError
from repsim.schema import EXAMPLE, NOT_FINITE
from repsim.storage.finished_blocks import STATISTICS, FinishedBlocks
from repsim.storage.frame import StoreLayout, region_of, writable, write_frame
from repsim.storage.group import StoreGroup
from repsim.storage.location import Location, one_line_errors
from repsim.storage.lock import KEY as LOCK_KEY
from repsim.storage.metadata import CHECK_ADDRESS, RESULTS, ROOT, SCHEMA_ATTRIBUTE, read_attributes
from repsim.storage.results import object_digest, result_digests

# By blocks; the flags say which, and the rest describes the store.
FILLED = ("hidden", "logprob", STATISTICS)
FLAGS = ("done", "predicted")


@dataclass(frozen=True)
class Damage:
    """A part of a store that is not what was written.

    array: path of the array in the store; empty for the attributes of the root.
    chunk: its index along each dimension; () where it is the array's own metadata.
    region: what it covers, for the eye.
    missing: whether it is not there at all.
    """

    array: str
    chunk: tuple[int, ...]
    region: str
    missing: bool

    @property
    def is_result(self) -> bool:
        """Whether it is an analysis's result, not part of the capture."""
        return self.array.startswith(f"{RESULTS}/")

    def __str__(self) -> str:
        what = "missing" if self.missing else "damaged"
        if not self.array:
            return f"{what}: {self.region} ({ROOT})"
        key = f"c/{'/'.join(map(str, self.chunk))}" if self.chunk else ROOT
        return f"{what}: {self.array} {self.region} ({self.array}/{key})"


@dataclass(frozen=True)
class VerificationReport:
    """What reading a whole store found.

    chunks: how many were read.
    bytes: how many they hold.
    damages: those that are damaged or missing.
    foreign: attributes, arrays and groups that are not repsim's; they were not read.
    unchecked: what has no checksum, in words; empty but for stores of older schemas.
    """

    chunks: int
    bytes: int
    damages: tuple[Damage, ...]
    foreign: tuple[str, ...] = ()
    unchecked: str = ""


def check(place: Location) -> VerificationReport:
    """Reads every chunk, compares it with its checksum, and misses what ought to be there.

    In what is finished, values that are not finite count as damage, unless the run allowed them.

    Raises:
        RepsimError: it is no store of repsim's, or cannot be read.
    """
    found: list[Damage] = []

    def note(array: str, _what: str) -> None:
        lost = bool(array) and place.read(f"{array}/{ROOT}") is None
        found.append(Damage(array, (), "metadata" if array else "attributes", lost))

    with one_line_errors(place, "cannot be read", CHECK_ADDRESS):
        attributes = read_attributes(place)
        try:
            group = StoreGroup(place, attributes, note)
        except (KeyError, TypeError, AttributeError, ValueError, RepsimError):
            # Attributes that nothing vouches for.
            return VerificationReport(0, 0, tuple(found) or (Damage("", (), "attributes", False),))
        # What is finished is read before the files are listed: a writer may be at work.
        finite = None if found else _described(group)
        sizes = place.sizes()
        tasks: list[tuple[Any, str, tuple[int, ...], bool]] = []
        read = 0
        root = group.zarr
        for name in group.arrays:
            array: Any = root[name]
            untold = finite is None and group.is_filled(name)  # what ought to be there
            grid = [
                -(-size // along) for size, along in zip(array.shape, array.chunks, strict=True)
            ]
            for chunk in np.ndindex(*grid):
                key = f"{name}/{array.metadata.encode_chunk_key(chunk)}"
                if key in sizes or (not untold and group.must_have(name, chunk)):
                    tasks.append((array, name, chunk, key in sizes))
                    read += sizes.get(key, 0)
        with ThreadPoolExecutor() as pool:
            found += [
                damage for damage in pool.map(lambda task: _damage(task, finite), tasks) if damage
            ]
        found += [
            Damage(name, (), "metadata", False)
            for name in (RESULTS, STATISTICS)
            if not _is_group(place, name)
        ]
        results, foreign = _check_results(place, sizes) if group.is_checked else ([], [])
    own = (*(f"{name}/" for name in group.arrays), f"{RESULTS}/", f"{STATISTICS}/{ROOT}", ROOT)
    foreign += sorted(
        {key.split("/")[0] for key in sizes if not key.startswith(own) and key != LOCK_KEY}
    )
    foreign += [f"attribute {name}" for name in group.foreign]
    unchecked = (
        "" if group.is_checked else f"sizes and attributes (schema {attributes[SCHEMA_ATTRIBUTE]})"
    )
    return VerificationReport(len(tasks), read, (*found, *results), tuple(foreign), unchecked)


def _described(group: StoreGroup) -> Finite | None:
    """What a store says of itself; None where that is damaged, which is reported as such."""
    try:
        return Finite(group, group.dataset())
    except (RepsimError, ValueError, RuntimeError):
        return None


class Finite:
    """Are values that are declared finished numbers?"""

    def __init__(self, group: StoreGroup, dataset: xr.Dataset) -> None:
        self._group, self._dataset = group, dataset
        self._allowed = bool(group.attributes.get("nonfinite", not group.is_checked))
        if not group.holds_scores:
            self._blocks = FinishedBlocks(dataset)
            # What says where blocks are is read now, damaged or not.
            _ = self._blocks.bounds("hidden")
            last = dataset["length"].values[dataset["sample"].values] - 1
            # at a sample's last token nothing is predicted; a mean over a single token is one of
            # nothing
            self._unpredicted = np.where(
                dataset["position"].values < 0, last == 0, dataset["position"].values == last
            )

    def __call__(self, name: str, region: tuple[slice, ...], values: NDArray[Any]) -> bool:
        """Whether a chunk's values are, where they are finished."""
        if self._allowed or values.dtype.kind != "f" or np.isfinite(values).all():
            return True
        if self._group.holds_scores:
            return name != "score" or self._scored(region, values)
        if not self._group.is_filled(name):
            return True
        done = np.repeat(
            self._blocks.of(name, region[0].start), np.diff(self._blocks.bounds(name))
        )[region[1]]
        if name == "logprob":
            done = done & ~self._unpredicted[region[1]]
        lost = ~np.isfinite(values[0])
        if name.startswith(STATISTICS):  # those of plans with fewer states than others end earlier
            lost = lost.all(-1)
        elif name == "hidden":
            lost = lost.any(-1)
        return not (lost & done).any()

    def _scored(self, region: tuple[slice, ...], values: NDArray[Any]) -> bool:
        """Scores that are none have a request without an answer that is a number, and say so."""
        blocks = self._dataset["block"].values[region[1]]
        done = self._dataset["done"].values[region[0]][:, blocks]
        try:
            spoilt = self._dataset["is_greedy"].values[region[0]] == NOT_FINITE
        except RepsimError:  # which is a damage of its own
            return True
        examples = self._dataset["request_example"].values
        excused = np.zeros((len(spoilt), self._dataset.sizes[EXAMPLE]), bool)
        for row, flags in enumerate(spoilt):
            excused[row, examples[flags]] = True
        return not (np.isnan(values).all(-1) & done & ~excused[:, region[1]]).any()


def _damage(task: tuple[Any, str, tuple[int, ...], bool], finite: Finite | None) -> Damage | None:
    array, path, chunk, present = task
    region = region_of(chunk, array.chunks, array.shape)
    if present:
        try:
            values = np.asarray(array[region])
            if finite is None or finite(path, region, values):
                return None
        except (RepsimError, ValueError, RuntimeError, TypeError, IndexError):  # of codecs, too
            pass
    named = zip(_dims(array), region, array.shape, strict=False)
    spans = [_span(str(dim), part) for dim, part, size in named if part.stop - part.start < size]
    return Damage(path, chunk, ", ".join(spans) or "whole", not present)


def _dims(array: Any) -> tuple[str, ...]:
    return tuple(map(str, array.metadata.dimension_names or ("",) * array.ndim))


def _span(dim: str, part: slice) -> str:
    first, last = part.start, part.stop - 1
    return f"{dim} {first:,}" if first == last else f"{dim} {first:,} to {last:,}"


def _is_group(place: Location, name: str) -> bool:
    """Whether a part of the store that holds others is sound, or not there."""
    data = place.read(f"{name}/{ROOT}")
    try:
        document = {} if data is None else json.loads(data)
    except ValueError:
        return False
    kind = {"node_type": "group", "zarr_format": 3}
    others = {"attributes", "consolidated_metadata"}
    return (
        data is None or {key: value for key, value in document.items() if key not in others} == kind
    )


def _check_results(place: Location, sizes: Mapping[str, int]) -> tuple[list[Damage], list[str]]:
    """Objects of analyses' results that are not what was written, and what beside them is none of
    repsim's.
    """
    damages: list[Damage] = []
    foreign: list[str] = []
    for name in sorted(
        {key.split("/")[1] for key in sizes if key.startswith(f"{RESULTS}/") and key.count("/") > 1}
    ):
        digests, prefix = result_digests(place, name), f"{RESULTS}/{name}/"
        if digests is None:
            foreign.append(f"{RESULTS}/{name}")
            continue
        sound = bool(digests) and _digest_or_none(
            ROOT, place.read(prefix + ROOT) or b""
        ) == digests.get(ROOT)
        for key in sorted(digests) if sound else [ROOT]:
            data = place.read(prefix + key)
            if not sound or data is None or _digest_or_none(key, data) != digests[key]:
                array, _, chunk = (prefix + key).removesuffix(f"/{ROOT}").partition("/c/")
                index = tuple(map(int, chunk.split("/"))) if chunk else ()
                damages.append(Damage(array, index, "whole" if index else "metadata", data is None))
        foreign += sorted(
            key
            for key in sizes
            if key.startswith(prefix) and key.removeprefix(prefix) not in digests
        )
    return damages, foreign


def _digest_or_none(key: str, data: bytes) -> str | None:
    try:
        return object_digest(key, data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def restore(place: Location, layout: StoreLayout, damages: Collection[Damage]) -> None:
    """Writes what describes the store anew, from a layout that is the store's own as far as can be
    told.

    Damaged flags of what is finished are lost with it; check again afterwards, as only a described
    store can miss states.

    Raises:
        RepsimError: the layout is another one, or the store cannot be written.
    """
    with one_line_errors(place):
        attributes, damaged = (
            read_attributes(place),
            {damage.array for damage in damages if is_metadata(damage)},
        )
        same = "" in damaged or (
            attributes.get("identity") == layout.identity.to_dict()
            and attributes.get("extent") == layout.extent
        )
        if same:
            group = StoreGroup(
                place, {**attributes, "extent": layout.extent}, lambda _array, _what: None
            )
            root: Any = group.zarr
            same = all(
                np.array_equal(np.asarray(root[str(name)][...]), variable.values)
                for name, variable in layout.coordinates().variables.items()
                if name in group.arrays and name not in damaged
            )
        if not same:
            names = ", ".join(sorted(name or "attributes" for name in damaged))
            raise StoreError(
                f"{place}: {names} damaged, and this is not the command that made the store; "
                "repair it with that one (repsim verify tells), or capture again to another --out"
            )
        for damage in damages:
            if not damage.chunk and damage.array and not damage.is_result:
                place.delete(f"{damage.array}/{ROOT}")
        writing = zarr.open_group(place.zarr, mode="r+", zarr_format=3)
        for damage in damages:
            if damage.array in FLAGS:
                clear_flags(writing, damage)
        write_frame(place, writing, layout)


def invalidate(place: Location, damages: Collection[Damage]) -> None:
    """Declares the blocks of damaged chunks unfinished and removes the chunks, so that they are
    computed again.

    A result of an analysis is removed whole: what is left of it would pass for all of it.

    Raises:
        RepsimError: what describes the store is damaged.
    """
    for damage in damages:
        if is_metadata(damage):
            raise StoreError(
                f"{place}: {damage}: it describes the store; capture again, to another --out"
            )
    with one_line_errors(place):
        group = zarr.open_group(place.zarr, mode="r+", zarr_format=3)
        for damage in damages:
            if damage.array in FLAGS:
                clear_flags(group, damage)
        held = StoreGroup.open(place).dataset()
        flags = {name: held[name].values.copy() for name in FLAGS if name in held}
        blocks = FinishedBlocks(held)
        lost = [damage for damage in damages if damage.array.split("/")[0] in FILLED]
        for damage in lost:
            array: Any = group[damage.array]
            told, node = blocks.flags(damage.array, damage.chunk[0])
            flags[told][node, blocks.touched(damage.array, damage.chunk[1], array.chunks[1])] = (
                False
            )
        for name, values in flags.items():
            writable(group, name)[: len(values), : values.shape[1]] = values
        for damage in lost:
            _delete(place, group, damage)
        if results := tuple(
            {"/".join(damage.array.split("/")[:2]) + "/" for damage in damages if damage.is_result}
        ):
            for key in place.sizes():
                if key.startswith(results):
                    place.delete(key)


def is_metadata(damage: Damage) -> bool:
    """Whether it is in what describes the store: plans, trie, tokens, samples, sizes."""
    if damage.is_result:
        return False
    return not damage.chunk or damage.array.split("/")[0] not in (*FILLED, *FLAGS)


def clear_flags(group: zarr.Group, damage: Damage) -> None:
    """Declares what a damaged chunk of flags was about unfinished; it is not read."""
    if not damage.chunk:
        return
    array = writable(group, damage.array)
    array[region_of(damage.chunk, array.chunks, array.shape)] = False


def _delete(place: Location, group: zarr.Group, damage: Damage) -> None:
    array: Any = group[damage.array]
    place.delete(f"{damage.array}/{array.metadata.encode_chunk_key(damage.chunk)}")
