"""Do two states hold the same items apart in the same way? Measures of what is between items, not
of directions.

Three families share this module. Most measures are the cosine of two matrices over items (centred
Gram matrices, dissimilarities, neighbourhoods); some are sums over the singular values of a small
matrix (canonical correlations, Procrustes); minibatch CKA streams over all tokens. Each gives every
pair of states, and what each sample does to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.errors import RepsimError
from repsim.measures import cka, cosine_from_gram, dissimilarity, neighbours, sink_tokens, subspace
from repsim.measures.subspace import Pair
from repsim.schema import STATE
from repsim.stats import results, subsample
from repsim.stats.bootstrap import Estimate
from repsim.stats.per_sample import (
    SampleStatistic,
    StateSource,
    collect,
    pack_symmetric,
    unpack_symmetric,
)
from repsim.stats.subsample import TokenSubsample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

DESCRIPTION: dict[Measure, str] = {
    "cka": "debiased linear CKA",
    "biased-cka": "linear CKA (biased)",
    "minibatch-cka": "minibatch linear CKA, within samples",
    "rbf-cka": "debiased RBF CKA",
    "rsa": "RSA (Spearman, Euclidean)",
    "mutual-knn": "mutual nearest neighbours",
    "cknna": "CKNNA",
    "procrustes": "Procrustes (cosine of the angle)",
    "cca": "mean canonical correlation",
    "svcca": "SVCCA",
    "pwcca": "PWCCA, mean of both directions",
}
DIRECTIONS = ("mutual-knn", "cknna")  # compare directions, which a zero vector has none of
OPTION = {
    "mutual-knn": "neighbours",
    "cknna": "neighbours",
    "svcca": "variance",
    "rbf-cka": "bandwidth",
}
MAPS = ("procrustes", "cca", "svcca", "pwcca")
# A map between hundreds of units takes more items than a matrix over items does.
MATRIX_ITEMS, MAP_ITEMS = 1024, 4096
PERMUTATIONS = 100
BATCH = 256  # tokens of one sample that minibatch CKA compares at a time


def _minibatch(states: NDArray[Any]) -> Array:
    """Weighted HSICs within a sample, without its sinks, and the weight: tokens in minibatches of
    at least four.
    """
    kept = states[:, ~sink_tokens(states)]
    rest = kept.shape[1] % BATCH
    return np.append(
        pack_symmetric(cka.minibatch_hsic(kept, BATCH)), kept.shape[1] - (rest if rest < 4 else 0)
    )


# What a capture that keeps no states takes of each sample for this analysis: enough for
# `minibatch-cka`.
STATISTICS = {"minibatch": _minibatch}


def compute(
    capture: StateSource,
    *,
    plan: str = "baseline",
    measure: Measure = "cka",
    items: int | None = None,
    sinks: bool = False,
    neighbours: int = 10,
    variance: float = 0.99,
    bandwidth: float = 1.0,
    resamples: int = 1000,
    permutations: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Similarity of every two states of a plan by a measure that ignores rotations: CKA, RSA,
    Procrustes, CCA, ...

    1: the same up to what the measure ignores; about 0, or what `null_mean` says: unrelated.
    `repsim.measures` has each measure's range, invariances and source. minibatch-cka compares the
    tokens of one text with each other, streams over all of them, and is the one that a capture with
    --keep none --statistics similarity can give; the others compare tokens of all texts, a random
    subsample with equally many from each.

    Standard error and interval come from a bootstrap over samples, to first order: what each sample
    adds to the value (minibatch-cka: exactly). In simulations they were right for cka, biased-cka
    and procrustes, 12 % too small for rsa and rbf-cka, 1.3 to 1.4 times too large for mutual-knn,
    cknna and cca, 1.4 times too small for pwcca; svcca has none (NaN). The null exchanges whole
    samples. `p_value` is that of the largest similarity of any two states in a shuffle, so that it
    holds for all pairs at once; `calibrated` is 0 where a similarity is the null's mean, 1 at 1.

    mutual-knn and cknna compare directions: tokens at which a state is a zero vector, which has
    none, are not drawn, and `left_out_tokens` says how many these were. To the other measures a
    zero vector is a point like any other.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        measure: cka (debiased linear), biased-cka, minibatch-cka, rbf-cka (debiased), rsa
            (Spearman, Euclidean), mutual-knn, cknna, procrustes (cosine of the angular distance),
            cca, svcca, pwcca.
        items: tokens to compare on; by default 1024, and 4096 for procrustes, cca, svcca and pwcca.
        sinks: compare on attention sinks too: first tokens and those over 3 times as long as the
            sample's median.
        neighbours: of mutual-knn and cknna.
        variance: share of each state's variance that svcca compares.
        bandwidth: of rbf-cka, in medians of the distances between items.
        resamples: draws of the bootstrap.
        permutations: shuffles of the null; by default 100, and none for procrustes, cca, svcca and
            pwcca, where each costs as much as the matrix itself, and for minibatch-cka, which holds
            no items.
        seed: of the draws of items and of shuffles.
    Returns:
        `similarity`, `standard_error`, `low` and `high` over (state, state_other), and with
        permutations `null_mean`, `calibrated` and `p_value`; coordinates `layer` and `layer_other`.
    Raises:
        RepsimError: an option that does not fit, a plan of fewer than two states, or too few
            tokens.
    """
    asked: dict[str, Any] = {"neighbours": neighbours, "variance": variance, "bandwidth": bandwidth}
    found, null, facts = estimate(
        capture,
        plan,
        measure,
        count=items,
        sinks=sinks,
        resamples=resamples,
        permutations=permutations,
        seed=seed,
        **asked,
    )
    steps, dims = capture.steps(plan), (STATE, results.STATE_OTHER)
    variables = results.variables("similarity", dims, found, bounds=(-1, 1))
    if len(null):
        other = ~np.eye(len(steps), dtype=bool)
        variables |= {
            "null_mean": (dims, null.mean(0)),
            "calibrated": (dims, stats.chance_corrected(found.value, null)),
            "p_value": (
                dims,
                stats.max_statistic_p_values(
                    np.where(other, found.value, np.nan), np.where(other, null, np.nan)
                ),
            ),
        }
    return xr.Dataset(
        variables,
        coords={**results.layer_coordinate(steps), **results.layer_coordinate(steps, results.STATE_OTHER)},
        attrs=results.attributes(
            capture,
            plan,
            "similarity",
            DESCRIPTION[measure],
            measure=measure,
            sinks="kept" if sinks else "left out",
            permutations=len(null),
            seed=seed,
            **{OPTION[measure]: asked[OPTION[measure]]} if measure in OPTION else {},
            **facts,
        ),
    )


def plot(*found: xr.Dataset) -> Figure:
    """Heat map of each matrix, side by side; see `repsim.plotting.similarity_matrices`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.similarity_matrices(*found)


def estimate(
    capture: StateSource,
    plan: str,
    measure: Measure = "cka",
    *,
    count: int | None = None,
    sinks: bool = False,
    neighbours: int = 10,
    variance: float = 0.99,
    bandwidth: float = 1.0,
    resamples: int = 1000,
    permutations: int | None = None,
    seed: int = 0,
) -> tuple[Estimate, Array, dict[str, int]]:
    """The matrix with its replicates, the null `[permutation, state, state]`, and the numbers of
    tokens and samples.
    """
    if measure not in get_args(Measure):
        raise RepsimError(f"measure={measure!r}: choose {', '.join(get_args(Measure))}")
    results.check_counts(resamples=resamples, items=count, permutations=permutations, seed=seed)
    states = len(results.require_two_states(capture, plan))
    if measure == "minibatch-cka":
        if permutations or sinks or count:
            raise RepsimError(
                "measure='minibatch-cka': takes all tokens but sinks, and holds no items to shuffle"
            )
        return _streamed(capture, plan, states, resamples)
    default, permutations_default = (
        (MAP_ITEMS, 0) if measure in MAPS else (MATRIX_ITEMS, PERMUTATIONS)
    )
    directions = measure in DIRECTIONS
    drawn = subsample.draw_tokens(
        capture, plan, count or default, sinks=sinks, directions=directions, seed=seed
    )
    states_at_items = (state.astype(np.float64) for state in drawn.states)
    compare: Any
    try:
        if measure in MAPS:
            compare = _Maps([_map(x, measure, variance) for x in states_at_items], measure)
            compare.check(len(drawn.sample))
        else:
            matrices = [_matrix(x, measure, neighbours, bandwidth) for x in states_at_items]
            compare = _Matrices(np.stack(matrices), drawn.samples, measure in DIRECTIONS)
    except ValueError as wrong:
        raise RepsimError(f"measure={measure!r}: {wrong}") from None
    value, influence = compare.estimate(drawn)
    found = stats.bootstrap(stats.linearised(value, influence), drawn.samples, resamples=resamples)
    if measure == "svcca":  # how many components hold the variance changes from draw to draw
        found = Estimate(
            found.value, np.full_like(found.replicates, np.nan), found.samples, found.skewed
        )
    wanted = permutations_default if permutations is None else permutations
    null = [
        compare.shuffled(order) for order in stats.permute_samples(drawn.sample, wanted, seed=seed)
    ]
    facts = {"tokens": len(drawn.sample), "samples": drawn.samples, "left_out": drawn.left_out}
    return found, np.array(null).reshape(-1, states, states), facts


def _streamed(
    capture: StateSource, plan: str, states: int, resamples: int
) -> tuple[Estimate, Array, dict[str, int]]:
    _, values = collect(capture, plan, SampleStatistic("similarity.minibatch", _minibatch))
    values = values[values[:, -1] > 0]
    if not len(values):
        raise RepsimError(f"plan {plan!r}: no sample has four tokens that are no attention sinks")
    means = stats.bootstrap(
        stats.ratio_of_sums(values[:, :-1], values[:, -1]), len(values), resamples=resamples
    )
    found = means.map(lambda array: cosine_from_gram(unpack_symmetric(array, states)))
    return (
        found,
        np.empty((0, states, states)),
        {"tokens": int(values[:, -1].sum()), "samples": len(values)},
    )


def _matrix(x: Array, measure: Measure, k: int, bandwidth: float) -> Array:
    """What a measure compares of a view, `[item, item]`: its value is the cosine of two of these."""
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
        return dissimilarity.dissimilarities(x, "euclidean", "spearman")
    return (
        neighbours.nearest(x, k).astype(np.float64)
        if measure == "mutual-knn"
        else neighbours.local_gram(x, k)
    )


def _map(x: Array, measure: Measure, variance: float) -> tuple[Array, Array]:
    """What a measure makes maps of, `[item, component]`, and what weighs them: for pwcca, the
    centred view.
    """
    if measure == "procrustes":
        return subspace.unit_norm(x), x[:, :0]
    weights = cka.subtract_mean(x) if measure == "pwcca" else x[:, :0]
    return subspace.basis(x, variance if measure == "svcca" else 1.0), weights


@dataclass(frozen=True)
class _Matrices:
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

        A sample's items are rows and columns of a matrix; what these add to an inner product is its
        part of it.
        """
        parts = self._rows(self.stack)
        gram = parts.sum(0)
        parts = parts + self._rows(self.stack.swapaxes(1, 2)) if self.lopsided else 2 * parts
        with np.errstate(invalid="ignore"):  # a state that does not vary is like no other: NaN
            parts /= np.sqrt(np.outer(np.diagonal(gram), np.diagonal(gram)))
        own = np.diagonal(parts, axis1=1, axis2=2)
        cosine = cosine_from_gram(gram)
        return cosine, parts - cosine * (own[:, :, None] + own[:, None, :]) / 2

    def shuffled(self, order: NDArray[np.int64]) -> Array:
        """Cosines with the second matrix of each pair in another order, to float32's rounding."""
        rows, other = self._room
        for matrix, moved in zip(self._unit, other, strict=True):  # `clip` spares a copy
            np.take(matrix, order, axis=0, out=rows, mode="clip")
            np.take(rows, order, axis=1, out=moved, mode="clip")
        cosine = self._unit.reshape(len(other), -1) @ other.reshape(len(other), -1).T
        return unpack_symmetric(pack_symmetric(cosine.astype(np.float64)), len(other))

    @cached_property
    def _room(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.empty_like(self._unit[0]), np.empty_like(self._unit)

    @cached_property
    def _unit(self) -> NDArray[np.float32]:
        """The matrices, each of norm one."""
        with np.errstate(invalid="ignore"):
            return (self.stack / np.linalg.norm(self.stack, axis=(1, 2), keepdims=True)).astype(
                np.float32
            )

    def _rows(self, stack: Array) -> Array:
        """Inner products over each sample's rows, `[sample, state, state]`."""
        flat = stack.reshape(len(stack), self.samples, -1).swapaxes(0, 1)
        return flat @ flat.swapaxes(1, 2)


@dataclass(frozen=True)
class _Maps:
    """Sums over the singular values of two bases' product.

    views: of each state what is mapped, and what weighs the maps.
    measure: one of `MAPS`; pwcca is the mean of both directions.
    """

    views: list[tuple[Array, Array]]
    measure: Measure

    def check(self, items: int) -> None:
        """Refuses canonical correlations that are 1 whatever the states hold."""
        ranks = sorted(mapped.shape[1] for mapped, _ in self.views)[-2:]
        if self.measure != "procrustes" and sum(ranks) >= items - 1:
            raise ValueError(
                f"{items} items for {' and '.join(map(str, ranks))} components: correlations of 1 by construction; "
                "ask for more items"
            )

    def estimate(self, drawn: TokenSubsample) -> tuple[Array, Array]:
        """Similarities, `[state, state]`, and each sample's influence, `[sample, state, state]`."""
        found = self._pairs(self.views)
        influence = np.stack([drawn.per_sample(pair.influence) for pair in found], axis=-1)
        states = len(self.views)
        return unpack_symmetric(np.array([pair.value for pair in found]), states), unpack_symmetric(
            influence, states
        )

    def shuffled(self, order: NDArray[np.int64]) -> Array:
        """Similarities with the second view of each pair in another order."""
        pairs = self._pairs([(mapped[order], view[order]) for mapped, view in self.views])
        return unpack_symmetric(np.array([pair.value for pair in pairs]), len(self.views))

    def _pairs(self, others: list[tuple[Array, Array]]) -> list[Pair]:
        return [
            self._pair(self.views[a], others[b])
            for a, b in combinations_with_replacement(range(len(self.views)), 2)
        ]

    def _pair(self, one: tuple[Array, Array], other: tuple[Array, Array]) -> Pair:
        if self.measure == "procrustes":
            return subspace.rotation(one[0], other[0])
        if self.measure != "pwcca":
            return subspace.canonical(one[0], other[0])
        there, back = (
            subspace.canonical(one[0], other[0], one[1]),
            subspace.canonical(other[0], one[0], other[1]),
        )
        return Pair((there.value + back.value) / 2, (there.influence + back.influence) / 2)
