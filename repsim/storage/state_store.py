"""What is on disk: one zarr v3 group a capture, written block by block, opened by xarray.

`hidden[node, token, unit]` is chunked one node by a run of tokens, so a state, or a run of tokens
at every node, reads in few pieces. `done[node, block]` says which nodes' states of which samples
are there; it is written after them, and what it does not name is not believed. A chunk that a
block's end falls into is rewritten whole by the next block; both versions hold the finished tokens.
The root's attribute `extent` says how much of the arrays counts, so that a store grows in one step,
whenever the process dies. Every chunk carries a checksum. This module takes arrays; it knows
neither models nor plans' meaning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from repsim.data.corpus import Company, Sample, TokenRule
from repsim.errors import StoreError
from repsim.plans import NamedPlan, PlanTrie
from repsim.schema import (
    BLOCK,
    CAPTURE,
    CHOICE,
    EXAMPLE,
    METRIC,
    NODE,
    PLAN,
    REQUEST,
    SAMPLE,
    SCHEMA_VERSION,
    STATE,
    STORE_DTYPES,
    TASK,
    TOKEN,
    UNIT,
    Identity,
    ReplayVerdict,
)
from repsim.stats.per_sample import SampleStatistic
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.group import (
    CHECK_ADDRESS,
    RESULTS,
    ROOT,
    SCHEMA_ATTRIBUTE,
    STATISTICS,
    VERIFY,
    StoreGroup,
    array_digests,
    grow,
    is_growing,
    put_attributes,
    read_attributes,
)
from repsim.storage.location import LocalFolder, Location, one_line_errors
from repsim.storage.lock import KEY as LOCK_KEY
from repsim.storage.lock import WriterLock

CHUNK_BYTES = 2 << 20  # of float16 states
WRITE_BYTES = 16 << 20  # of states that are written together
STATISTIC_BYTES = 256 << 10  # of a statistic's chunk
# Attribute: how far the replay was proven to be the model; stores made before have none.
REPLAY = "replay"
# Chunks of what describes the store, so large that each array is one or a few and so fixed that it
# can grow.
CHUNKS = {NODE: 4096, TOKEN: 65536, PLAN: 1024, STATE: 64, SAMPLE: 4096, BLOCK: 4096}
CHUNKS |= {TASK: 1024, METRIC: 8, EXAMPLE: 4096, REQUEST: 4096, CHOICE: 16}
DONE_CHUNKS = {NODE: 1024, BLOCK: 64}  # rewritten after every few states, so smaller
GO_ON = "make that good, and the same command goes on"
MARK_SECONDS = 1.0  # of work that a kill may cost beside what is in memory
COMPRESSION = ("none", "fast", "small")
# Else zarr compares every chunk with NaN, which takes longer than writing.
KEEP_WHOLE = {"write_empty_chunks": True}


def check_form(dtype: str, compression: str) -> None:
    """Refuses what states cannot be stored as."""
    if dtype not in STORE_DTYPES:
        raise StoreError(f"dtype {dtype!r}: a store holds {' or '.join(STORE_DTYPES)}")
    if compression not in COMPRESSION:
        raise StoreError(f"compression {compression!r}: choose {', '.join(COMPRESSION)}")


@dataclass(frozen=True)
class Layout:
    """What a store is to hold.

    identity: what the numbers depend on.
    layers: the model's T.
    plans: with their names; `trie` is built from them in this order.
    samples: in the store's order.
    blocks: how many samples each block takes, in order.
    units: width of a state.
    dtype: of the stored states, `float16` or `float32`.
    logprobs: whether next-token log-probabilities are stored.
    keep: whether states are stored; otherwise only `statistics` are.
    statistics: numbers of each sample and plan.
    compression: of the states, `none`, `fast` or `small`.
    requests: the options of every capture that made it.
    company: which samples shared a batch when it was computed last, and were padded.
    nonfinite: whether states that are not finite were allowed.
    """

    identity: Identity
    layers: int
    plans: tuple[NamedPlan, ...]
    trie: PlanTrie
    samples: tuple[Sample, ...]
    blocks: tuple[int, ...]
    units: int
    dtype: str
    logprobs: bool = False
    keep: bool = True
    statistics: tuple[SampleStatistic, ...] = ()
    compression: str = "none"
    requests: tuple[Mapping[str, Any], ...] = ()
    company: Company = Company.ANY
    nonfinite: bool = False

    def __post_init__(self) -> None:
        check_form(self.dtype, self.compression)

    @cached_property
    def positions(self) -> tuple[NDArray[np.int32], ...]:
        """`[sample]`, positions that are kept of each."""
        rule = TokenRule(self.identity.tokens)
        return tuple(rule.positions(len(sample)) for sample in self.samples)

    @cached_property
    def sample_starts(self) -> NDArray[np.int64]:
        """Index of the first sample of each block, and how many samples there are, `[block + 1]`."""
        return np.cumsum((0, *self.blocks))

    @cached_property
    def token_starts(self) -> NDArray[np.int64]:
        """Index of the first kept token of each block, and how many there are, `[block + 1]`."""
        return np.cumsum((0, *map(len, self.positions)))[self.sample_starts]

    @property
    def tokens(self) -> int:
        """Kept tokens."""
        return int(self.token_starts[-1])

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """`[node]`, whether a node counts: all where states are kept, the plans' ends otherwise."""
        wanted = np.full(len(self.trie), self.keep)
        wanted[list(self.trie.ends)] = True
        return wanted

    @property
    def chunk_tokens(self) -> int:
        """Tokens a chunk: a power of two, 64 to 4096, about 2 MiB of float16 states, no more than
        there are.
        """
        fits = max(64, min(4096, CHUNK_BYTES // (2 * self.units)))
        return min(1 << (fits.bit_length() - 1), self.tokens)

    @property
    def extent(self) -> dict[str, int]:
        """Sizes of the store's dimensions."""
        sizes = {NODE: len(self.trie), PLAN: len(self.plans), STATE: self.trie.depth + 1}
        sizes |= {TOKEN: self.tokens, SAMPLE: len(self.samples), BLOCK: len(self.blocks)}
        return sizes | self.widths(self.trie.depth + 1)

    def bytes_of(self, blocks: NDArray[np.bool_]) -> int:
        """Size on disk of these states and statistics, `[node, block]`, before compression."""
        tokens, samples = np.diff(self.token_starts), np.array(self.blocks)
        # `[node]`; a chunk is whole on disk.
        chunks = -(-(blocks.astype(np.int64) @ tokens) // self.chunk_tokens)
        states = chunks.sum() * self.chunk_tokens * self.units * np.dtype(self.dtype).itemsize
        ends = list(self.trie.ends)
        widths = np.array(
            [sum(self.widths(len(path)).values()) for path in self.trie.paths], np.int64
        )
        total = 8 * widths @ (blocks[ends] @ samples) + states * self.keep
        return int(total + 4 * chunks[ends].sum() * self.chunk_tokens * self.logprobs)

    def widths(self, states: int) -> dict[str, int]:
        """How many values each statistic has for a plan of so many states."""
        return {
            statistic.name: statistic.width(states, self.units) for statistic in self.statistics
        }


class Writer:
    """Puts blocks into a store; `prepare` makes one.

    done: `[node, block]`, what is finished.
    """

    def __init__(
        self, place: Location, group: zarr.Group, layout: Layout, lock: WriterLock
    ) -> None:
        self._place, self._group, self._layout, self._lock = place, group, layout, lock
        self._hidden, self._logprob = writable(group, "hidden"), writable(group, "logprob")
        self._statistics = {
            item.name: writable(group, f"{STATISTICS}/{item.name}") for item in layout.statistics
        }
        self._done, self._predicted = writable(group, "done"), writable(group, "predicted")
        self._chunks = (
            ChunkFiles(place)
            if isinstance(place, LocalFolder) and layout.compression == "none"
            else None
        )
        self.done: NDArray[np.bool_] = np.asarray(self._done[:])
        self.predicted = None if self._predicted is None else np.asarray(self._predicted[:])
        self._block = 0
        self._unmarked: set[int] = set()
        self._marked = time.monotonic()
        self._waiting: list[tuple[int, NDArray[Any], NDArray[np.float32] | None]] = []

    def pending(self, block: int) -> frozenset[int]:
        """Nodes that this block lacks: their states, or log-probabilities of a plan that ends
        there.
        """
        predicted = None if self.predicted is None else self.predicted[:, block, None]
        return frozenset(
            np.flatnonzero(missing_in(self._layout, self.done[:, block, None], predicted)).tolist()
        )

    def note_replay(self, verdict: ReplayVerdict) -> None:
        """Keeps how far the replay was proven to be the model."""
        note_replay(self._place, self._group, verdict)

    def begin(self, block: int) -> None:
        """The block that the next states are of.

        Raises:
            RepsimError: another writer has taken the store over.
        """
        with one_line_errors(self._place):
            self._lock.check()
        self._block = block

    def write(
        self, node: int, hidden: NDArray[Any], logprob: NDArray[np.float32] | None = None
    ) -> None:
        """One node's states for the block under way; they reach the disk with their neighbours', at
        `flush` at last.

        Args:
            node: index in the trie.
            hidden: `[token, unit]`, of the store's dtype.
            logprob: `[token]`, or None where the node ends no plan.
        Raises:
            RepsimError: shape or dtype are not the store's, or the disk is full.
        """
        first, last = self._layout.token_starts[self._block : self._block + 2]
        expected = (int(last - first), self._layout.units)
        if hidden.shape != expected or hidden.dtype != self._layout.dtype:
            raise StoreError(
                f"states {hidden.dtype}{list(hidden.shape)} do not fit block {self._block} of {self._place}: "
                f"{self._layout.dtype}{list(expected)}"
            )
        if logprob is not None and (
            logprob.shape != hidden.shape[:1] or logprob.dtype != np.float32
        ):
            found = f"{logprob.dtype}{list(logprob.shape)}"
            raise StoreError(
                f"log-probabilities {found} do not fit float32[{len(hidden)}] in {self._place}"
            )
        if self._waiting and node != self._waiting[-1][0] + 1:
            self.flush()
        self._waiting.append((node, hidden, logprob))
        if sum(states.nbytes for _, states, _ in self._waiting) >= WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the waiting nodes, which are neighbours, in one call: zarr writes their chunks
        side by side.
        """
        if not self._waiting:
            return
        nodes = [node for node, _, _ in self._waiting]
        first, last = self._layout.token_starts[self._block : self._block + 2]
        with one_line_errors(self._place, advice=GO_ON):
            self._put(nodes[0], first, [hidden for _, hidden, _ in self._waiting])
            for node, _, logprob in self._waiting:
                if logprob is not None:
                    self._logprob[node, first:last] = logprob
        self._waiting.clear()
        self._finish(nodes)

    def finish(self) -> None:
        """Everything given so far is on disk and declared finished when this returns."""
        self.flush()
        self._mark()

    def _put(self, node: int, first: int, states: list[NDArray[Any]]) -> None:
        """States of neighbouring nodes from the token `first` on; whole chunks past zarr where that
        is faster.
        """
        if self._chunks is None:
            self._hidden[node : node + len(states), first : first + len(states[0])] = np.stack(
                states
            )
            return
        size, last = self._hidden.chunks[1], first + len(states[0])
        begin, end = -(-first // size), last // size  # chunks that are whole
        edges = {(first, min(begin * size, last)), (max(end * size, first), last)}
        for left, right in edges:
            if left < right:
                piece = np.stack([hidden[left - first : right - first] for hidden in states])
                self._hidden[node : node + len(states), left:right] = piece
        self._chunks.put(
            [
                (
                    chunk_path(self._place, self._hidden, node + row, chunk),
                    hidden[chunk * size - first :][:size],
                )
                for row, hidden in enumerate(states)
                for chunk in range(begin, end)
            ]
        )

    def write_statistics(
        self,
        plan: int,
        values: Mapping[str, NDArray[np.float64]],
        logprob: NDArray[np.float32] | None = None,
    ) -> None:
        """One plan's statistics of the block under way: name → `[sample, value]`, and `[token]`
        log-probabilities.
        """
        first, last = self._layout.sample_starts[self._block : self._block + 2]
        node = self._layout.trie.ends[plan]
        with one_line_errors(self._place, advice=GO_ON):
            for name, array in values.items():
                self._statistics[name][plan, first:last, : array.shape[1]] = array
            if logprob is not None:
                first, last = self._layout.token_starts[self._block : self._block + 2]
                self._logprob[node, first:last] = logprob
        self._finish([node])

    def _finish(self, nodes: Sequence[int]) -> None:
        """Takes the block under way for finished at these nodes, on disk within a second of work."""
        self.done[nodes, self._block] = True
        if self.predicted is not None:
            self.predicted[
                [node for node in nodes if node in self._layout.trie.ends], self._block
            ] = True
        self._unmarked.update(nodes)
        if time.monotonic() - self._marked > MARK_SECONDS:
            self._mark()

    def _mark(self) -> None:
        rows, columns = self._done.chunks
        left = self._block // columns * columns
        with one_line_errors(self._place, advice=GO_ON):
            for top in sorted({node // rows * rows for node in self._unmarked}):
                # A whole chunk: nothing is read.
                piece = slice(top, top + rows), slice(left, left + columns)
                self._done[piece] = self.done[piece]
                if self.predicted is not None:
                    self._predicted[piece] = self.predicted[piece]
        self._unmarked.clear()
        self._marked = time.monotonic()


def missing_in(
    layout: Layout, done: NDArray[np.bool_], predicted: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """What is yet to be computed, `[node, block]`.

    Args:
        layout: what there is to be.
        done: whose states, or statistics, are finished, `[node, block]`.
        predicted: whose log-probabilities are, likewise; None where there are none, or where `done`
            says it of both.
    """
    missing = layout.wanted[:, None] & ~done
    if predicted is not None:
        ends = list(layout.trie.ends)
        missing[ends] |= ~predicted[ends]
    return missing


def note_replay(place: Location, group: zarr.Group, verdict: ReplayVerdict) -> None:
    """Keeps how far the replay was proven, with what earlier runs have proven."""
    before = verdict_in(group.attrs)
    if (merged := before.merged(verdict)) != before:
        with one_line_errors(place, advice=GO_ON):
            put_attributes(group, {REPLAY: {"error": merged.error, "kinds": list(merged.kinds)}})


def verdict_in(attributes: Mapping[str, Any]) -> ReplayVerdict:
    """What a store's attributes say of the replay; that nothing was proven where they have no word
    of it.
    """
    kept = attributes.get(REPLAY, {"error": 0.0, "kinds": ()})
    return ReplayVerdict(kept["error"], tuple(kept["kinds"]))


def prepare(place: Location, layout: Layout, lock: WriterLock) -> Writer:
    """A writer for a store that is new, or that holds a part of the layout already and grows.

    Raises:
        RepsimError: it cannot be written, or is of a schema that is only read.
    """
    with one_line_errors(place):
        group = open_or_create(place)
        attributes = group.attrs.asdict()
        same = all(attributes.get(name) == value for name, value in _attributes(layout).items())
        # an extension may have been cut short, and now another layout, or the one before, is asked
        # for
        if not same or is_growing(attributes):
            write_frame(place, group, layout)
        return Writer(place, group, layout, lock)


def open_or_create(place: Location) -> zarr.Group:
    """The store's group for writing; made, without what was left of an earlier start, where there
    is none.

    Raises:
        RepsimError: it is of a schema that is only read.
    """
    if exists(place):
        check_current(place)
        return zarr.open_group(place.zarr, mode="r+", zarr_format=3)
    # Last: without it the rest would be a stranger's.
    for key in sorted(place.sizes(), key=ROOT.__eq__):
        if key != LOCK_KEY:
            place.delete(key)
    return zarr.create_group(
        place.zarr, attributes={SCHEMA_ATTRIBUTE: SCHEMA_VERSION}, zarr_format=3
    )


def check_current(place: Location) -> None:
    """Refuses to change a store of an older schema.

    Raises:
        RepsimError: it is of a schema that is only read.
    """
    schema = read_attributes(place)[SCHEMA_ATTRIBUTE]
    if schema != SCHEMA_VERSION:
        raise StoreError(
            f"{place}: made with schema {schema}, which this repsim reads and does not change; "
            "choose another --out, or go on with the repsim that made it"
        )


def exists(place: Location) -> bool:
    """Whether a store is there; one that was stopped while it was made is not.

    Raises:
        RepsimError: something else is there.
    """
    with one_line_errors(place, "cannot be read", CHECK_ADDRESS):
        data = place.read(ROOT)
        if data is None and not place.sample_keys() - {LOCK_KEY}:
            return False
        try:
            half_made = json.loads(data or b"")["attributes"] == {SCHEMA_ATTRIBUTE: SCHEMA_VERSION}
        except (ValueError, KeyError, TypeError):
            half_made = False
        if half_made:
            return False
        read_attributes(place)
    return True


def write_frame(place: Location, group: zarr.Group, layout: Layout) -> None:
    """Everything but what blocks fill, and the arrays they fill in the right sizes; the attributes
    come last.
    """
    described = coordinates(layout)
    extent, chunk = layout.extent, layout.chunk_tokens
    widths = layout.widths(extent[STATE])
    flags = {"done": np.zeros((len(layout.trie), len(layout.blocks)), bool)}
    if layout.logprobs and layout.keep:
        flags["predicted"] = flags["done"]
    names = [*map(str, described.variables), *flags, *(f"{STATISTICS}/{name}" for name in widths)]
    names += ["hidden"] * layout.keep + ["logprob"] * layout.logprobs
    grow(place, group, {name: extent for name in names if name in group})
    for name, variable in described.variables.items():
        dims = tuple(map(str, variable.dims))
        create_or_resize(group, str(name), dims, variable.shape, variable.dtype)[...] = (
            variable.values
        )
    for name, empty in flags.items():
        array = create_or_resize(
            group, name, (NODE, BLOCK), empty.shape, bool, tuple(DONE_CHUNKS.values())
        )
        array[...] = array[...]  # every chunk is there, and can be missed
    if layout.keep:
        sizes, chunks = (extent[NODE], extent[TOKEN], layout.units), (1, chunk, layout.units)
        codecs = _codecs(layout.compression, np.dtype(layout.dtype).itemsize)
        create_or_resize(group, "hidden", (NODE, TOKEN, UNIT), sizes, layout.dtype, chunks, codecs)
    if layout.logprobs:
        about = {
            "units": "nat",
            "long_name": "log-probability of the next token; NaN where a sample has none",
        }
        tokens = extent[NODE], extent[TOKEN]
        create_or_resize(
            group, "logprob", (NODE, TOKEN), tokens, "float32", (1, chunk), (Crc32cCodec(),), about
        )
    for part in (RESULTS, *([STATISTICS] if layout.statistics else [])):
        group.require_group(part)
    for name, width in widths.items():
        chunks = (1, max(1, STATISTIC_BYTES // (8 * width)), width)
        shape = (extent[PLAN], extent[SAMPLE], width)
        create_or_resize(
            group, f"{STATISTICS}/{name}", (PLAN, SAMPLE, name), shape, "float64", chunks
        )
    # As xarray notes them.
    names_of_coordinates = [str(name) for name in described.coords if name != PLAN]
    put_attributes(
        group,
        {
            **_attributes(layout),
            "coordinates": " ".join([*names_of_coordinates, *flags]),
            "arrays": array_digests(place, names),
        },
    )


def _attributes(layout: Layout) -> dict[str, Any]:
    return {
        SCHEMA_ATTRIBUTE: SCHEMA_VERSION,
        "kind": CAPTURE,
        "layers": layout.layers,
        "units": layout.units,
        "identity": layout.identity.to_dict(),
        "dtype": layout.dtype,
        "keep": "all" if layout.keep else "none",
        "statistics": [statistic.name for statistic in layout.statistics],
        "compression": layout.compression,
        "requests": [dict(request) for request in layout.requests],
        "batches": str(layout.company),
        "nonfinite": layout.nonfinite,
        "extent": layout.extent,
    }


def coordinates(layout: Layout) -> xr.Dataset:
    """Plans, trie, tokens and samples."""
    trie, samples, plans = layout.trie, layout.samples, layout.plans
    path = np.full((len(plans), trie.depth + 1), -1, np.int64)
    for row, nodes in zip(path, trie.paths, strict=True):
        row[: len(nodes)] = nodes
    kept = list(map(len, layout.positions))
    # position -1 is a sample's mean and no token's; token_ids[-1] would be the last one's
    ids = [
        np.where(at < 0, -1, sample.token_ids[at])
        for sample, at in zip(samples, layout.positions, strict=True)
    ]
    strings = np.dtypes.StringDType()
    coords: Mapping[str, Any] = {
        PLAN: (PLAN, np.array([named.plan.text for named in plans], strings)),
        "plan_name": (PLAN, np.array([named.name for named in plans], strings)),
        "plan_digest": (PLAN, np.array([named.plan.digest for named in plans], strings)),
        "parent": (NODE, np.array(trie.parents, np.int64)),
        "step_text": (
            NODE,
            np.array(["embed" if step is None else step.text for step in trie.steps], strings),
        ),
        "token_id": (TOKEN, np.concatenate(ids).astype(np.int32)),
        "position": (TOKEN, np.concatenate(layout.positions)),
        "sample": (TOKEN, np.repeat(np.arange(len(samples), dtype=np.int64), kept)),
        "sample_key": (SAMPLE, np.array([sample.key for sample in samples], strings)),
        "length": (SAMPLE, np.array([len(sample) for sample in samples], np.int64)),
        "block": (SAMPLE, np.repeat(np.arange(len(layout.blocks), dtype=np.int64), layout.blocks)),
    }
    return xr.Dataset({"path": ((PLAN, STATE), path)}, coords)


def create_or_resize(
    group: zarr.Group,
    name: str,
    dims: Sequence[str],
    shape: Sequence[int],
    dtype: Any,
    chunks: Sequence[int] | None = None,
    codecs: Sequence[Any] = (ZstdCodec(level=1), Crc32cCodec()),
    attributes: Mapping[str, Any] | None = None,
    empty: Any = None,
) -> Any:
    """An array of this shape, made if it is not there; `empty`, else NaN or nothing, where it has
    not been written.
    """
    if name in group:
        array: Any = group[name]
    else:
        array = group.create_array(
            name,
            shape=tuple(shape),
            chunks=tuple(chunks or [CHUNKS[dim] for dim in dims]),
            dtype=dtype,
            fill_value=np.nan if empty is None and np.issubdtype(dtype, np.floating) else empty,
            compressors=tuple(codecs),
            dimension_names=tuple(dims),
            attributes=dict(attributes or {}),
        )
    return array.with_config(KEEP_WHOLE)


def _codecs(compression: str, itemsize: int) -> tuple[Any, ...]:
    """How states are packed; benchmarks/RESULTS.md has what was tried."""
    if compression == "none":
        return (Crc32cCodec(),)
    if compression == "fast":
        return ZstdCodec(level=1), Crc32cCodec()
    return BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=itemsize), Crc32cCodec()


def writable(group: zarr.Group, name: str) -> Any:
    array: Any = group.get(name)
    return None if array is None else array.with_config(KEEP_WHOLE)  # forgotten since it was made


def open_dataset(place: Location) -> xr.Dataset:
    """A store as xarray reads it, lazily; what counts of it when it is opened.

    Raises:
        RepsimError: nothing is there, it is not a capture, it is of another schema, or what
            describes it is damaged.
    """
    return dataset_of(StoreGroup.open(place))


def dataset_of(group: StoreGroup) -> xr.Dataset:
    """An open store as xarray reads it, lazily.

    Raises:
        StoreDamaged: what says what is finished is damaged.
    """
    dataset = group.dataset()
    if not group.holds_scores:
        blocks = FinishedBlocks(dataset)

        def expected(name: str, chunk: tuple[int, ...]) -> bool:
            length = group.arrays[name]["chunk_grid"]["configuration"]["chunk_shape"][1]
            return bool((blocks.of(name, chunk[0]) & blocks.touched(name, chunk[1], length)).any())

        group.expect(expected)
    return dataset


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
        """Which blocks of a row are there, `[block]`; none of log-probabilities where no plan ends."""
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


def iter_samples(
    group: StoreGroup, dataset: xr.Dataset, nodes: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[list[NDArray[Any]]]:
    """States of the samples that end in each chunk of tokens, read ahead into memory that is used
    again.

    Args:
        group: the open store.
        dataset: as xarray reads it.
        nodes: indices, `[node]`, each once.
        ends: where each sample ends, `[sample]`; the first begins at token 0.
    Yields:
        `[node, token, unit]` for each sample, in order; valid until the next but one list is asked
        for.
    Raises:
        RepsimError: a chunk cannot be read, or is damaged.
    """
    if not len(ends):
        return
    place, root = group.place, group.zarr
    array: Any = root["hidden"]
    size, units = array.chunks[1:]
    starts, tokens = np.concatenate([[0], ends[:-1]]), int(ends[-1])
    # chunks at hand: the next, this one, the one before, and as far back as a sample reaches
    ring = 3 + -(-int((ends - starts).max()) // size)
    room = np.empty((len(nodes), ring * size, units), array.dtype)
    files = (
        ChunkFiles(place)
        if isinstance(place, LocalFolder) and dataset.attrs["compression"] == "none"
        else None
    )

    def read(chunk: int) -> None:
        rows = room[:, chunk % ring * size :][:, :size]
        with one_line_errors(place, "cannot be read", VERIFY):
            try:
                if files is not None:
                    paths = [chunk_path(place, array, node, chunk) for node in nodes]
                    files.get(
                        [
                            (path, row.reshape(-1).view(np.uint8))
                            for path, row in zip(paths, rows, strict=True)
                        ]
                    )
                else:
                    length = min(size, tokens - chunk * size)
                    rows[:, :length] = array.oindex[nodes, chunk * size : chunk * size + length]
            except ValueError as problem:
                raise StoreError(
                    f"{place}: a chunk of hidden is damaged ({problem}); {VERIFY}"
                ) from None

    def sample(first: int, last: int) -> NDArray[Any]:
        begin = first % (ring * size)
        found = room[:, begin : begin + last - first]
        missing = last - first - found.shape[1]
        return np.concatenate([found, room[:, :missing]], axis=1) if missing else found

    with ThreadPoolExecutor(1, "repsim-read") as ahead:
        coming = ahead.submit(read, 0)
        for chunk in range(-(-tokens // size)):
            coming.result()
            if (chunk + 1) * size < tokens:
                coming = ahead.submit(read, chunk + 1)
            here = (ends > chunk * size) & (ends <= (chunk + 1) * size)
            yield [
                sample(int(first), int(last))
                for first, last in zip(starts[here], ends[here], strict=True)
            ]


def chunk_path(place: Location, array: zarr.Array[Any], node: int, chunk: int) -> Path:
    """Where a chunk of states lies on a local disk."""
    assert isinstance(place, LocalFolder)
    return place.path / "hidden" / array.metadata.encode_chunk_key((int(node), chunk, 0))


def read_statistic(group: StoreGroup, name: str, plan: int, samples: slice) -> NDArray[np.float64]:
    """One plan's values of a statistic, `[sample, value]`; NaN past the plan's own."""
    root = group.zarr
    array: Any = root[f"{STATISTICS}/{name}"]
    return np.asarray(array[plan, samples])


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
