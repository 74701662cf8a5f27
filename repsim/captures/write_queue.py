"""The way of a state from the device that computed it to the store: tokens that are kept, dtype,
host, disk.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.captures.host_buffers import Arrival, HostBuffers, HostCopies, bytes_together, views_in
from repsim.captures.path_statistics import PathStatistics, are_made_on
from repsim.errors import Interrupted, ModelError, RepsimError, StoreError
from repsim.models import Model
from repsim.models.tracing import NodeState
from repsim.storage.local_folder import LocalFolder
from repsim.storage.location import Location
from repsim.storage.state_store import Layout
from repsim.storage.state_writer import Writer

WRITERS = 8  # threads; each mostly waits for the disk or the network
WAITING_STATES = 16  # on the way to the disk before the computation waits
BUFFER_BYTES = 2 << 30  # of the host's memory that these pass through
ALWAYS_BESIDE = False  # set by tests, so that the threads run without a GPU


def goes_beside(device_type: str, location: Location) -> bool:
    """Whether states are written beside the computation, by threads.

    On a CPU the computation needs every core, and a thread that takes one away costs more than it
    saves (benchmarks/RESULTS.md), so a folder is written to in between.

    Args:
        device_type: of the model, as torch names it.
        location: the store's.
    """
    return ALWAYS_BESIDE or device_type != "cpu" or not isinstance(location, LocalFolder)


class WriteQueue:
    """Work that goes on beside the computation, on threads of its own; a bounded queue leads to
    them.

    Work on one node is done in order, by one thread. When the queue is left, what was put into it
    is on disk and declared finished; after an error, that of earlier blocks is.

    buffers: the memory that states pass through; None where they need none.
    copies: what brings them there.
    """

    def __init__(
        self, writer: Writer, *, threads: int = 0, buffers: HostBuffers | None = None
    ) -> None:
        """Args: `threads`, 0 does all work at once, on the calling thread."""
        self._writer, self.buffers, self.copies = writer, buffers, HostCopies()
        self._pools = [ThreadPoolExecutor(1, f"repsim-writer-{row}") for row in range(threads)]
        self._waiting: list[Future[None]] = []

    @classmethod
    def beside(cls, model: Model, layout: Layout, writer: Writer) -> WriteQueue:
        """A queue with threads, and buffers for the largest of the layout's blocks.

        The writer must be one for several threads.
        """
        buffers = None
        # Statistics keep the states of a whole path, so these do not pass through.
        if layout.keep:
            tokens = int(np.diff(layout.token_starts).max())
            itemsize = np.dtype(layout.dtype).itemsize
            nbytes = bytes_together([tokens * layout.units * itemsize, 8, tokens * 4])
            most = max(2, min(WAITING_STATES, BUFFER_BYTES // nbytes))
            buffers = HostBuffers(most, nbytes, pinned=model.device.type == "cuda")
        return cls(writer, threads=WRITERS, buffers=buffers)

    def __enter__(self) -> WriteQueue:
        return self

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        try:
            if problem is None:
                self.finish()
            elif isinstance(problem, Exception) and not isinstance(
                problem, (Interrupted, StoreError)
            ):
                self._finish_earlier_blocks()
        finally:
            for pool in self._pools:
                pool.shutdown(wait=False, cancel_futures=True)
            for pool in self._pools:
                pool.shutdown()

    def put(self, work: Callable[[], None], node: int = 0) -> None:
        """Work on a node. Raises what earlier work raised."""
        if not self._pools:
            work()
            return
        while self._settle() >= WAITING_STATES:
            wait(self._waiting, return_when=FIRST_COMPLETED)
        self._waiting.append(self._pools[node % len(self._pools)].submit(work))

    def end_block(self) -> None:
        """A block has been put. With threads nothing is waited for: it is written, and declared
        finished, while the next one is computed.
        """
        if not self._pools:
            self._writer.end_block()

    def drain(self) -> None:
        """Waits for everything; raises what it raised first."""
        while self._waiting:
            self._waiting.pop(0).result()

    def finish(self) -> None:
        """Returns once everything that was put is on disk; raises what it raised."""
        self.drain()
        for node in self._writer.held_nodes:
            self.put(partial(self._writer.release, node), node)
        self.drain()
        self._writer.finish()

    def _settle(self) -> int:
        """Forgets work that is done, or raises what the first that failed raised; how much
        waits.
        """
        done = [work.done() for work in self._waiting]
        if any(
            is_done and work.exception() for work, is_done in zip(self._waiting, done, strict=True)
        ):
            self.drain()
        self._waiting = [
            work for work, is_done in zip(self._waiting, done, strict=True) if not is_done
        ]
        return len(self._waiting)

    def _finish_earlier_blocks(self) -> None:
        """Writes what is finished, unless writing has failed; the error that came first is the one
        to be read.
        """
        wait(self._waiting)
        if not any(isinstance(work.exception(), StoreError) for work in self._waiting):
            with suppress(RepsimError):
                self._writer.finish_earlier_blocks()


def _mean_of_predicted(logprob: Tensor, _dim: int) -> Tensor:
    """A sample's mean; its last token predicts nothing, and any other that is no number shows."""
    return logprob[:-1].mean(0)


@dataclass(frozen=True)
class _TakenState:
    """A state of a node on its way to the disk.

    node: index in the trie.
    computed: name of the dtype that it was computed in.
    states: `[kept, unit]`, on the host unless its statistics are made where it is.
    bounds: its least and its greatest value, float32.
    logprob: `[kept]`, float32; None where the node ends no plan.
    statistics: of the plan that ends here, by name; None where they are yet to be made.
    arrival: what tells when all this is on the host.
    buffer: the memory it is in; None where that is its own.
    """

    node: int
    computed: str
    states: Tensor
    bounds: Tensor
    logprob: Tensor | None
    statistics: dict[str, Tensor] | None
    arrival: Arrival
    buffer: Tensor | None


class StateSink:
    """Takes one block's node states to the store, in its dtype and with the tokens it keeps."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        writer: Writer,
        queue: WriteQueue,
        block: int,
        pending: frozenset[int],
        allow_nonfinite: bool,
    ) -> None:
        self._layout, self._writer, self._queue, self._block = layout, writer, queue, block
        self._pending, self._allow = pending, allow_nonfinite
        first, last = layout.sample_starts[block : block + 2]
        self._lengths = [len(sample) for sample in layout.samples[first:last]]
        positions = layout.positions[first:last]
        self._kept_lengths = list(map(len, positions))
        starts = np.cumsum((0, *self._lengths[:-1]))
        self._index: Tensor | None = None
        if layout.identity.tokens not in ("all", "mean"):
            index = np.concatenate(
                [start + at for start, at in zip(starts, positions, strict=True)]
            )
            self._index = torch.from_numpy(index)
        self._dtype = getattr(torch, layout.dtype)
        self._path = PathStatistics(layout.trie.parents, layout.statistics, self._kept_lengths)
        self._plans = {end: plan for plan, end in enumerate(layout.trie.ends)}
        self.taken = 0

    def take(self, state: NodeState) -> None:
        """Starts a state on its way; what is wrong with it, or with one before it, is raised."""
        hidden = self._kept(state.hidden, torch.mean)
        logprob = None if state.logprob is None else self._kept(state.logprob, _mean_of_predicted)
        # Least and greatest value only: ten times faster than asking every one, and a NaN is both.
        bounds = torch.stack(torch.aminmax(hidden)).to(torch.float32)
        are_made_here = not self._layout.keep and are_made_on(hidden.device)
        is_narrow = are_made_here and self._holds(hidden.dtype)
        stored, statistics = hidden if is_narrow else hidden.to(self._dtype), None
        if are_made_here:
            # Only the statistics leave the device.
            self._path.add(state.node, stored)
            statistics = self._path.take() if state.node in self._pending else {}
        # What leaves the device goes together, and is put into its places again on the host.
        leaving = [stored] if statistics is None else list(statistics.values())
        scores = [] if logprob is None else [logprob.to(torch.float32)]
        host, arrival, buffer = self._to_host([*leaving, bounds, *scores])
        taken = _TakenState(
            state.node,
            str(state.hidden.dtype).removeprefix("torch."),
            stored if statistics is not None else host[0],
            host[len(leaving)],
            host[-1] if scores else None,
            None if statistics is None else dict(zip(statistics, host, strict=False)),
            arrival,
            buffer,
        )
        # Statistics need a path's states in their order.
        self._queue.put(partial(self._write, taken), state.node if self._layout.keep else 0)
        self.taken += state.node in self._pending

    def finish(self) -> None:
        """Returns once everything taken is on disk."""
        self._queue.finish()

    def _kept(self, values: Tensor, mean: Callable[..., Tensor]) -> Tensor:
        """`[token, ...]` of the tokens that the store keeps, which may be the mean of each
        sample's.
        """
        # Not by scatter: its order, and so its rounding, varies on a GPU.
        if self._layout.identity.tokens == "mean":
            parts = values.to(torch.float32).split(self._lengths)  # type: ignore[no-untyped-call]
            return torch.stack([mean(part, 0) for part in parts])
        return (
            values if self._index is None else values.index_select(0, self._index.to(values.device))
        )

    def _to_host(self, values: list[Tensor]) -> tuple[list[Tensor], Arrival, Tensor | None]:
        """Values on the host, what tells when they have arrived there, and the buffer that they
        are in, if any.
        """
        if self._queue.buffers is not None:
            buffer = self._queue.buffers.take()
            host = views_in(buffer, values)
            return host, self._queue.copies.copy(values, host), buffer
        if all(value.device.type == "cpu" for value in values):
            return values, Arrival(()), None
        host = [
            torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
            for value in values
        ]
        return host, self._queue.copies.copy(values, host), None

    def _holds(self, computed: torch.dtype) -> bool:
        """Whether the store's dtype has every value of a narrower one, in which products are faster
        on a graphics card.
        """
        return self._dtype == torch.float32 and computed in (torch.float16, torch.bfloat16)

    def _write(self, taken: _TakenState) -> None:
        """Writes a state that has arrived, or is about to, and lets go of its buffer."""
        try:
            taken.arrival.wait()
            bounds = taken.bounds
            if not self._allow and not bounds.to(self._dtype).isfinite().all():
                stored = taken.states.to(self._dtype).cpu().numpy()
                raise ModelError(
                    self._overflow_message(taken.node, stored, bounds.numpy(), taken.computed)
                )
            self._write_arrived(taken)
        finally:
            if taken.buffer is not None and self._queue.buffers is not None:
                self._queue.buffers.give_back(taken.buffer)

    def _write_arrived(self, taken: _TakenState) -> None:
        node, statistics = taken.node, taken.statistics
        scores = None if taken.logprob is None else taken.logprob.numpy()
        if self._layout.keep:
            self._writer.write(node, taken.states.numpy(), scores, self._block)
            return
        if statistics is None:
            self._path.add(node, taken.states)
            statistics = self._path.take() if node in self._pending else {}
        if node in self._pending:
            values = {name: value.numpy() for name, value in statistics.items()}
            self._writer.write_statistics(self._plans[node], values, scores, self._block)

    def _overflow_message(
        self, node: int, stored: NDArray[Any], bounds: NDArray[Any], computed: str
    ) -> str:
        """Where a value does not fit the store, and what to do; the block is given up."""
        self._writer.give_up(self._block)
        token = int(np.flatnonzero(~np.isfinite(stored).all(-1))[0])
        layout = self._layout
        ends = np.cumsum(list(map(len, layout.positions)))
        sample = int(np.searchsorted(ends, layout.token_starts[self._block] + token, side="right"))
        plan = next(i for i, nodes in enumerate(layout.trie.paths) if node in nodes)
        place = (
            f"plan {layout.plans[plan].name}, state {layout.trie.paths[plan].index(node)}, "
            f"sample {layout.samples[sample].key}"
        )
        if np.isfinite(bounds).all():
            largest = np.abs(bounds).max()
            # A store has one dtype, so what is finished in it cannot go on in another.
            is_begun = self._writer.is_begun_before(self._block)
            elsewhere = " and another --out," if is_begun else ""
            return (
                f"{place}: {largest:.0f} does not fit {layout.dtype}; use --dtype float32"
                f"{elsewhere} or --allow-nonfinite"
            )
        return (
            f"{place}: not finite in {computed}; use another --model-dtype or plan, or "
            "--allow-nonfinite"
        )
