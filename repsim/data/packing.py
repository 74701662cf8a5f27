"""Texts to score, packed into batches so that what several of them begin with is computed once.

A window is one forward's worth of a text: the tokens that go in, and the tokens that its last
positions are to predict. Windows that begin alike form a tree of tokens; trees lie side by side in
rows, and every token sees its own ancestors and nothing else. Models whose attention cannot be told
so get plain rows, one a window. Knows neither models nor tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from repsim.data.batching import Batch, Company, batch_ends, batches
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
    company: Company = Company.ANY,
) -> Packed:
    """One row per window, equal inputs once; see `repsim.data.batching.batches` for the costs."""
    rows: dict[bytes, Sample] = {}
    for window in windows:
        rows.setdefault(window.inputs.tobytes(), Sample("", window.inputs))
    order = sorted(rows, key=lambda key: -len(rows[key]))
    made = batches(
        [rows[key] for key in order], pad_id, overhead=overhead, waste=waste, company=company
    )
    ends = dict(zip(order, np.cumsum([len(rows[key]) for key in order]).tolist(), strict=True))
    places = [
        np.arange(-len(window.targets), 0) + ends[window.inputs.tobytes()] for window in windows
    ]
    return _packed(made, windows, places)


def pack_prefix_trees(
    windows: Sequence[Window],
    pad_id: int,
    *,
    overhead: float,
    waste: float,
    row_tokens: int = ROW_TOKENS,
) -> Packed:
    """Trees of windows that begin alike, side by side in rows; what they share is computed once.

    Args:
        windows: in any order.
        pad_id: token id at padded positions.
        overhead, waste: see `repsim.data.batching.batches`.
        row_tokens: how long a row gets, unless one tree is longer.
    """
    trees, ends = _trees(windows, row_tokens)
    rows = sorted(_fill(trees, row_tokens), key=lambda row: -sum(map(len, row)))
    starts, begin = {}, 0  # of each tree, among all real tokens
    for tree in (tree for row in rows for tree in row):
        starts[tree] = begin
        begin += len(tree)
    cuts = batch_ends(
        np.array([sum(map(len, row)) for row in rows]), overhead=overhead, waste=waste
    )
    made = [_batch(rows[first:last], pad_id) for first, last in pairwise((0, *cuts))]
    places = [
        np.array(tree.path(end)[len(window.inputs) - len(window.targets) :], np.int64)
        + starts[tree]
        for window, (tree, end) in zip(windows, ends, strict=True)
    ]
    return _packed(made, windows, places)


def _packed(
    made: Sequence[Batch], windows: Sequence[Window], places: Sequence[NDArray[np.int64]]
) -> Packed:
    targets = [window.targets for window in windows]
    of = np.repeat(np.arange(len(windows)), list(map(len, targets)))
    return Packed(tuple(made), np.concatenate(places), np.concatenate(targets).astype(np.int64), of)


class _Tree:
    """Tokens that windows share: each stands after its parent, in the order in which windows
    brought them.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    def shared(self, inputs: Sequence[int]) -> int:
        """How many of the first tokens are there already."""
        return len(self._known(inputs))

    def add(self, inputs: Sequence[int]) -> int:
        """Takes a text in; the token where it ends."""
        known = self._known(inputs)
        node = known[-1] if known else -1
        for token in inputs[len(known) :]:
            self._children[node, token] = len(self)
            self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
            self.parents.append(node)
            self.token_ids.append(token)
            node = len(self) - 1
        return node

    def _known(self, inputs: Sequence[int]) -> list[int]:
        found: list[int] = []
        for token in inputs:
            child = self._children.get((found[-1] if found else -1, token))
            if child is None:
                break
            found.append(child)
        return found

    def path(self, node: int) -> list[int]:
        """From the root to a token."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def sees(self) -> NDArray[np.bool_]:
        """`[token, token]`: itself and its ancestors."""
        matrix = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                matrix[node] |= matrix[parent]
        return matrix


def _trees(
    windows: Sequence[Window], row_tokens: int
) -> tuple[list[_Tree], list[tuple[_Tree, int]]]:
    """The trees, and for each window its tree and the token where it ends.

    In alphabetical order neighbours share the most. Trees share rows anyway, so a text joins the
    last tree whatever they share, as long as that fits a row; a longer tree has to be worth its
    attention.
    """
    inputs = [window.inputs.tolist() for window in windows]
    trees: list[_Tree] = [_Tree()]
    ends: list[tuple[_Tree, int]] = [(trees[0], -1)] * len(windows)
    for index in sorted(range(len(windows)), key=inputs.__getitem__):
        text = inputs[index]
        shared = trees[-1].shared(text)
        size = len(trees[-1]) + len(text) - shared
        most = max(TREE_TOKENS, len(text) * 5 // 4) if 2 * shared > len(text) else row_tokens
        if len(trees[-1]) and shared < len(text) and size > most:
            trees.append(_Tree())
        ends[index] = trees[-1], trees[-1].add(text)
    return trees, ends


def _fill(trees: Sequence[_Tree], row_tokens: int) -> list[list[_Tree]]:
    """Trees in rows, the longest first, each into the first row that has room."""
    rows: list[list[_Tree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=len, reverse=True):
        place = next((row for row, left in enumerate(room) if left >= len(tree)), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[place].append(tree)
        room[place] -= len(tree)
    return rows


def _batch(rows: Sequence[Sequence[_Tree]], pad_id: int) -> Batch:
    lengths = [sum(map(len, row)) for row in rows]
    shape = len(rows), max(lengths)
    token_ids, depth = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    # Padding sees itself: no softmax over nothing.
    sees = np.repeat(np.eye(shape[1], dtype=bool)[None], len(rows), 0)
    for index, row in enumerate(rows):
        begin = 0
        for tree in row:
            place = slice(begin, begin + len(tree))
            token_ids[index, place], depth[index, place] = tree.token_ids, tree.depths
            sees[index, place, place] = tree.sees()
            begin += len(tree)
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    return Batch(token_ids, mask, sees, depth)


def cut_prefix_trees(texts: Sequence[Sequence[Window]], tokens: int) -> list[int]:
    """How many neighbours run together: about so many tokens once what they share is shared, at
    least one.

    Args:
        texts: the windows of each example.
        tokens: the most of a block, unless one example is more.
    """
    sizes: list[int] = []
    tree = _Tree()
    for windows in texts:
        inputs = [window.inputs.tolist() for window in windows]
        for text in inputs:
            tree.add(text)
        if not sizes or len(tree) > tokens:
            tree = _Tree()
            for text in inputs:
                tree.add(text)
            sizes.append(0)
        sizes[-1] += 1
    return sizes
