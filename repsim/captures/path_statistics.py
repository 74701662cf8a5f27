"""Statistics of plans, taken while their states are computed, where the states are.

On a graphics card the sums are made there, and only they leave it; otherwise by numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.stats.per_sample import SampleStatistic


def are_made_on(device: torch.device) -> bool:
    """Whether statistics are made on the device that the states are on, rather than by numpy: on a
    CPU, numpy's kernels are the faster ones.
    """
    return device.type != "cpu"


class PathStatistics:
    """The states from the trie's root to the node that was last added, and statistics of them.

    Invariant: nodes come depth first, so that the states of any node's path are those that are
    held, up to its parent.

    Args:
        parents: of each node; -1 for a root.
        statistics: to take.
        lengths: kept tokens of each sample of the block.
    """

    def __init__(
        self,
        parents: Sequence[int],
        statistics: Sequence[SampleStatistic],
        lengths: Sequence[int],
    ) -> None:
        self._parents, self._statistics, self._lengths = parents, statistics, list(lengths)
        self._path: list[tuple[int, Tensor]] = []

    def add(self, node: int, hidden: Tensor) -> None:
        """Adds a node's state, `[kept token, unit]`, in the dtype that statistics are of."""
        while self._path and self._path[-1][0] != self._parents[node]:
            self._path.pop()
        self._path.append((node, hidden))

    def take(self) -> dict[str, Tensor]:
        """Statistics of the states up to the last node: name → `[sample, value]`, float64.

        On a device they are there, and nothing has waited for them.
        """
        states = torch.stack([hidden for _, hidden in self._path])
        if not are_made_on(states.device):
            return {item.name: _by_numpy(item, states, self._lengths) for item in self._statistics}
        with _full_precision():
            return {
                item.name: (_on_device if item.runs_anywhere else _by_numpy)(
                    item, states, self._lengths
                )
                for item in self._statistics
            }


def _by_numpy(statistic: SampleStatistic, states: Tensor, lengths: Sequence[int]) -> Tensor:
    """A statistic of each sample, one by one."""
    pieces = np.split(states.cpu().numpy(), np.cumsum(lengths)[:-1], axis=1)
    return torch.from_numpy(np.stack([statistic.kernel(piece) for piece in pieces]))


def _on_device(statistic: SampleStatistic, states: Tensor, lengths: Sequence[int]) -> Tensor:
    """A statistic of each sample, those of one length in one call."""
    starts = np.cumsum((0, *lengths))[:-1]
    order: list[Any] = []
    values = []
    for length in sorted(set(lengths)):
        rows = [row for row, other in enumerate(lengths) if other == length]
        parts = [states[:, start : start + length] for start in starts[rows].tolist()]
        values.append(statistic.kernel(torch.stack(parts)))
        order += rows
    # Back from lengths in order to the samples' own.
    places = torch.from_numpy(np.argsort(order)).to(states.device, non_blocking=True)
    return torch.cat(values).index_select(0, places)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, not in TF32, whatever was chosen outside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
