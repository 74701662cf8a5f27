"""Statistics of plans, taken while their states are computed, where the states are.

On a graphics card the sums are made there, and only they leave it; otherwise by numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
        samples = states.split(self._lengths, dim=1)  # type: ignore[no-untyped-call]
        on_device = are_made_on(states.device)
        if not on_device or not all(item.runs_anywhere for item in self._statistics):
            arrays = [sample.cpu().numpy() for sample in samples]
        taken = {}
        for item in self._statistics:
            if on_device and item.runs_anywhere:
                taken[item.name] = apply_by_length(item, samples)
            else:
                taken[item.name] = torch.from_numpy(
                    np.stack([item.kernel(each) for each in arrays])
                )
        return taken


def apply_by_length(statistic: SampleStatistic, samples: Sequence[Tensor]) -> Tensor:
    """A statistic of each sample where the samples are, those of one length in one call.

    Args:
        statistic: one that runs anywhere.
        samples: `[state, token, unit]` each.
    Returns:
        `[sample, value]`, float64.
    """
    groups: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(sample.shape[1], []).append(row)
    with _full_precision():
        values = [
            statistic.kernel(torch.stack([samples[row] for row in rows]))
            for rows in groups.values()
        ]
    # Back to the order of the samples.
    places = np.argsort(np.concatenate([*groups.values()]))
    return torch.cat(values).index_select(0, torch.from_numpy(places).to(samples[0].device))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, not in TF32, whatever was chosen outside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
