"""Blocks and padded batches, by hand and against every other way to cut them."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repsim.data.batching import Batch, BatchRule, Costs, batches, costs_on, cut_blocks
from support.samples import sample_of

# Values worked out by hand


def test_blocks_by_hand() -> None:
    samples = [sample_of("a", 5, 6, 7), sample_of("b", 8, 9), sample_of("c", 4)]
    assert cut_blocks(samples, 5) == (2, 1)
    assert cut_blocks(samples, 1) == (1, 1, 1)  # at least one sample
    assert cut_blocks(samples, 6) == (3,)
    assert cut_blocks([], 9) == ()


def test_batches_by_hand() -> None:
    samples = [sample_of("a", 5, 6, 7), sample_of("b", 8, 9), sample_of("c", 4)]
    (together,) = batches(samples, 0, overhead=10, waste=1)
    assert together.token_ids.tolist() == [[5, 6, 7], [8, 9, 0], [4, 0, 0]]
    assert together.mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert together.tokens == 6
    # apart 6 positions and three forwards, b with c 3 + 4 and two, all of them 9 and one
    assert [batch.tokens for batch in batches(samples, 0, overhead=1.6, waste=1)] == [3, 3]
    assert [batch.tokens for batch in batches(samples, 0, overhead=0.5, waste=1)] == [3, 2, 1]
    assert [batch.tokens for batch in batches(samples, 0, overhead=10, waste=0.02)] == [3, 2, 1]


def test_batches_of_one_length_by_hand() -> None:
    samples = [
        sample_of(key, *range(length))
        for key, length in zip("abcdef", (3, 3, 2, 4, 4, 4), strict=True)
    ]
    costs: Costs = {"overhead": 1000, "waste": 1}
    assert [batch.mask.shape for batch in batches(samples, 0, **costs)] == [(6, 4)]
    equal = batches(samples, 0, **costs, batch_rule=BatchRule.EQUAL)
    assert [batch.mask.shape for batch in equal] == [(2, 3), (1, 2), (3, 4)]
    assert all(batch.mask.all() for batch in equal)
    alone = batches(samples, 0, **costs, batch_rule=BatchRule.NONE)
    assert [batch.token_ids.tolist() for batch in alone] == [
        [sample.token_ids.tolist()] for sample in samples
    ]


@pytest.mark.parametrize(
    ("device", "overhead", "waste"), [("cpu", 16, 0.02), ("cuda", 256, 0.25), ("mps", 256, 0.25)]
)
def test_padding_is_cheap_on_accelerators(device: str, overhead: float, waste: float) -> None:
    assert costs_on(device) == {"overhead": overhead, "waste": waste}


# Round trips

token_lists = st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=12), max_size=12)


@given(token_lists, st.integers(1, 40))
def test_blocks_hold_every_sample_and_are_cut_alike_wherever_one_starts(
    lists: list[list[int]], budget: int
) -> None:
    samples = [sample_of(f"key{row}", *ids) for row, ids in enumerate(lists)]
    blocks = cut_blocks(samples, budget)
    assert sum(blocks) == len(samples)
    starts = [0, *np.cumsum(blocks)]
    for block, (first, last) in enumerate(pairwise(starts)):
        tokens = sum(map(len, samples[first:last]))
        assert tokens <= budget or last - first == 1
        assert last == len(samples) or tokens + len(samples[last]) > budget  # one more does not fit
        assert cut_blocks(samples[first:], budget) == blocks[block:]


@given(token_lists.filter(bool), st.floats(0, 30), st.floats(0, 1))
def test_batches_hold_every_sample_in_order_and_waste_no_more_than_asked(
    lists: list[list[int]], overhead: float, waste: float
) -> None:
    samples = [sample_of(f"key{row}", *ids) for row, ids in enumerate(lists)]
    found = batches(samples, 99, overhead=overhead, waste=waste)
    assert [row for batch in found for row in _rows(batch)] == lists
    positions = sum(batch.mask.size for batch in found)
    assert positions * (1 - waste) <= sum(map(len, samples)) + 1e-9
    for batch in found:
        assert batch.mask.any(0).all()  # no position is padding for everyone
        assert (np.diff(batch.mask.astype(int)) <= 0).all()  # padding on the right
        assert (batch.token_ids[~batch.mask] == 99).all()
        assert batch.tokens == batch.mask.sum()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.floats(0, 30))
def test_no_other_way_to_cut_a_block_costs_less(lengths: list[int], overhead: float) -> None:
    samples = [sample_of(f"key{row}", *range(length)) for row, length in enumerate(lengths)]

    def cost(ends: Sequence[int]) -> float:
        return sum(max(lengths[a:b]) * (b - a) + overhead for a, b in pairwise((0, *ends)))

    count = len(lengths)
    every = [
        (*cuts, count) for size in range(count) for cuts in combinations(range(1, count), size)
    ]
    found = np.cumsum(
        [len(batch.mask) for batch in batches(samples, 0, overhead=overhead, waste=1)]
    ).tolist()
    assert cost(found) <= min(map(cost, every)) + 1e-9


def _rows(batch: Batch) -> list[list[int]]:
    return [ids[real].tolist() for ids, real in zip(batch.token_ids, batch.mask, strict=True)]
