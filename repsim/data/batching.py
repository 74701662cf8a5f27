"""Samples become blocks and padded batches.

A block is a run of neighbouring samples that are computed and finished together; its samples run in
several batches where that saves padding. Knows no tokenizer, no model and no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from repsim.data.samples import Sample


class Costs(TypedDict):
    """What a forward and padding cost; the arguments of `batches` that depend on the device.

    overhead: what one more forward costs, counted in positions.
    waste: the largest share of all positions that may be padding, 0 to 1.
    """

    overhead: float
    waste: float


# One more forward costs about 15 ms of Python and kernel launches: the time of some 16 positions of
# a small model on a CPU. A GPU computes hundreds of positions in that time, so that padding costs
# little.
_CPU_COSTS: Costs = {"overhead": 16.0, "waste": 0.02}
_GPU_COSTS: Costs = {"overhead": 256.0, "waste": 0.25}


@dataclass(frozen=True)
class Batch:
    """Samples that run together, padded on the right.

    A row may also hold prefix trees: texts that begin alike, with the tokens they share given once
    (`repsim.data.packing`). For each token it is then said which others it attends to and at which
    position of its text it stands; models take both under these names.

    token_ids: `[sample, position]`, int64.
    mask: `[sample, position]`, True at real tokens, False at padding.
    attention_mask: `[sample, position, position]`, whether a token (second dimension) attends to
    another (third); None where rows are plain texts.
    position_ids: `[sample, position]`, int64, a token's place in its own text, from 0; None where
    rows are plain texts.
    """

    token_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    attention_mask: NDArray[np.bool_] | None = None
    position_ids: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return int(self.mask.sum())


def halved(batches: Sequence[Batch]) -> int | None:
    """Half of the positions of the largest batch of several rows; None where none has several.

    Example:
        >>> def batch(rows, positions):
        ...     return Batch(np.zeros((rows, positions), int), np.ones((rows, positions), bool))
        >>> halved([batch(4, 8), batch(1, 50)]), halved([batch(1, 50)])
        (16, None)
    """
    return max((batch.mask.size // 2 for batch in batches if len(batch.mask) > 1), default=None)


class BatchRule(StrEnum):
    """Which texts may share a batch without changing each other's states; a property of a model."""

    ANY = "texts of any length, padded"
    EQUAL = "texts of one length, unpadded"
    NONE = "each text by itself"


def costs_on(device_type: str) -> Costs:
    """What a forward and padding cost on a device.

    Args:
        device_type: as torch names it, `cpu` or `cuda`; every accelerator counts as a GPU.

    Example:
        >>> costs_on("cpu")
        {'overhead': 16.0, 'waste': 0.02}
    """
    return _CPU_COSTS if device_type == "cpu" else _GPU_COSTS


def cut_blocks(samples: Sequence[Sample], tokens: int) -> tuple[int, ...]:
    """Cuts samples, in order, into blocks of a limited size.

    Blocks are filled from the front: what is left of a corpus after some blocks is cut as it would
    have been with them, so a run that goes on makes the blocks of a run in one piece.

    Args:
        samples: in the store's order.
        tokens: the most of a block, unless a single sample is longer.

    Returns:
        How many samples each block takes, at least one.

    Example:
        >>> samples = [Sample(key, np.zeros(length, np.int32)) for key, length in
        ...            [("a", 3), ("b", 2), ("c", 1)]]
        >>> cut_blocks(samples, 5)
        (2, 1)
    """
    blocks: list[int] = []
    room = 0
    for sample in samples:
        if blocks and len(sample) <= room:
            blocks[-1] += 1
        else:
            blocks.append(1)
            room = tokens
        room -= len(sample)
    return tuple(blocks)


def batches(
    samples: Sequence[Sample],
    pad_id: int,
    *,
    overhead: float,
    waste: float,
    batch_rule: BatchRule = BatchRule.ANY,
    most: int | None = None,
) -> tuple[Batch, ...]:
    """A block's samples, in order, in the batches that cost least.

    Args:
        samples: of one block; the closer their lengths, the fewer batches they take.
        pad_id: token id at padded positions.
        overhead: what one more forward costs, counted in positions.
        waste: the largest share of all positions that may be padding, 0 to 1; more batches are made
            where it takes them.
        batch_rule: which samples may share a batch.
        most: positions that a batch of several samples may have, padding included; None for any
            number.

    Example:
        >>> samples = [Sample("a", np.array([5, 6, 7])), Sample("b", np.array([8, 9]))]
        >>> (batch,) = batches(samples, pad_id=0, overhead=10, waste=0.5)
        >>> batch.token_ids.tolist()
        [[5, 6, 7], [8, 9, 0]]
    """
    lengths = np.array([len(sample) for sample in samples])
    ends = batch_ends(lengths, overhead=overhead, waste=waste, batch_rule=batch_rule, most=most)
    return tuple(_pad(samples[first:last], pad_id) for first, last in pairwise((0, *ends)))


def batch_ends(
    lengths: NDArray[np.int64],
    *,
    overhead: float,
    waste: float,
    batch_rule: BatchRule = BatchRule.ANY,
    most: int | None = None,
) -> list[int]:
    """Where the batches end that cost least.

    Args:
        lengths: `[row]`, tokens of each row, which keep this order.
        overhead, waste, batch_rule, most: see `batches`.

    Returns:
        For each batch the index after its last row.

    Example:
        >>> batch_ends(np.array([9, 9, 2]), overhead=5, waste=1)
        [2, 3]
        >>> batch_ends(np.array([9, 9, 2]), overhead=5, waste=1, most=17)
        [1, 2, 3]
    """
    if batch_rule is BatchRule.NONE:
        return list(range(1, len(lengths) + 1))
    if batch_rule is BatchRule.EQUAL:
        runs = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        return [
            min(first + rows, last)
            for begin, last in pairwise(runs)
            for rows in [_count_rows(int(lengths[begin]), last - begin, most)]
            for first in range(begin, last, rows)
        ]
    ends = _cheapest_ends(lengths, overhead, most)
    # The cheapest batches may waste too much; the cheaper a forward is taken for, the less they do.
    # This ends, as below an overhead of 1 no position is worth wasting.
    while _count_positions(lengths, ends) * (1 - waste) > lengths.sum():
        overhead /= 2
        ends = _cheapest_ends(lengths, overhead, most)
    return ends


def _count_rows(length: int, rows: int, most: int | None) -> int:
    """How many of these rows of one length a batch takes, at least one."""
    return rows if most is None else max(1, min(rows, most // max(1, length)))


def _cheapest_ends(
    lengths: NDArray[np.int64], overhead: float, most: int | None = None
) -> list[int]:
    """Where the batches end whose positions, with `overhead` for each batch, are fewest.

    None of several rows has more than `most` positions. By dynamic programming from the back:

        cost[i] = min over j > i of max(lengths[i:j]) * (j - i) + overhead + cost[j]
    """
    total = len(lengths)
    cost = np.zeros(total + 1)  # of the rows from each on
    end = np.zeros(total, np.int64)  # of the first batch of these rows
    for first in range(total - 1, -1, -1):
        positions = np.maximum.accumulate(lengths[first:]) * np.arange(1, total - first + 1)
        costs = positions + overhead + cost[first + 1 :]
        if most is not None:
            costs[1:][positions[1:] > most] = np.inf
        end[first] = first + 1 + costs.argmin()
        cost[first] = costs.min()

    ends = [0]
    while ends[-1] < total:
        ends.append(int(end[ends[-1]]))
    return ends[1:]


def _count_positions(lengths: NDArray[np.int64], ends: Sequence[int]) -> int:
    """Positions of these batches, padding included."""
    return sum(
        int(lengths[first:last].max()) * (last - first) for first, last in pairwise((0, *ends))
    )


def _pad(samples: Sequence[Sample], pad_id: int) -> Batch:
    lengths = np.array([len(sample) for sample in samples])
    mask = np.arange(lengths.max()) < lengths[:, None]
    token_ids = np.full(mask.shape, pad_id, np.int64)
    token_ids[mask] = np.concatenate([sample.token_ids for sample in samples])
    return Batch(token_ids, mask)
