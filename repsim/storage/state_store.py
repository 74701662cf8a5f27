"""What is on disk: one zarr v3 group a capture, written block by block, opened by xarray.

`hidden[node, token, unit]` is chunked one node by a run of tokens, so a state, or a run of tokens
at every node, reads in few pieces. `done[node, block]` says which nodes' states of which samples
are there; it is written after them, and anything not marked there is computed again. A chunk that a
block's end falls into is rewritten whole by the next block; both versions hold the finished tokens.
The root's attribute `extent` says how much of the arrays counts, so that a store grows in one step,
whenever the process dies. Every chunk carries a checksum. This module takes arrays; it knows
neither models nor plans' meaning.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from repsim.data.batching import BatchRule
from repsim.data.samples import Sample, TokenRule
from repsim.errors import StoreError
from repsim.plans import PlanTrie
from repsim.schema import (
    BLOCK,
    NODE,
    PLAN,
    SAMPLE,
    SCHEMA_VERSION,
    STATE,
    TOKEN,
    UNIT,
    Kind,
)
from repsim.stats.per_sample import SampleStatistic
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.finished_blocks import STATISTICS
from repsim.storage.frame import (
    GO_ON,
    ArraySpec,
    StoreLayout,
    StoreWriter,
    open_for_writing,
    writable,
)
from repsim.storage.location import LocalFolder, Location, one_line_errors
from repsim.storage.lock import WriterLock
from repsim.storage.metadata import RESULTS, SCHEMA_ATTRIBUTE
from repsim.storage.prefetch import chunk_path

CHUNK_BYTES = 2 << 20  # of float16 states
WRITE_BYTES = 16 << 20  # of states that are written together
STATISTIC_BYTES = 256 << 10  # of a statistic's chunk
DONE_CHUNKS = (1024, 64)  # nodes, blocks: rewritten after every few states, so small
MARK_SECONDS = 1.0  # of work that a kill may cost beside what is in memory


@dataclass(frozen=True)
class Layout(StoreLayout):
    """What a capture is to hold.

    trie: built from the plans in their order.
    samples: in the store's order.
    blocks: how many samples each block takes, in order.
    units: width of a state.
    dtype: of the stored states, `float16` or `float32`.
    logprobs: whether next-token log-probabilities are stored.
    keep: whether states are stored; otherwise only `statistics` are.
    statistics: numbers of each sample and plan.
    compression: of the states, `none`, `fast` or `small`.
    commands: the options of every capture that made it.
    batch_rule: which samples shared a batch when it was computed last, and were padded.
    nonfinite: whether states that are not finite were allowed.
    """

    trie: PlanTrie
    samples: tuple[Sample, ...]
    blocks: tuple[int, ...]
    units: int
    dtype: str
    logprobs: bool = False
    keep: bool = True
    statistics: tuple[SampleStatistic, ...] = ()
    compression: str = "none"
    commands: tuple[Mapping[str, Any], ...] = ()
    batch_rule: BatchRule = BatchRule.ANY
    nonfinite: bool = False

    @cached_property
    def positions(self) -> tuple[NDArray[np.int32], ...]:
        """`[sample]`, positions that are kept of each."""
        rule = TokenRule(self.identity.tokens)
        return tuple(rule.positions(len(sample)) for sample in self.samples)

    @cached_property
    def sample_starts(self) -> NDArray[np.int64]:
        """Index of the first sample of each block, then the number of samples, `[block + 1]`."""
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

    @property
    def groups(self) -> tuple[str, ...]:
        return (RESULTS, *([STATISTICS] if self.statistics else []))

    def coordinates(self) -> xr.Dataset:
        """Plans, trie, tokens and samples."""
        trie, samples, plans = self.trie, self.samples, self.plans
        path = np.full((len(plans), trie.depth + 1), -1, np.int64)
        for row, nodes in zip(path, trie.paths, strict=True):
            row[: len(nodes)] = nodes
        kept = list(map(len, self.positions))
        # Position -1 is a sample's mean and no token's; token_ids[-1] would be the last one's.
        ids = [
            np.where(positions < 0, -1, sample.token_ids[positions])
            for sample, positions in zip(samples, self.positions, strict=True)
        ]
        steps = ["embed" if step is None else step.text for step in trie.steps]
        block = np.repeat(np.arange(len(self.blocks), dtype=np.int64), self.blocks)
        coords: Mapping[str, Any] = {
            PLAN: (PLAN, _texts(named.plan.text for named in plans)),
            "plan_name": (PLAN, _texts(named.name for named in plans)),
            "plan_digest": (PLAN, _texts(named.plan.digest for named in plans)),
            "parent": (NODE, np.array(trie.parents, np.int64)),
            "step_text": (NODE, _texts(steps)),
            "token_id": (TOKEN, np.concatenate(ids).astype(np.int32)),
            "position": (TOKEN, np.concatenate(self.positions)),
            "sample": (TOKEN, np.repeat(np.arange(len(samples), dtype=np.int64), kept)),
            "sample_key": (SAMPLE, _texts(sample.key for sample in samples)),
            "length": (SAMPLE, np.array([len(sample) for sample in samples], np.int64)),
            "block": (SAMPLE, block),
        }
        return xr.Dataset({"path": ((PLAN, STATE), path)}, coords)

    def arrays(self) -> dict[str, ArraySpec]:
        """Flags, states, log-probabilities and statistics."""
        extent, chunk = self.extent, self.chunk_tokens
        nodes, tokens, blocks = extent[NODE], extent[TOKEN], extent[BLOCK]
        flag = ArraySpec((NODE, BLOCK), (nodes, blocks), bool, DONE_CHUNKS, is_flag=True)
        specs = {"done": flag}
        if self.logprobs and self.keep:
            specs["predicted"] = flag
        if self.keep:
            specs["hidden"] = ArraySpec(
                (NODE, TOKEN, UNIT),
                (nodes, tokens, self.units),
                self.dtype,
                (1, chunk, self.units),
                codecs=_codecs(self.compression, np.dtype(self.dtype).itemsize),
            )
        if self.logprobs:
            name = "log-probability of the next token; NaN where a sample has none"
            specs["logprob"] = ArraySpec(
                (NODE, TOKEN),
                (nodes, tokens),
                "float32",
                (1, chunk),
                codecs=(Crc32cCodec(),),
                attributes={"units": "nat", "long_name": name},
            )
        for statistic, width in self.widths(extent[STATE]).items():
            specs[f"{STATISTICS}/{statistic}"] = ArraySpec(
                (PLAN, SAMPLE, statistic),
                (extent[PLAN], extent[SAMPLE], width),
                "float64",
                (1, max(1, STATISTIC_BYTES // (8 * width)), width),
            )
        return specs

    def attributes(self) -> dict[str, Any]:
        return {
            SCHEMA_ATTRIBUTE: SCHEMA_VERSION,
            "kind": Kind.CAPTURE,
            "layers": self.layers,
            "units": self.units,
            "identity": self.identity.to_dict(),
            "dtype": self.dtype,
            "keep": "all" if self.keep else "none",
            "statistics": [statistic.name for statistic in self.statistics],
            "compression": self.compression,
            "requests": [dict(command) for command in self.commands],
            "batches": str(self.batch_rule),
            "nonfinite": self.nonfinite,
            "extent": self.extent,
        }

    def missing(
        self, done: NDArray[np.bool_], predicted: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """What is yet to be computed, `[node, block]`.

        Args:
            done: whose states, or statistics, are finished, `[node, block]`.
            predicted: whose log-probabilities are, likewise; None where there are none, or where
                `done` says it of both.
        """
        missing = self.wanted[:, None] & ~done
        if predicted is not None:
            ends = list(self.trie.ends)
            missing[ends] |= ~predicted[ends]
        return missing


def _texts(values: Iterable[str]) -> NDArray[Any]:
    return np.array(list(values), np.dtypes.StringDType())


def _codecs(compression: str, itemsize: int) -> tuple[Any, ...]:
    """How states are packed; benchmarks/RESULTS.md has what was tried."""
    if compression == "none":
        return (Crc32cCodec(),)
    if compression == "fast":
        return ZstdCodec(level=1), Crc32cCodec()
    return BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=itemsize), Crc32cCodec()


class Writer(StoreWriter):
    """Puts blocks into a store; `prepare` makes one.

    done: `[node, block]`, what is finished.
    """

    def __init__(
        self, place: Location, group: zarr.Group, layout: Layout, lock: WriterLock
    ) -> None:
        super().__init__(place, group, lock)
        self._layout = layout
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

    @property
    def missing(self) -> NDArray[np.bool_]:
        """What is yet to be computed, `[node, block]`."""
        return self._layout.missing(self.done, self.predicted)

    def pending(self, block: int) -> frozenset[int]:
        """Nodes that this block lacks: their states, or log-probabilities of a plan that ends
        there.
        """
        return frozenset(np.flatnonzero(self.missing[:, block]).tolist())

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
                f"states {hidden.dtype}{list(hidden.shape)} do not fit block {self._block} of "
                f"{self._place}: {self._layout.dtype}{list(expected)}"
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
                    chunk_path(self._chunks.place, self._hidden, node + row, chunk),
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
        """Marks the block under way finished at these nodes, on disk within a second of work."""
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


def prepare(place: Location, layout: Layout, lock: WriterLock) -> Writer:
    """A writer for a capture that is new, or that holds a part of the layout already and grows.

    Raises:
        RepsimError: it cannot be written, or is of a schema that is only read.
    """
    return Writer(place, open_for_writing(place, layout), layout, lock)
