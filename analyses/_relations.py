"""How alike two states are, once the items are drawn: what the analysis similarity computes.

Most measures are the cosine of two matrices over items; some are sums over the singular values of
one small matrix. `Matrices` and `Maps` compare every two states of one plan, `CrossMatrices` and
`CrossMaps` every state of one capture with every state of another, over the same items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repsim.measures import cka, cosine_from_gram, subspace
from repsim.measures.dissimilarity import dissimilarities
from repsim.measures.neighbours import local_gram, nearest
from repsim.measures.subspace import Pair
from repsim.stats.per_sample import pack_symmetric, unpack_symmetric
from repsim.stats.subsample import TokenSubsample

Measure = Literal[
    "cka",
    "biased-cka",
    "minibatch-cka",
    "rbf-cka",
    "rsa",
    "mutual-knn",
    "cknna",
    "procrustes",
    "cca",
    "svcca",
    "pwcca",
]
Array = NDArray[np.float64]

DIRECTIONS = ("mutual-knn", "cknna")  # compare directions; a zero vector has none
MAPS = ("procrustes", "cca", "svcca", "pwcca")


def prepare_matrix(x: Array, measure: Measure, k: int, bandwidth: float) -> Array:
    """The matrix over items of which a measure takes cosines: `[item, unit]` → `[item, item]`."""
    centred = cka.subtract_mean(x)
    if not centred.any():  # undefined
        return np.zeros((len(x), len(x)))
    if measure == "cka":
        return cka.u_centre(cka.gram(centred))
    if measure == "biased-cka":
        return cka.gram(centred)
    if measure == "rbf-cka":
        return cka.u_centre(cka.rbf_gram(x, bandwidth))
    if measure == "rsa":
        return dissimilarities(x, "euclidean", "spearman")
    return nearest(x, k).astype(np.float64) if measure == "mutual-knn" else local_gram(x, k)


def prepare_map(x: Array, measure: Measure, variance: float) -> tuple[Array, Array]:
    """What a measure maps, `[item, component]`, and what weighs the maps, `[item, unit]`.

    Only pwcca has weights, the centred view; the other measures' have no units.
    """
    if measure == "procrustes":
        return subspace.unit_norm(x), x[:, :0]
    weights = cka.subtract_mean(x) if measure == "pwcca" else x[:, :0]
    return subspace.basis(x, variance if measure == "svcca" else 1.0), weights


@dataclass(frozen=True)
class Matrices:
    """Cosines of matrices over items.

    stack: `[state, item, item]`.
    samples: how many; a sample's items follow each other.
    lopsided: whether the matrices are not symmetric.
    """

    stack: Array
    samples: int
    lopsided: bool

    def estimate(self, drawn: TokenSubsample) -> tuple[Array, Array]:
        """Cosines, `[state, state]`, and each sample's influence, `[sample, state, state]`.

        A sample's items are rows and columns of a matrix; what these add to an inner product is the
        sample's part of it.
        """
        parts = self._row_products(self.stack)
        gram = parts.sum(0)
        parts = (
            parts + self._row_products(self.stack.swapaxes(1, 2)) if self.lopsided else 2 * parts
        )
        with np.errstate(invalid="ignore"):  # a state that does not vary is like no other: NaN
            parts /= np.sqrt(np.outer(np.diagonal(gram), np.diagonal(gram)))
        squares = np.diagonal(parts, axis1=1, axis2=2)
        cosine = cosine_from_gram(gram)
        return cosine, parts - cosine * (squares[:, :, None] + squares[:, None, :]) / 2

    def permuted(self, order: NDArray[np.int64]) -> Array:
        """Cosines with the second matrix of each pair in another order, to float32's rounding."""
        states = len(self.stack)
        cosine = self.unit.reshape(states, -1) @ self.permute(order).reshape(states, -1).T
        return unpack_symmetric(pack_symmetric(cosine.astype(np.float64)), states)

    def permute(self, order: NDArray[np.int64]) -> NDArray[np.float32]:
        """The matrices of norm one with their items in another order; valid until the next call."""
        rows, permuted = self._room
        for matrix, target in zip(self.unit, permuted, strict=True):  # `clip` avoids a copy
            np.take(matrix, order, axis=0, out=rows, mode="clip")
            np.take(rows, order, axis=1, out=target, mode="clip")
        return permuted

    @cached_property
    def _room(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Memory for one matrix and for all permuted ones, used again for every permutation."""
        return np.empty_like(self.unit[0]), np.empty_like(self.unit)

    @cached_property
    def unit(self) -> NDArray[np.float32]:
        """The matrices, each of norm one."""
        with np.errstate(invalid="ignore"):
            return (self.stack / np.linalg.norm(self.stack, axis=(1, 2), keepdims=True)).astype(
                np.float32
            )

    def _row_products(self, stack: Array) -> Array:
        """Inner products over each sample's rows, `[sample, state, state]`."""
        flat = _by_sample(stack, self.samples)
        return flat @ flat.swapaxes(1, 2)


def _by_sample(stack: Array, samples: int) -> Array:
    """`[state, item, item]` → `[sample, state, value]`, the rows of a sample's items."""
    return stack.reshape(len(stack), samples, -1).swapaxes(0, 1)


@dataclass(frozen=True)
class CrossMatrices:
    """Cosines of one capture's matrices with another's, over the same items.

    first, second: the two captures' matrices.
    """

    first: Matrices
    second: Matrices

    def estimate(self, drawn: TokenSubsample) -> tuple[Array, Array]:
        """Cosines, `[state, state_other]`, and each sample's influence, `[sample, state,
        state_other]`; as in `Matrices`.
        """
        products, squares, squares_other = self._products(self.first.stack, self.second.stack)
        gram, norms, norms_other = products.sum(0), squares.sum(0), squares_other.sum(0)

        # What a sample's rows add, and its columns.
        if self.first.lopsided:
            turned = (each.stack.swapaxes(1, 2) for each in (self.first, self.second))
            columns = self._products(*turned)
        else:
            columns = products, squares, squares_other
        products, squares, squares_other = (
            rows + more
            for rows, more in zip((products, squares, squares_other), columns, strict=True)
        )
        with np.errstate(invalid="ignore"):  # a state that does not vary is like no other: NaN
            scale = np.sqrt(np.outer(norms, norms_other))
            cosine = gram / scale
            shares = (squares / norms)[:, :, None] + (squares_other / norms_other)[:, None, :]
            return cosine, products / scale - cosine * shares / 2

    def permuted(self, order: NDArray[np.int64]) -> Array:
        """Cosines with the second capture's items in another order, to float32's rounding."""
        permuted = self.second.permute(order)
        cosine = (
            self.first.unit.reshape(len(self.first.stack), -1)
            @ permuted.reshape(len(permuted), -1).T
        )
        return cosine.astype(np.float64)

    def _products(self, stack: Array, other: Array) -> tuple[Array, Array, Array]:
        """Inner products over each sample's rows, `[sample, state, state_other]`, and those of each
        matrix with itself, `[sample, state]` and `[sample, state_other]`.
        """
        rows, rows_other = (_by_sample(each, self.first.samples) for each in (stack, other))
        squares, squares_other = (
            np.einsum("nsv,nsv->ns", each, each) for each in (rows, rows_other)
        )
        return rows @ rows_other.swapaxes(1, 2), squares, squares_other


@dataclass(frozen=True)
class Maps:
    """Sums over the singular values of two bases' product.

    views: per state, what is mapped and what weighs the maps, from `prepare_map`.
    measure: one of `MAPS`; pwcca is the mean of both directions.
    """

    views: list[tuple[Array, Array]]
    measure: Measure

    def require_items(self, items: int) -> None:
        """Refuses canonical correlations that are 1 whatever the states hold.

        Raises:
            ValueError: too few items for the two states with most components.
        """
        ranks = sorted(mapped.shape[1] for mapped, _ in self.views)[-2:]
        _require_items(ranks, items, self.measure)

    def estimate(self, drawn: TokenSubsample) -> tuple[Array, Array]:
        """Similarities, `[state, state]`, and each sample's influence, `[sample, state, state]`."""
        pairs, states = self._pairs(self.views), len(self.views)
        value = np.array([pair.value for pair in pairs])
        influence = np.stack([drawn.per_sample(pair.influence) for pair in pairs], axis=-1)
        return unpack_symmetric(value, states), unpack_symmetric(influence, states)

    def permuted(self, order: NDArray[np.int64]) -> Array:
        """Similarities with the second view of each pair in another order."""
        pairs = self._pairs([(mapped[order], view[order]) for mapped, view in self.views])
        return unpack_symmetric(np.array([pair.value for pair in pairs]), len(self.views))

    def _pairs(self, others: list[tuple[Array, Array]]) -> list[Pair]:
        """Every two states, the second of `others`, in the order of `pack_symmetric`."""
        return [
            _pair(self.views[a], others[b], self.measure)
            for a, b in combinations_with_replacement(range(len(self.views)), 2)
        ]


@dataclass(frozen=True)
class CrossMaps:
    """Sums over the singular values of the products of one capture's bases with another's.

    views, others: per state of each capture, what is mapped and what weighs the maps, from
        `prepare_map`.
    measure: one of `MAPS`.
    """

    views: list[tuple[Array, Array]]
    others: list[tuple[Array, Array]]
    measure: Measure

    def require_items(self, items: int) -> None:
        """Refuses canonical correlations that are 1 whatever the states hold.

        Raises:
            ValueError: too few items for the two states with most components.
        """
        ranks = [max(mapped.shape[1] for mapped, _ in views) for views in (self.views, self.others)]
        _require_items(ranks, items, self.measure)

    def estimate(self, drawn: TokenSubsample) -> tuple[Array, Array]:
        """Similarities, `[state, state_other]`, and each sample's influence, `[sample, state,
        state_other]`.
        """
        pairs = self._pairs(self.others)
        value = np.array([[pair.value for pair in row] for row in pairs])
        influence = [[drawn.per_sample(pair.influence) for pair in row] for row in pairs]
        return value, np.moveaxis(np.array(influence), -1, 0)

    def permuted(self, order: NDArray[np.int64]) -> Array:
        """Similarities with the second view of each pair in another order."""
        pairs = self._pairs([(mapped[order], view[order]) for mapped, view in self.others])
        return np.array([[pair.value for pair in row] for row in pairs])

    def _pairs(self, others: list[tuple[Array, Array]]) -> list[list[Pair]]:
        return [[_pair(view, other, self.measure) for other in others] for view in self.views]


def _require_items(ranks: Sequence[int], items: int, measure: Measure) -> None:
    if measure != "procrustes" and sum(ranks) >= items - 1:
        raise ValueError(
            f"{items} items for {' and '.join(map(str, ranks))} components: "
            "correlations of 1 by construction; ask for more items"
        )


def _pair(first: tuple[Array, Array], second: tuple[Array, Array], measure: Measure) -> Pair:
    """The similarity of two states; for pwcca the mean of both directions."""
    (x, x_weights), (y, y_weights) = first, second
    if measure == "procrustes":
        return subspace.rotation(x, y)
    if measure != "pwcca":
        return subspace.canonical(x, y)
    there, back = subspace.canonical(x, y, x_weights), subspace.canonical(y, x, y_weights)
    return Pair((there.value + back.value) / 2, (there.influence + back.influence) / 2)


Comparison = Matrices | Maps | CrossMatrices | CrossMaps


def prepare_comparison(
    draws: Sequence[TokenSubsample],
    measure: Measure,
    neighbours: int,
    variance: float,
    bandwidth: float,
) -> Comparison:
    """What compares the states at drawn items: of one subsample every two states, of two every
    state of the first with every state of the second.

    Args:
        draws: of one capture, or of two at the same items.
        measure: all but minibatch-cka, which holds no items.
        neighbours, variance, bandwidth: options of some measures.
    Raises:
        ValueError: an option that does not fit, or too few items.
    """
    if measure in MAPS:
        views = [
            [prepare_map(state.astype(np.float64), measure, variance) for state in drawn.states]
            for drawn in draws
        ]
        maps = (
            Maps(views[0], measure) if len(views) == 1 else CrossMaps(views[0], views[1], measure)
        )
        maps.require_items(len(draws[0].sample))
        return maps
    stacks = [
        np.stack(
            [
                prepare_matrix(state.astype(np.float64), measure, neighbours, bandwidth)
                for state in drawn.states
            ]
        )
        for drawn in draws
    ]
    matrices = [Matrices(stack, draws[0].samples, measure in DIRECTIONS) for stack in stacks]
    return matrices[0] if len(matrices) == 1 else CrossMatrices(*matrices)
