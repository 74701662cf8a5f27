"""Prefix trees and rows; every window is read back from its predicting tokens, by the mask."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repsim.data import packing
from repsim.data.batching import Batch, BatchRule, Costs
from repsim.data.packing import (
    ROW_TOKENS,
    TREE_TOKENS,
    Packed,
    Window,
    cut_prefix_trees,
    pack_prefix_trees,
    pack_rows,
)

PAD = 99
COSTS: Costs = {"overhead": 8.0, "waste": 0.25}


def window(*tokens: int, targets: int = 1) -> Window:
    """The last tokens are targets; what goes in is all but the last."""
    ids = np.array(tokens, np.int32)
    return Window(ids[:-1], ids[len(ids) - targets :])


@st.composite
def windows_of(draw: st.DrawFn) -> Window:
    """Few ids, so that much is shared: some windows begin alike, some are the same, some score
    nothing.
    """
    shared = [1, 2, 1, 2, 1, 2][: draw(st.sampled_from([0, 3, 6]))]
    inputs = [*shared, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=14))]
    length = draw(st.integers(0, len(inputs)))
    targets = draw(st.lists(st.integers(1, 3), min_size=length, max_size=length))
    return Window(np.array(inputs, np.int32), np.array(targets, np.int32))


many_windows = st.lists(windows_of(), min_size=1, max_size=12)


def prefixes(windows: Sequence[Window]) -> set[tuple[int, ...]]:
    """Every beginning of every text: what has to be computed once, at the least."""
    return {
        tuple(window.inputs[:end].tolist())
        for window in windows
        for end in range(1, len(window.inputs) + 1)
    }


def visible_ids(packed: Packed) -> list[list[int]]:
    """For each real token of all batches, in order: the ids it attends to, by position."""
    ids_of_tokens = []
    for batch in packed.batches:
        for row, (ids, mask) in enumerate(zip(batch.token_ids, batch.mask, strict=True)):
            for place in np.flatnonzero(mask):
                if batch.attention_mask is None or batch.position_ids is None:
                    ids_of_tokens.append(ids[: place + 1].tolist())
                    continue
                visible = np.flatnonzero(batch.attention_mask[row, place])
                assert mask[visible].all()
                row_positions = batch.position_ids[row]
                visible = visible[np.argsort(row_positions[visible], kind="stable")]
                # One token at each position, itself the last.
                assert row_positions[visible].tolist() == list(range(len(visible)))
                assert visible[-1] == place
                ids_of_tokens.append(ids[visible].tolist())
    return ids_of_tokens


def seen(batch: Batch, row: int = 0) -> list[list[int]]:
    """The attention mask of a row of trees, as ones and zeros."""
    assert batch.attention_mask is not None
    return batch.attention_mask[row].astype(int).tolist()


def positions(batch: Batch) -> list[list[int]]:
    assert batch.position_ids is not None
    return batch.position_ids.tolist()


def check(packed: Packed, windows: Sequence[Window]) -> None:
    """Every target is there, predicted after exactly the tokens that its window puts before it."""
    # Targets.
    lengths = [len(window.targets) for window in windows]
    assert packed.window.tolist() == np.repeat(np.arange(len(windows)), lengths).tolist()
    targets = [token for window in windows for token in window.targets.tolist()]
    assert packed.target.tolist() == targets
    assert packed.target.dtype == packed.token.dtype == np.int64
    assert packed.token.shape == packed.target.shape

    # What stands before each of them.
    visible = visible_ids(packed)
    assert len(visible) == packed.tokens == sum(int(batch.mask.sum()) for batch in packed.batches)
    for index, window in enumerate(windows):
        inputs = window.inputs.tolist()
        read = [visible[token] for token in packed.token[packed.window == index]]
        assert read == [inputs[:end] for end in range(len(inputs) - len(read) + 1, len(inputs) + 1)]

    # Padding.
    for batch in packed.batches:
        assert batch.token_ids.shape == batch.mask.shape
        assert (batch.token_ids[~batch.mask] == PAD).all()
        assert (np.diff(batch.mask.astype(int)) <= 0).all()  # padded on the right
        if batch.attention_mask is not None:
            itself = np.eye(batch.mask.shape[1], dtype=bool)[np.nonzero(~batch.mask)[1]]
            assert (batch.attention_mask[~batch.mask] == itself).all()


# By hand


def test_two_windows_that_share_three_tokens_are_one_tree() -> None:
    """5 6 7 → 8 3, and 5 6 7 → 9: of the eight tokens that go in, five are computed."""
    one, two = window(5, 6, 7, 8, 3, 4, targets=3), window(5, 6, 7, 9)
    packed = pack_prefix_trees([one, two], PAD, **COSTS)
    (batch,) = packed.batches
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 3]]
    assert positions(batch) == [[0, 1, 2, 3, 4]]
    assert seen(batch) == np.tri(5, dtype=int).tolist()
    assert packed.token.tolist() == [2, 3, 4, 2]  # 7 predicts the first target of both
    assert packed.target.tolist() == [8, 3, 4, 9]
    assert packed.window.tolist() == [0, 0, 0, 1]
    assert packed.tokens == 5


def test_two_windows_that_part_see_what_they_share_and_not_each_other() -> None:
    one, two = window(5, 6, 7, 8, 3), window(5, 6, 7, 9, 2, 1, targets=3)
    packed = pack_prefix_trees([two, one], PAD, **COSTS)  # in any order
    (batch,) = packed.batches
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 9, 2]]
    assert batch.mask.all()
    assert positions(batch) == [[0, 1, 2, 3, 3, 4]]
    assert seen(batch) == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
    assert packed.token.tolist() == [2, 4, 5, 3]
    assert packed.target.tolist() == [9, 2, 1, 3]
    assert packed.window.tolist() == [0, 0, 0, 1]


def test_texts_that_share_nothing_lie_side_by_side() -> None:
    (batch,) = pack_prefix_trees([window(5, 6, 7), window(8, 9, 1)], PAD, **COSTS).batches
    assert batch.token_ids.tolist() == [[5, 6, 8, 9]]
    assert positions(batch) == [[0, 1, 0, 1]]
    assert seen(batch) == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


def test_padding_sees_only_itself_and_nobody_sees_it() -> None:
    windows = [window(5, 6, 7), window(8, 9, 1, 2)]
    packed = pack_prefix_trees(windows, PAD, overhead=100, waste=0.5, row_tokens=3)
    (batch,) = packed.batches
    assert batch.token_ids.tolist() == [[8, 9, 1], [5, 6, PAD]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]
    assert positions(batch) == [[0, 1, 2], [0, 1, 0]]
    assert seen(batch, 1) == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert packed.token.tolist() == [4, 2]


def test_rows_are_plain_texts_with_equal_ones_once() -> None:
    windows = [window(5, 6), window(5, 6, 7, 8, targets=2), window(5, 6, 7, 9)]
    packed = pack_rows(windows, PAD, overhead=100, waste=0.5)
    (batch,) = packed.batches
    assert batch.attention_mask is None
    assert batch.position_ids is None
    assert batch.token_ids.tolist() == [[5, 6, 7], [5, PAD, PAD]]
    assert packed.tokens == 4
    assert packed.token.tolist() == [3, 1, 2, 2]
    assert packed.target.tolist() == [6, 7, 8, 9]
    assert packed.window.tolist() == [0, 1, 1, 2]


def test_rows_of_one_length_run_together() -> None:
    windows = [window(5, 6), window(5, 6, 7, 8, targets=2), window(1, 9), window(5, 6, 7, 9)]
    packed = pack_rows(windows, PAD, overhead=100, waste=1, batch_rule=BatchRule.EQUAL)
    assert [batch.token_ids.tolist() for batch in packed.batches] == [[[5, 6, 7]], [[5], [1]]]
    check(packed, windows)
    assert [
        len(batch.mask)
        for batch in pack_rows(windows, PAD, **COSTS, batch_rule=BatchRule.NONE).batches
    ] == [1, 1, 1]


# Identities


@example([window(1, 2, targets=0), window(2, 3)])
@example([window(1, 2, 3, targets=0)])
@given(many_windows)
def test_every_window_is_read_back_from_rows(windows: list[Window]) -> None:
    packed = pack_rows(windows, PAD, **COSTS)
    check(packed, windows)
    assert packed.tokens == sum(map(len, {tuple(window.inputs.tolist()) for window in windows}))


@example([window(1, 2, targets=0), window(2, 3)], 6)
@example([window(1, 2, 3, targets=0)], 6)
@given(many_windows, st.sampled_from([1, 6, 20, ROW_TOKENS]))
def test_every_window_is_read_back_from_trees(windows: list[Window], row_tokens: int) -> None:
    check(pack_prefix_trees(windows, PAD, **COSTS, row_tokens=row_tokens), windows)


@given(many_windows)
def test_trees_and_rows_predict_the_same_after_the_same(windows: list[Window]) -> None:
    trees, rows = (pack(windows, PAD, **COSTS) for pack in (pack_prefix_trees, pack_rows))
    assert trees.target.tolist() == rows.target.tolist()
    assert trees.window.tolist() == rows.window.tolist()
    after = [
        np.array(visible_ids(packed), dtype=object)[packed.token].tolist()
        for packed in (trees, rows)
    ]
    assert after[0] == after[1]
    assert trees.tokens <= rows.tokens


@given(many_windows)
def test_what_fits_a_row_is_computed_once(windows: list[Window]) -> None:
    assert pack_prefix_trees(windows, PAD, **COSTS).tokens == len(prefixes(windows))


@given(many_windows, st.sampled_from([1, 4, 6, 20]))
def test_a_tree_computes_each_beginning_once(windows: list[Window], row_tokens: int) -> None:
    trees, ends = packing._grow_trees(windows, row_tokens)
    for tree in trees:
        of_tree = [
            window for window, (its_tree, _) in zip(windows, ends, strict=True) if its_tree is tree
        ]
        assert len(tree) == len(prefixes(of_tree)) > 0
        assert (tree.attention_mask().sum(1) == np.array(tree.positions) + 1).all()
    assert pack_prefix_trees(windows, PAD, **COSTS, row_tokens=row_tokens).tokens == sum(
        map(len, trees)
    )


@given(many_windows, st.sampled_from([1, 4, 6, 20]))
def test_only_a_single_tree_makes_a_row_too_long(windows: list[Window], row_tokens: int) -> None:
    trees, _ = packing._grow_trees(windows, row_tokens)
    rows = packing._fill_rows(trees, row_tokens)
    assert sorted(map(id, (tree for row in rows for tree in row))) == sorted(map(id, trees))
    assert all(len(row) == 1 or sum(map(len, row)) <= row_tokens for row in rows)
    packed = pack_prefix_trees(windows, PAD, **COSTS, row_tokens=row_tokens)
    lengths = [int(length) for batch in packed.batches for length in batch.mask.sum(1)]
    assert lengths == sorted((sum(map(len, row)) for row in rows), reverse=True)


@given(many_windows)
def test_the_order_of_windows_changes_nothing_but_their_numbers(windows: list[Window]) -> None:
    there, back = (
        pack_prefix_trees(windows, PAD, **COSTS),
        pack_prefix_trees(windows[::-1], PAD, **COSTS),
    )
    for one, other in zip(there.batches, back.batches, strict=True):
        assert one.attention_mask is not None
        assert other.attention_mask is not None
        assert np.array_equal(one.token_ids, other.token_ids)
        assert np.array_equal(one.attention_mask, other.attention_mask)
    assert sorted(zip(there.token, there.target, strict=True)) == sorted(
        zip(back.token, back.target, strict=True)
    )


# Special cases


@pytest.mark.parametrize("pack", [pack_rows, pack_prefix_trees])
def test_identical_windows_are_computed_once_and_scored_each(pack: Callable[..., Packed]) -> None:
    windows = [window(5, 6, 7, 8, targets=2)] * 3
    packed = pack(windows, PAD, **COSTS)
    assert packed.tokens == 3
    assert packed.token.tolist() == [1, 2] * 3
    assert packed.window.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("pack", [pack_rows, pack_prefix_trees])
def test_windows_that_score_nothing_are_computed_all_the_same(pack: Callable[..., Packed]) -> None:
    windows = [window(5, 6, 7, targets=0), window(8, 9), window(5, 1, 2, targets=0)]
    packed = pack(windows, PAD, **COSTS)
    check(packed, windows)
    assert packed.window.tolist() == [1]


@pytest.mark.parametrize("pack", [pack_rows, pack_prefix_trees])
def test_all_that_goes_in_may_be_scored(pack: Callable[..., Packed]) -> None:
    windows = [Window(np.array([5, 6, 7], np.int32), np.array([6, 7, 8], np.int32))]
    assert pack(windows, PAD, **COSTS).token.tolist() == [0, 1, 2]


def test_a_long_context_with_answers_of_one_token_stays_one_tree() -> None:
    """Few-shot examples: far longer than a row, and the questions after them share it."""
    shots = list(range(1, 601))
    windows = [window(*shots, question, answer) for question in range(1, 41) for answer in (1, 2)]
    packed = pack_prefix_trees(windows, PAD, **COSTS)
    check(packed, windows)
    (batch,) = packed.batches
    assert batch.token_ids.shape == (1, 600 + 40)
    assert packed.tokens == len(prefixes(windows))


def test_a_tree_ends_where_it_would_be_too_long() -> None:
    """No tree is longer than its limit: what the next one shares with it is computed again."""
    shots = list(range(1, TREE_TOKENS // 2 + 1))
    windows = [window(*shots, *(question,) * (TREE_TOKENS // 4), 1) for question in range(1, 4)]
    packed = pack_prefix_trees(windows, PAD, overhead=1, waste=0)
    lengths = [int(length) for batch in packed.batches for length in batch.mask.sum(1)]
    assert lengths == [TREE_TOKENS, TREE_TOKENS * 3 // 4]


def test_texts_that_share_little_do_not_make_long_trees() -> None:
    """Sixty tokens in common out of two hundred are computed again rather than seen by a row twice
    as long.
    """
    windows = [window(*range(1, 61), *(first,) * 140, 1) for first in range(1, 4)]
    packed = pack_prefix_trees(windows, PAD, **COSTS)
    check(packed, windows)
    assert [batch.mask.sum(1).tolist() for batch in packed.batches] == [[200] * 3]


def test_one_long_text_makes_one_long_row() -> None:
    windows = [window(*range(1, 402)), window(7, 8)]
    packed = pack_prefix_trees(windows, PAD, **COSTS)
    assert sorted(int(length) for batch in packed.batches for length in batch.mask.sum(1)) == [
        1,
        400,
    ]


# Cutting


@given(st.lists(st.lists(windows_of(), min_size=1, max_size=4), max_size=10), st.integers(1, 60))
def test_blocks_are_full_and_not_too_full(texts: list[list[Window]], tokens: int) -> None:
    sizes = cut_prefix_trees(texts, tokens)
    assert sum(sizes) == len(texts)
    assert all(sizes)
    ends = np.cumsum([0, *sizes]).tolist()
    for first, last in pairwise(ends):
        block = [window for windows in texts[first:last] for window in windows]
        assert last == first + 1 or len(prefixes(block)) <= tokens
        if last < len(texts):
            assert len(prefixes([*block, *texts[last]])) > tokens  # the next would be too much


def test_blocks_count_what_is_shared_once() -> None:
    texts = [
        [window(1, 2, 3, 4, 9), window(1, 2, 3, 5, 9)],
        [window(1, 2, 3, 6, 9)],
        [window(8, 9)],
        [window(1, 9)],
    ]
    assert cut_prefix_trees(texts, 6) == [2, 2]
    assert cut_prefix_trees(texts, 5) == [1, 3]  # 1 2 3 4 5, then 1 2 3 6 8
    assert cut_prefix_trees(texts, 4) == [1, 1, 2]
    assert cut_prefix_trees(texts, 1) == [1, 1, 1, 1]
    assert cut_prefix_trees([], 6) == []
