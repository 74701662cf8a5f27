"""Texts to score, packed into batches so that tokens which several texts begin with run once.

A window is what one forward takes of a text: the tokens that go in, and the tokens that its last
positions are to predict. Windows that begin alike form a prefix tree of tokens. Trees lie side by
side in rows, and every token attends to its own ancestors only:

    windows        a b c d     one tree        a ─ b ─ c ─ d       one row     a b c d e
                   a b e                            └─ e                       0 1 2 3 2   position

Models whose attention cannot be given a mask get plain rows, one per window. Knows neither models
nor tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from repsim.data.batching import Batch, BatchRule, batch_ends, batches
from repsim.data.samples import Sample

ROW_TOKENS = 256  # of a row that trees share; longer rows cost attention, shorter ones padding
TREE_TOKENS = 2048  # of one tree whose texts are mostly what they share, such as few-shot examples


@dataclass(frozen=True)
class Window:
    """Tokens that go in, and what comes next at the last of them.

    inputs: `[token]`, int32.
    targets: `[target]`, int32, at most as many; the last target follows the last input.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """Windows as batches, and where each of their targets is predicted.

    batches: padded on the right.
    token: `[target]`, index of the predicting token among the real tokens of all batches, one after
    another.
    target: `[target]`, the id to predict.
    window: `[target]`, the window it belongs to; targets of a window are neighbours, in order.
    """

    batches: tuple[Batch, ...]
    token: NDArray[np.int64]
    target: NDArray[np.int64]
    window: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Real tokens that are computed."""
        return sum(batch.tokens for batch in self.batches)


def pack_rows(
    windows: Sequence[Window],
    pad_id: int,
    *,
    overhead: float,
    waste: float,
    batch_rule: BatchRule = BatchRule.ANY,
    most: int | None = None,
) -> Packed:
    """Packs windows as plain texts, one per row; equal inputs share a row.

    Args:
        windows: in any order.
        pad_id: token id at padded positions.
        overhead, waste, batch_rule, most: see `repsim.data.batching.batches`.

    Example:
        >>> windows = [Window(np.array([1, 2, 3]), np.array([4])),
        ...            Window(np.array([1, 2, 3]), np.array([5]))]
        >>> packed = pack_rows(windows, pad_id=0, overhead=8, waste=0.5)
        >>> packed.tokens, packed.token.tolist(), packed.target.tolist()
        (3, [2, 2], [4, 5])
    """
    rows: dict[bytes, Sample] = {}
    for window in windows:
        rows.setdefault(window.inputs.tobytes(), Sample("", window.inputs))
    order = sorted(rows, key=lambda key: -len(rows[key]))
    row_batches = batches(
        [rows[key] for key in order],
        pad_id,
        overhead=overhead,
        waste=waste,
        batch_rule=batch_rule,
        most=most,
    )

    # The last input of a window is the last token of its row; batches keep the order of the rows.
    ends = dict(zip(order, np.cumsum([len(rows[key]) for key in order]).tolist(), strict=True))
    predicting = [
        np.arange(-len(window.targets), 0) + ends[window.inputs.tobytes()] for window in windows
    ]
    return _collect(row_batches, windows, predicting)


def pack_prefix_trees(
    windows: Sequence[Window],
    pad_id: int,
    *,
    overhead: float,
    waste: float,
    row_tokens: int = ROW_TOKENS,
    most: int | None = None,
) -> Packed:
    """Packs windows as prefix trees, side by side in rows; shared prefixes are computed once.

    Args:
        windows: in any order.
        pad_id: token id at padded positions.
        overhead, waste, most: see `repsim.data.batching.batches`; its rows are those of trees.
        row_tokens: how long a row gets, unless one tree is longer.

    Example:
        >>> windows = [Window(np.array([1, 2, 3]), np.array([4])),
        ...            Window(np.array([1, 2, 7]), np.array([5]))]
        >>> packed = pack_prefix_trees(windows, pad_id=0, overhead=8, waste=0.5)
        >>> packed.batches[0].token_ids.tolist(), packed.batches[0].position_ids.tolist()
        ([[1, 2, 3, 7]], [[0, 1, 2, 2]])
        >>> packed.batches[0].attention_mask[0].astype(int).tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    """
    trees, ends = _grow_trees(windows, row_tokens)
    rows = sorted(_fill_rows(trees, row_tokens), key=lambda row: -sum(map(len, row)))

    # Where each tree begins among all real tokens. Padding does not count, so it does not matter
    # how rows are cut into batches.
    starts: dict[_PrefixTree, int] = {}
    begin = 0
    for tree in (tree for row in rows for tree in row):
        starts[tree] = begin
        begin += len(tree)

    cuts = batch_ends(
        np.array([sum(map(len, row)) for row in rows]), overhead=overhead, waste=waste, most=most
    )
    tree_batches = [_pad_rows(rows[first:last], pad_id) for first, last in pairwise((0, *cuts))]

    # Targets are predicted at the last tokens of the path to the node where the window ends.
    predicting = [
        np.array(tree.path(end)[len(window.inputs) - len(window.targets) :], np.int64)
        + starts[tree]
        for window, (tree, end) in zip(windows, ends, strict=True)
    ]
    return _collect(tree_batches, windows, predicting)


def cut_prefix_trees(texts: Sequence[Sequence[Window]], tokens: int) -> list[int]:
    """Cuts neighbouring texts into blocks of a limited size, shared prefixes counted once.

    Args:
        texts: the windows of each text; they stay in one block.
        tokens: the most of a block, unless a single text is longer.

    Returns:
        How many texts each block takes, at least one.

    Example:
        >>> def text(*ids):
        ...     return [Window(np.array(ids), np.array([9]))]
        >>> cut_prefix_trees([text(1, 2, 3), text(1, 2, 4), text(5, 6)], tokens=4)
        [2, 1]
    """
    sizes: list[int] = []
    tree = _PrefixTree()
    for windows in texts:
        inputs = [window.inputs.tolist() for window in windows]
        for window_inputs in inputs:
            tree.add(window_inputs)
        # Too long with this text: it begins a new block, whose tree holds nothing else.
        if not sizes or len(tree) > tokens:
            tree = _PrefixTree()
            for window_inputs in inputs:
                tree.add(window_inputs)
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def _collect(
    batches: Sequence[Batch], windows: Sequence[Window], predicting: Sequence[NDArray[np.int64]]
) -> Packed:
    """Batches with the targets of all windows, one window after another.

    Args:
        batches: in order.
        windows: as given by the caller.
        predicting: for each window, `[target]`, the tokens that predict its targets.
    """
    targets = [window.targets for window in windows]
    return Packed(
        batches=tuple(batches),
        token=np.concatenate(predicting),
        target=np.concatenate(targets).astype(np.int64),
        window=np.repeat(np.arange(len(windows)), list(map(len, targets))),
    )


class _PrefixTree:
    """Tokens that windows share, in the order in which windows brought them.

    Invariant: every token stands after its parent, so ancestors have smaller indices and a plain
    causal order holds.

    token_ids: of each token.
    parents: index of the token before it in its texts; -1 at the first token of a text.
    positions: in its texts, from 0.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self.positions: list[int] = []
        self._children: dict[tuple[int, int], int] = {}  # (parent, token id) -> token

    def __len__(self) -> int:
        return len(self.token_ids)

    def count_shared(self, inputs: Sequence[int]) -> int:
        """How many of the first tokens are there already."""
        return len(self._match(inputs))

    def add(self, inputs: Sequence[int]) -> int:
        """Takes a text in.

        Returns:
            The token where it ends.
        """
        matched = self._match(inputs)
        token = matched[-1] if matched else -1
        for token_id in inputs[len(matched) :]:
            self._children[token, token_id] = len(self)
            self.positions.append(self.positions[token] + 1 if token >= 0 else 0)
            self.parents.append(token)
            self.token_ids.append(token_id)
            token = len(self) - 1
        return token

    def _match(self, inputs: Sequence[int]) -> list[int]:
        """The longest path from the root whose ids are the first inputs."""
        matched: list[int] = []
        for token_id in inputs:
            child = self._children.get((matched[-1] if matched else -1, token_id))
            if child is None:
                break
            matched.append(child)
        return matched

    def path(self, token: int) -> list[int]:
        """The tokens from the root to this one."""
        backwards = []
        while token >= 0:
            backwards.append(token)
            token = self.parents[token]
        return backwards[::-1]

    def attention_mask(self) -> NDArray[np.bool_]:
        """`[token, token]`: each attends to itself and its ancestors."""
        mask = np.eye(len(self), dtype=bool)
        for token, parent in enumerate(self.parents):
            if parent >= 0:
                mask[token] |= mask[parent]
        return mask


def _grow_trees(
    windows: Sequence[Window], row_tokens: int
) -> tuple[list[_PrefixTree], list[tuple[_PrefixTree, int]]]:
    """The trees, and for each window its tree and the token where it ends.

    In the order of their ids, neighbours share the most. Trees share rows anyway, so a text joins
    the last tree whatever they share, as long as that fits a row; a longer tree has to be worth its
    attention.
    """
    inputs = [window.inputs.tolist() for window in windows]
    trees: list[_PrefixTree] = [_PrefixTree()]
    ends: list[tuple[_PrefixTree, int]] = [(trees[0], -1)] * len(windows)
    for index in sorted(range(len(windows)), key=inputs.__getitem__):
        text = inputs[index]
        shared = trees[-1].count_shared(text)
        size = len(trees[-1]) + len(text) - shared
        shares_most = 2 * shared > len(text)
        largest_size = max(TREE_TOKENS, len(text) * 5 // 4) if shares_most else row_tokens
        if len(trees[-1]) and shared < len(text) and size > largest_size:
            trees.append(_PrefixTree())
        ends[index] = trees[-1], trees[-1].add(text)
    return trees, ends


def _fill_rows(trees: Sequence[_PrefixTree], row_tokens: int) -> list[list[_PrefixTree]]:
    """Trees in rows, the longest first, each into the first row that has room."""
    rows: list[list[_PrefixTree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=len, reverse=True):
        index = next((row for row, left in enumerate(room) if left >= len(tree)), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[index].append(tree)
        room[index] -= len(tree)
    return rows


def _pad_rows(rows: Sequence[Sequence[_PrefixTree]], pad_id: int) -> Batch:
    """Rows of trees as one batch."""
    lengths = [sum(map(len, row)) for row in rows]
    shape = len(rows), max(lengths)
    token_ids, position_ids = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    # Padding attends to itself, as a softmax over nothing is NaN.
    attention_mask = np.repeat(np.eye(shape[1], dtype=bool)[None], len(rows), 0)
    for index, row in enumerate(rows):
        begin = 0
        for tree in row:
            place = slice(begin, begin + len(tree))
            token_ids[index, place] = tree.token_ids
            position_ids[index, place] = tree.positions
            attention_mask[index, place, place] = tree.attention_mask()
            begin += len(tree)
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    return Batch(token_ids, mask, attention_mask, position_ids)
