"""Puts a capture's blocks into its store, and declares them finished once they are there.

States come node by node. Where a store keeps few tokens of each block, or where several threads
write, they are gathered over blocks until they fill a chunk, so that no chunk is read, changed and
written again for every block. The layout says what a store is to hold; this module takes arrays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from repsim.errors import StoreError
from repsim.storage.direct_io import ChunkFiles
from repsim.storage.finished_blocks import STATISTICS
from repsim.storage.frame import GO_ON, StoreWriter, open_for_writing, writable
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import Location, one_line_errors
from repsim.storage.lock import WriterLock
from repsim.storage.prefetch import chunk_path
from repsim.storage.state_store import Layout
from repsim.storage.token_runs import TokenRun

WRITE_BYTES = 16 << 20  # of states that are written together
MARK_SECONDS = 1.0  # of work that a kill may cost beside what is in memory
HELD_BYTES = 512 << 20  # of states in memory that wait for the rest of their chunk
HELD_SECONDS = 20.0  # that they wait at most: work that a kill may cost


class Writer(StoreWriter):
    """Puts blocks into a store; `prepare` makes one.

    Invariants: a block is declared finished at a node only after all that it holds there was
    written, and never after a write has failed; of one node, at most one run of tokens is held,
    and it ends where the node's last block ended.

    done: `[node, block]`, what is finished.
    """

    def __init__(
        self, place: Location, group: zarr.Group, layout: Layout, lock: WriterLock, threads: bool
    ) -> None:
        super().__init__(place, group, lock)
        self._layout, self._threads = layout, threads
        self._ends = frozenset(layout.trie.ends)
        self._hidden, self._logprob = writable(group, "hidden"), writable(group, "logprob")
        self._statistics = {
            item.name: writable(group, f"{STATISTICS}/{item.name}") for item in layout.statistics
        }
        self._done, self._predicted = writable(group, "done"), writable(group, "predicted")
        is_plain = isinstance(place, LocalFolder) and layout.compression == "none"
        # Threads that write for different nodes need no more threads for the chunks of each.
        self._chunks = (
            ChunkFiles(place, **({"threads": 1} if threads else {}))
            if is_plain and isinstance(place, LocalFolder)
            else None
        )
        self.done: NDArray[np.bool_] = np.asarray(self._done[:])
        self.predicted = None if self._predicted is None else np.asarray(self._predicted[:])
        # What is on its way: runs whose chunk is not full, by node, and neighbouring nodes that
        # wait for each other.
        self._gathers = threads or layout.identity.tokens != "all"
        self._held: dict[int, TokenRun] = {}
        self._held_bytes = 0
        self._waiting: list[tuple[int, TokenRun]] = []
        # What is finished, and which chunks of flags do not say so yet. Several threads change it.
        self._flags = threading.RLock()
        self._unmarked: set[tuple[int, int]] = set()  # of `done`, by their first node and block
        self._unpredicted: set[tuple[int, int]] = set()  # of `predicted`
        self._marked = time.monotonic()
        self._block, self._first_block = 0, len(layout.blocks)
        self._given_up, self._has_failed = len(layout.blocks), False

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
        """The block that the next states are of; blocks come in order.

        Raises:
            RepsimError: another writer has taken the store over.
        """
        with one_line_errors(self._place):
            self._lock.check()
        self._block, self._first_block = block, min(self._first_block, block)

    def write(
        self,
        node: int,
        hidden: NDArray[Any],
        logprob: NDArray[np.float32] | None = None,
        block: int | None = None,
    ) -> None:
        """One node's states for a block; they reach the disk with their neighbours', at `finish`
        at last.

        With `threads`, several may write at the same time, each for nodes of its own, and the
        arrays may be reused as soon as this returns.

        Args:
            node: index in the trie.
            hidden: `[token, unit]`, of the store's dtype.
            logprob: `[token]`, or None where the node ends no plan.
            block: whose states they are; by default the one under way.
        Raises:
            RepsimError: shape or dtype are not the store's, or the disk is full.
        """
        block = self._block if block is None else block
        first, last = map(int, self._layout.token_starts[block : block + 2])
        expected = (last - first, self._layout.units)
        if hidden.shape != expected or hidden.dtype != self._layout.dtype:
            raise StoreError(
                f"states {hidden.dtype}{list(hidden.shape)} do not fit block {block} of "
                f"{self._place}: {self._layout.dtype}{list(expected)}"
            )
        if logprob is not None and (
            logprob.shape != hidden.shape[:1] or logprob.dtype != np.float32
        ):
            found = f"{logprob.dtype}{list(logprob.shape)}"
            raise StoreError(
                f"log-probabilities {found} do not fit float32[{len(hidden)}] in {self._place}"
            )
        scores = None if logprob is None else (logprob,)
        run = TokenRun(first, (hidden,), scores, ((block, last),), time.monotonic())
        for ready in self._gather(node, run) if self._gathers else (run,):
            self._hand_on(node, ready)

    def finish(self) -> None:
        """Everything given so far is on disk and declared finished when this returns."""
        for node in self.held_nodes:
            self.release(node)
        self.end_block()

    def end_block(self) -> None:
        """The same, but for tokens whose chunk is not full, which are still held."""
        self.flush()
        with self._flags:
            self._mark()

    def flush(self) -> None:
        """Writes the waiting nodes, which are neighbours, in one call: zarr writes their chunks
        side by side.
        """
        waiting, self._waiting = self._waiting, []
        self._write(waiting)

    # After an error

    def give_up(self, block: int) -> None:
        """From this block on, nothing more is declared finished.

        A block that was begun keeps its samples for ever, so one that ran out of memory, or whose
        states do not fit the store, is better not begun.
        """
        with self._flags:
            self._given_up = min(self._given_up, block)

    def is_begun_before(self, block: int) -> bool:
        """Whether the store holds anything, or will once the blocks before this one are written."""
        return bool(self.done.any()) or self._first_block < block

    def finish_earlier_blocks(self) -> None:
        """As `finish`, of all blocks before the one under way and before any that was given up."""
        self.give_up(self._block)
        given_up = self._given_up
        end = int(self._layout.token_starts[given_up])
        with self._flags:
            # Those that are marked on disk already stay.
            self.done[:, given_up:] = self._done[:, given_up:]
            if self.predicted is not None:
                self.predicted[:, given_up:] = self._predicted[:, given_up:]
        runs = [*self._waiting, *((node, self._held[node]) for node in self.held_nodes)]
        self._waiting, self._held = [], {}
        for node, run in runs:
            before, _ = run.split(end)
            if before is not None:
                self._hand_on(node, before)
        self.end_block()

    # On the way to the disk

    @property
    def held_nodes(self) -> list[int]:
        """Nodes of which some tokens wait for the rest of their chunk."""
        return sorted(self._held)

    def release(self, node: int) -> None:
        """Hands on what is held of a node, though its chunk is not full."""
        if (run := self._held.pop(node, None)) is not None:
            self._count_held(-run.nbytes)
            self._hand_on(node, run)

    def _gather(self, node: int, piece: TokenRun) -> Iterable[TokenRun]:
        """What is to be written now that a piece has come; the rest is held."""
        held = self._held.pop(node, None)
        if held is not None:
            self._count_held(-held.nbytes)
            if held.last != piece.first:
                yield held
                held = None
        # Full chunks go on, what comes after them waits; so nothing that is held is ever a full
        # chunk, and the piece's beginning is all that is needed to fill one.
        size = self._layout.chunk_tokens
        before, after = piece.split(piece.last // size * size)
        if held is None:
            full, rest = before, after
        elif before is None:
            full, rest = None, held.joined(piece)
        else:
            full, rest = held.joined(before), after
        # Nothing waits at the store's end, for long, or where memory would fill up.
        if rest is not None and (
            rest.last == self._layout.tokens
            or time.monotonic() - rest.since > HELD_SECONDS
            or self._held_bytes + rest.nbytes > HELD_BYTES
        ):
            full, rest = (rest if full is None else full.joined(rest)), None
        if rest is not None:
            self._held[node] = rest.with_own_last_piece()
            self._count_held(rest.nbytes)
        if full is not None:
            yield full

    def _count_held(self, nbytes: int) -> None:
        with self._flags:
            self._held_bytes += nbytes

    def _hand_on(self, node: int, run: TokenRun) -> None:
        """Writes a run, at once or together with its neighbours'."""
        if self._threads:
            self._write([(node, run)])
            return
        if self._waiting:
            before, other = self._waiting[-1]
            is_next = node == before + 1 and other.blocks == run.blocks
            if not is_next or (other.first, other.last) != (run.first, run.last):
                self.flush()
        self._waiting.append((node, run))
        if sum(waiting.nbytes for _, waiting in self._waiting) >= WRITE_BYTES:
            self.flush()

    def _write(self, runs: Sequence[tuple[int, TokenRun]]) -> None:
        """Writes the same tokens of neighbouring nodes, then declares them finished."""
        if not runs:
            return
        nodes = [node for node, _ in runs]
        first, last, blocks = runs[0][1].first, runs[0][1].last, runs[0][1].blocks
        try:
            with one_line_errors(self._place, advice=GO_ON):
                self._put(nodes[0], first, last, [run for _, run in runs])
                for node, run in runs:
                    if run.logprobs is not None:
                        self._logprob[node, first:last] = np.concatenate(run.logprobs)
        except BaseException:
            # The end of a block may be held while its beginning could not be written, so that
            # from here on nothing is known to be whole.
            self._has_failed = True
            raise
        self._finish(nodes, [block for block, _ in blocks])

    def _put(self, node: int, first: int, last: int, runs: Sequence[TokenRun]) -> None:
        """States of neighbouring nodes; whole chunks past zarr where that is faster."""
        if self._chunks is None:
            states = np.stack([run.states_of(first, last) for run in runs])
            self._hidden[node : node + len(runs), first:last] = states
            return
        size = self._hidden.chunks[1]
        begin, end = -(-first // size), last // size  # chunks that are whole
        edges = {(first, min(begin * size, last)), (max(end * size, first), last)}
        for left, right in edges:
            if left < right:
                piece = np.stack([run.states_of(left, right) for run in runs])
                self._hidden[node : node + len(runs), left:right] = piece
        self._chunks.put(
            [
                (
                    chunk_path(self._chunks.place, self._hidden, node + row, chunk),
                    run.states_of(chunk * size, (chunk + 1) * size),
                )
                for row, run in enumerate(runs)
                for chunk in range(begin, end)
            ]
        )

    def write_statistics(
        self,
        plan: int,
        values: Mapping[str, NDArray[np.float64]],
        logprob: NDArray[np.float32] | None = None,
        block: int | None = None,
    ) -> None:
        """One plan's statistics of a block, by default the one under way: name → `[sample,
        value]`, and `[token]` log-probabilities.
        """
        block = self._block if block is None else block
        first, last = self._layout.sample_starts[block : block + 2]
        node = self._layout.trie.ends[plan]
        with one_line_errors(self._place, advice=GO_ON):
            for name, array in values.items():
                self._statistics[name][plan, first:last, : array.shape[1]] = array
            if logprob is not None:
                first, last = self._layout.token_starts[block : block + 2]
                self._logprob[node, first:last] = logprob
        self._finish([node], [block])

    # What is finished

    def _finish(self, nodes: Sequence[int], blocks: Sequence[int]) -> None:
        """Marks blocks finished at these nodes, on disk within a second of work."""
        rows, columns = self._done.chunks
        ends = [node for node in nodes if node in self._ends]
        with self._flags:
            for block in blocks:
                if block >= self._given_up or self._has_failed:
                    continue
                left = block // columns * columns
                self.done[nodes, block] = True
                self._unmarked.update((node // rows * rows, left) for node in nodes)
                if self.predicted is not None:
                    self.predicted[ends, block] = True
                    self._unpredicted.update((node // rows * rows, left) for node in ends)
            if time.monotonic() - self._marked > MARK_SECONDS:
                self._mark()

    def _mark(self) -> None:
        """Writes the chunks of flags that have changed, whole, so that nothing is read."""
        rows, columns = self._done.chunks
        with one_line_errors(self._place, advice=GO_ON):
            for array, flags, changed in (
                (self._done, self.done, self._unmarked),
                (self._predicted, self.predicted, self._unpredicted),
            ):
                for top, left in sorted(changed):
                    assert flags is not None  # nothing changes in flags that are not there
                    piece = slice(top, top + rows), slice(left, left + columns)
                    array[piece] = flags[piece]
                changed.clear()
        self._marked = time.monotonic()


def prepare(place: Location, layout: Layout, lock: WriterLock, *, threads: bool = False) -> Writer:
    """A writer for a capture that is new, or that holds a part of the layout already and grows.

    Args:
        place: the store's.
        layout: what it is to hold.
        lock: held.
        threads: whether several threads write; see `Writer.write`.
    Raises:
        RepsimError: it cannot be written, or is of a schema that is only read.
    """
    return Writer(place, open_for_writing(place, layout), layout, lock, threads)
