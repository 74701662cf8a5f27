"""The way of a state from the device that computed it to the store: tokens that are kept, dtype,
host, disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.captures.path_statistics import PathStatistics, are_made_on
from repsim.errors import ModelError
from repsim.models import Model
from repsim.models.tracing import NodeState
from repsim.storage.state_store import Layout, Writer

WAITING_STATES = 8  # on the way to the disk before the computation waits


class WriteQueue:
    """Work that goes on beside the computation, in order, on a thread of its own; a bounded queue
    leads to it.

    side_by_side: False does the work at once. On a CPU the computation needs every core, and a
        thread that takes one away costs more than it saves (benchmarks/RESULTS.md).
    """

    def __init__(self, side_by_side: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "repsim-writer") if side_by_side else None
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> WriteQueue:
        return self

    def __exit__(self, *_problem: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def put(self, work: Callable[[], None]) -> None:
        """Raises what earlier work raised."""
        if self._pool is None:
            work()
            return
        while len(self._waiting) >= WAITING_STATES or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work))

    def drain(self) -> None:
        """Waits for everything; raises what it raised."""
        while self._waiting:
            self._waiting.popleft().result()


def _mean_of_predicted(logprob: Tensor, _dim: int) -> Tensor:
    """A sample's mean; its last token predicts nothing, and any other that is no number shows."""
    return logprob[:-1].mean(0)


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
        self._copies = torch.cuda.Stream() if model.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.taken = 0

    def take(self, state: NodeState) -> None:
        """Starts a state on its way; what is wrong with it, or with one before it, is raised."""
        hidden = self._kept(state.hidden, torch.mean)
        logprob = None if state.logprob is None else self._kept(state.logprob, _mean_of_predicted)
        # Least and greatest value only: ten times faster than asking every one, and a NaN is both.
        bounds = torch.stack(torch.aminmax(hidden)).to(torch.float32)
        statistics: dict[str, Tensor] | None = None
        if self._layout.keep or not are_made_on(hidden.device):
            stored = self._to_host(hidden.to(self._dtype))
        else:
            # Only the statistics leave the device.
            stored = hidden if self._holds(hidden.dtype) else hidden.to(self._dtype)
            self._path.add(state.node, stored)
            taken = self._path.take() if state.node in self._pending else {}
            statistics = {name: self._to_host(value) for name, value in taken.items()}
        bounds, scores = map(self._to_host, (bounds, logprob))
        copied = None
        if self._copies is not None:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._copies)
        computed = str(state.hidden.dtype).removeprefix("torch.")
        self._queue.put(
            lambda: self._write(state.node, stored, bounds, scores, statistics, computed, copied)
        )
        self.taken += state.node in self._pending

    def finish(self) -> None:
        """Returns once everything taken is on disk."""
        self._queue.drain()
        self._writer.finish()

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

    def _to_host(self, value: Tensor | None) -> Any:
        """On a GPU into pinned memory and beside the computation; `copied` tells when it has
        arrived.
        """
        if value is None or self._copies is None:
            return None if value is None else value.cpu()
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(self._copies):
            host.copy_(value, non_blocking=True)
        value.record_stream(self._copies)
        return host

    def _holds(self, computed: torch.dtype) -> bool:
        """Whether the store's dtype has every value of a narrower one, in which products are faster
        on a graphics card.
        """
        return self._dtype == torch.float32 and computed in (torch.float16, torch.bfloat16)

    def _write(
        self,
        node: int,
        hidden: Tensor,
        bounds: Any,
        logprob: Any,
        statistics: dict[str, Tensor] | None,
        computed: str,
        copied: Any,
    ) -> None:
        if copied is not None:
            copied.synchronize()
        if not self._allow and not bounds.to(self._dtype).isfinite().all():
            stored = hidden.to(self._dtype).cpu().numpy()
            raise ModelError(self._overflow_message(node, stored, bounds.numpy(), computed))
        scores = None if logprob is None else logprob.float().numpy()
        if self._layout.keep:
            self._writer.write(node, hidden.numpy(), scores)
            return
        if statistics is None:
            self._path.add(node, hidden)
            statistics = self._path.take() if node in self._pending else {}
        if node in self._pending:
            values = {name: value.numpy() for name, value in statistics.items()}
            self._writer.write_statistics(self._plans[node], values, scores)

    def _overflow_message(
        self, node: int, stored: NDArray[Any], bounds: NDArray[Any], computed: str
    ) -> str:
        """Where a value does not fit the store, and what to do."""
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
            elsewhere = " and another --out," if self._writer.done.any() else ""
            return (
                f"{place}: {largest:.0f} does not fit {layout.dtype}; use --dtype float32"
                f"{elsewhere} or --allow-nonfinite"
            )
        return (
            f"{place}: not finite in {computed}; use another --model-dtype or plan, or "
            "--allow-nonfinite"
        )
