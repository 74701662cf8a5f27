"""What remains to be done, cut into units of work: by hand, and against a loop that is plain."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from repsim.jobs.resumable import RemainingWork, WorkUnit, work_units
from support.stores import layout_of

Mask = NDArray[np.bool_]


def missing_of(*rows: str) -> Mask:
    """`[row, block]`, a line per row; `x` is missing."""
    return np.array([[letter == "x" for letter in row] for row in rows])


def units_of(missing: Mask, most_blocks: int) -> list[WorkUnit]:
    """What `work_units` gives, in a plain loop that extends the last unit where it may."""
    row_count, block_count = missing.shape
    units: list[WorkUnit] = []
    for block in range(block_count):
        rows = tuple(row for row in range(row_count) if missing[row, block])
        if not rows:
            continue
        last = units[-1] if units else WorkUnit((), ())
        if last.rows == rows and last.blocks[-1] == block - 1 and len(last.blocks) < most_blocks:
            units[-1] = WorkUnit((*last.blocks, block), rows)
        else:
            units.append(WorkUnit((block,), rows))
    return units


@st.composite
def tables(draw: st.DrawFn) -> Mask:
    """What may be missing: columns repeat, as they do where a run was interrupted."""
    row_count = draw(st.integers(1, 3))
    columns = st.lists(st.booleans(), min_size=row_count, max_size=row_count)
    runs = draw(st.lists(st.tuples(columns, st.integers(1, 5)), max_size=6))
    drawn = [column for column, times in runs for _ in range(times)]
    return np.array(drawn, bool).reshape(len(drawn), row_count).T


# Units of work, by hand


@pytest.mark.parametrize(
    ("missing", "most_blocks", "units"),
    [
        # One unit per block; a whole run; a run that is longer than allowed.
        (missing_of("xxx"), 1, [((0,), (0,)), ((1,), (0,)), ((2,), (0,))]),
        (missing_of("xxx"), 3, [((0, 1, 2), (0,))]),
        (missing_of("xxxxx"), 2, [((0, 1), (0,)), ((2, 3), (0,)), ((4,), (0,))]),
        # Neither over a finished block nor from rows to other rows.
        (missing_of("x.x"), 9, [((0,), (0,)), ((2,), (0,))]),
        (missing_of("xx.", ".x."), 9, [((0,), (0,)), ((1,), (0, 1))]),
        # A length is counted from where a unit begins, not from the first block.
        (missing_of("x.xxx"), 2, [((0,), (0,)), ((2, 3), (0,)), ((4,), (0,))]),
        (missing_of("xx..", "..xx"), 2, [((0, 1), (0,)), ((2, 3), (1,))]),
        (missing_of("...", "..."), 2, []),
        (np.zeros((2, 0), bool), 2, []),
        (np.zeros((0, 3), bool), 2, []),
    ],
)
def test_units_by_hand(
    missing: Mask,
    most_blocks: int,
    units: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    found = [(unit.blocks, unit.rows) for unit in work_units(missing, most_blocks)]
    assert found == units


def test_a_unit_is_one_block_unless_more_are_allowed() -> None:
    assert [unit.blocks for unit in work_units(missing_of("xx"))] == [(0,), (1,)]


# Units of work, of anything


@given(tables(), st.integers(1, 6))
def test_units_are_those_of_a_plain_loop(missing: Mask, most_blocks: int) -> None:
    assert list(work_units(missing, most_blocks)) == units_of(missing, most_blocks)


@given(tables(), st.integers(1, 6))
def test_units_cover_what_is_missing_once_and_nothing_else(missing: Mask, most_blocks: int) -> None:
    times = np.zeros(missing.shape, int)
    for unit in work_units(missing, most_blocks):
        times[np.ix_(unit.rows, unit.blocks)] += 1
        assert len(unit.blocks) <= most_blocks
    np.testing.assert_array_equal(times, missing)


def test_units_travel() -> None:
    """Their numbers are Python's own, so that a unit is small and prints as it is written."""
    units = list(work_units(missing_of("xx.", ".x."), 2))
    assert pickle.loads(pickle.dumps(units)) == units
    assert repr(units[1]) == "WorkUnit(blocks=(1,), rows=(0, 1))"


# What remains


@pytest.mark.parametrize(
    ("missing", "grows", "is_none"),
    [
        (missing_of("..", ".."), False, True),
        (missing_of("..", ".x"), False, False),
        # A plan that ends inside another: nothing to compute, and yet the store lacks it.
        (missing_of("..", ".."), True, False),
        (missing_of("xx", "xx"), True, False),
    ],
)
def test_nothing_remains_where_nothing_is_missing_and_the_store_need_not_grow(
    missing: Mask, grows: bool, is_none: bool
) -> None:
    assert RemainingWork(layout_of(), missing, grows).is_none is is_none
