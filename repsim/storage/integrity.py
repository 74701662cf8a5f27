"""Is a store what was written? Reads every chunk against its checksum, and misses what ought to be there.

What is damaged can be declared unfinished; the capture that made the store then computes it again.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from repsim.schema import PLAN, SCORES, RepsimError
from repsim.storage.location import Place, one_line_errors
from repsim.storage.state_store import (
    CHECK_ADDRESS,
    RESULTS,
    STATISTICS,
    Layout,
    block_starts,
    frame,
    open_dataset,
    plan_ends,
    root_group,
    writable,
    write_frame,
)

FILLED = ("hidden", "logprob", STATISTICS)  # by blocks; `done` says which, and the rest describes the store


@dataclass(frozen=True)
class Damage:
    """A chunk that is not what was written.

    array: path of the array in the store.
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
        key = f"c/{'/'.join(map(str, self.chunk))}" if self.chunk else "zarr.json"
        return f"{what}: {self.array} {self.region} ({self.array}/{key})"


@dataclass(frozen=True)
class Check:
    """What reading a whole store found.

    chunks: how many were read.
    bytes: how many they hold.
    damages: those that are damaged or missing.
    """

    chunks: int
    bytes: int
    damages: tuple[Damage, ...]


def check(place: Place) -> Check:
    """Reads every chunk and compares it with its checksum; misses what ought to be there.

    Raises:
        RepsimError: it is no capture, or cannot be read.
    """
    group = root_group(place)
    with one_line_errors(place, "cannot be read", CHECK_ADDRESS):
        sizes = place.sizes()
        paths = sorted(key.removesuffix("/zarr.json") for key in sizes if key.endswith("/zarr.json"))
        found = [Damage(path, (), "metadata", True) for path in _promised(group) if path not in paths]
        arrays: dict[str, Any] = {}
        for path in paths:
            try:
                arrays[path] = group[path]
            except (ValueError, KeyError, TypeError):
                found.append(Damage(path, (), "metadata", False))
        tasks: list[tuple[Any, str, tuple[int, ...], bool]] = []
        read = 0
        # Without all its metadata a store cannot be opened, and what its blocks ought to have cannot be told.
        expected = {path: set() for path in arrays} if found else _expected(place, group)
        extent: Any = group.attrs["extent"]
        for path, array in arrays.items():
            if isinstance(array, zarr.Group):
                continue
            shape = array.shape
            if not path.startswith(RESULTS):  # what an extension that was cut short has added does not count
                shape = [min(size, extent.get(dim, size)) for dim, size in zip(_dims(array), shape, strict=True)]
            grid = tuple(-(-size // chunk) for size, chunk in zip(shape, array.chunks, strict=True))
            wanted = expected.get(path)
            for chunk in np.ndindex(grid):
                key = f"{path}/{array.metadata.encode_chunk_key(chunk)}"
                if key in sizes or wanted is None or chunk in wanted:
                    tasks.append((array, path, chunk, key in sizes))
                    read += sizes.get(key, 0)
        with ThreadPoolExecutor() as pool:
            found += [damage for damage in pool.map(_damage, tasks) if damage is not None]
    return Check(len(tasks), read, tuple(found))


def _promised(group: zarr.Group) -> list[str]:
    """Arrays that the root's attributes say are there."""
    attributes: Any = group.attrs
    if attributes.get("kind") == SCORES:
        return list(attributes["arrays"])
    described = [PLAN, "path", *attributes["coordinates"].split()]
    states = ["hidden"] if attributes["keep"] == "all" else []
    return described + states + [f"{STATISTICS}/{name}" for name in attributes["statistics"]]


def _damage(task: tuple[Any, str, tuple[int, ...], bool]) -> Damage | None:
    array, path, chunk, present = task
    region = tuple(
        slice(index * size, min((index + 1) * size, length))
        for index, size, length in zip(chunk, array.chunks, array.shape, strict=True)
    )
    if present:
        try:
            array[region]
            return None
        except (ValueError, RuntimeError, TypeError, IndexError):  # what codecs raise
            pass
    named = zip(_dims(array), region, array.shape, strict=False)
    spans = [_span(str(dim), part) for dim, part, size in named if part.stop - part.start < size]
    return Damage(path, chunk, ", ".join(spans) or "whole", not present)


def _dims(array: Any) -> tuple[str, ...]:
    return tuple(map(str, array.metadata.dimension_names or ("",) * array.ndim))


def _span(dim: str, part: slice) -> str:
    first, last = part.start, part.stop - 1
    return f"{dim} {first:,}" if first == last else f"{dim} {first:,} to {last:,}"


def _expected(place: Place, group: zarr.Group) -> dict[str, set[tuple[int, ...]]]:
    """The chunks that finished blocks must have, for the arrays that blocks fill; every other array is whole."""
    if group.attrs.get("kind") == SCORES:  # small enough to be whole from the beginning
        return {}
    arrays: dict[str, Any] = {
        path: group[path]
        for path in ("hidden", "logprob", *(f"{STATISTICS}/{name}" for name in group.attrs["statistics"]))  # type: ignore[union-attr]
        if path in group
    }
    found: dict[str, set[tuple[int, ...]]] = {path: set() for path in arrays}
    try:
        dataset = open_dataset(place)
        held = dataset[["done", "path", "block", "sample"]].load()
    except (RepsimError, ValueError, RuntimeError):  # a description is damaged, which is reported as such
        return found
    ends = plan_ends(held)
    starts, samples = block_starts(held)
    for path, array in arrays.items():
        along = array.chunks[1]
        bounds = samples if path.startswith(STATISTICS) else starts
        for node, block in np.argwhere(held["done"].values).tolist():
            rows = np.flatnonzero(ends == node).tolist() if path.startswith(STATISTICS) else [node]
            if path == "logprob" and node not in ends:
                continue
            chunks = range(bounds[block] // along, -(-bounds[block + 1] // along))
            found[path] |= {(row, chunk, *(0,) * (array.ndim - 2)) for row in rows for chunk in chunks}
    return found


def restore(place: Place, layout: Layout, damages: Collection[Damage]) -> None:
    """Writes what describes the store anew, from a layout that is the store's own as far as can be told.

    Damaged flags of what is finished are lost with it; check again afterwards, as only a described store can miss
    states.

    Raises:
        RepsimError: the layout is another one, an array's metadata is lost, or the store cannot be written.
    """
    if lost := [damage.array for damage in damages if not damage.chunk]:
        raise RepsimError(f"{place}: zarr.json of {', '.join(lost)} is lost; capture again to another --out")
    with one_line_errors(place):
        group = zarr.open_group(place.zarr, mode="r+", zarr_format=3)
        attributes, damaged = group.attrs, {damage.array for damage in damages if describes(damage)}
        same = attributes["extent"] == layout.extent and attributes["identity"] == layout.identity.to_dict()
        for name, variable in frame(layout).variables.items():
            array: Any = group[str(name)]
            sound = name not in damaged and name != "done"
            same = same and (not sound or np.array_equal(array[...], variable.values))
        if not same:
            names = ", ".join(sorted(damaged))
            raise RepsimError(
                f"{place}: {names} damaged, and this is not the command that made the store; "
                "repair it with that one (repsim verify tells), or capture again to another --out"
            )
        for damage in damages:
            if damage.array == "done":
                _delete(place, group, damage)
        write_frame(group, layout)


def forget(place: Place, damages: Collection[Damage]) -> None:
    """Declares the blocks of damaged chunks unfinished and removes the chunks, so that they are computed again.

    A result of an analysis is removed whole: what is left of it would pass for all of it.

    Raises:
        RepsimError: what describes the store is damaged.
    """
    for damage in damages:
        if describes(damage):
            raise RepsimError(f"{place}: {damage}: it describes the store; capture again, to another --out")
    with one_line_errors(place):
        group = zarr.open_group(place.zarr, mode="r+", zarr_format=3)
        for damage in damages:
            if damage.array == "done":
                _delete(place, group, damage)  # nothing is finished there, then
        held = open_dataset(place)[["done", "path", "block", "sample"]].load()
        done, ends = held["done"].values.copy(), plan_ends(held)
        starts, samples = block_starts(held)
        lost = [damage for damage in damages if damage.array.split("/")[0] in FILLED]
        for damage in lost:
            array: Any = group[damage.array]
            row, chunk = damage.chunk[:2]
            node, bounds = (ends[row], samples) if damage.array.startswith(STATISTICS) else (row, starts)
            first, last = chunk * array.chunks[1], (chunk + 1) * array.chunks[1]
            done[node, (bounds[:-1] < last) & (bounds[1:] > first)] = False
        writable(group, "done")[: len(done), : done.shape[1]] = done
        for damage in lost:
            _delete(place, group, damage)
        if results := tuple({"/".join(damage.array.split("/")[:2]) + "/" for damage in damages if damage.is_result}):
            for key in place.sizes():
                if key.startswith(results):
                    place.delete(key)


def describes(damage: Damage) -> bool:
    """Whether it is in what describes the store: plans, trie, tokens, samples."""
    return not damage.chunk or damage.array.split("/")[0] not in (*FILLED, "done", RESULTS)


def _delete(place: Place, group: zarr.Group, damage: Damage) -> None:
    array: Any = group[damage.array]
    place.delete(f"{damage.array}/{array.metadata.encode_chunk_key(damage.chunk)}")
