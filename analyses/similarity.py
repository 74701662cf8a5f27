"""Are the same items alike in two states? Similarities that compare relations between items.

Three families share this module. Most measures are the cosine of two matrices over items (centred
Gram matrices, dissimilarities, neighbourhoods); some are sums over the singular values of a small
matrix (canonical correlations, Procrustes); minibatch CKA streams over all tokens. Each gives every
pair of states a value, and each sample its influence on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim import stats
from repsim.errors import RepsimError
from repsim.measures import cka, cosine_from_gram, sink_tokens, subspace
from repsim.measures.dissimilarity import dissimilarities
from repsim.measures.neighbours import local_gram, nearest
from repsim.measures.subspace import Pair
from repsim.schema import STATE
from repsim.stats import results
from repsim.stats.bootstrap import Estimate
from repsim.stats.per_sample import (
    SampleStatistic,
    StateSource,
    collect,
    pack_symmetric,
    unpack_symmetric,
)
from repsim.stats.subsample import TokenSubsample, draw_tokens

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
HEAT_MAPS = True  # of its figure, for --vmin and --vmax

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
DIRECTIONS = ("mutual-knn", "cknna")  # compare directions; a zero vector has none
# The option of `compute` that belongs to one measure alone.
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
    """Weighted HSICs within a sample, without its sinks, `[value]`, and their weight.

    The weight is the number of tokens in minibatches of at least four.
    """
    kept = states[:, ~sink_tokens(states)]
    rest = kept.shape[1] % BATCH
    weight = kept.shape[1] - (rest if rest < 4 else 0)
    return np.append(pack_symmetric(cka.minibatch_hsic(kept, BATCH)), weight)


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

    1: the same up to what the measure ignores; about 0, or about `null_mean`: unrelated.
    `repsim.measures` has each measure's formula, range, invariances and source. minibatch-cka
    compares the tokens of one text with each other, streams over all of them, and works on a
    capture with --keep none --statistics similarity; the others compare tokens of all texts, a
    random subsample with equally many from each.

    Standard error and interval come from a bootstrap over samples, to first order: how much each
    sample adds to the value (minibatch-cka: exactly). In simulations they were right for cka,
    biased-cka and procrustes, 12 % too small for rsa and rbf-cka, 1.3 to 1.4 times too large for
    mutual-knn, cknna and cca, 1.4 times too small for pwcca; svcca has none (NaN). The null
    exchanges whole samples. `p_value` compares with the largest similarity of any two states in a
    permutation, so it holds for all pairs at once; `calibrated` is 0 where a similarity equals the
    null's mean, and 1 at 1.

    mutual-knn and cknna compare directions: tokens at which a state is a zero vector, which has
    none, are not drawn, and `left_out_tokens` says how many these were. For the other measures a
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
    options: dict[str, Any] = {
        "neighbours": neighbours,
        "variance": variance,
        "bandwidth": bandwidth,
    }
    matrix, null, facts = estimate(
        capture,
        plan,
        measure,
        items=items,
        sinks=sinks,
        resamples=resamples,
        permutations=permutations,
        seed=seed,
        **options,
    )
    steps, dims = capture.steps(plan), (STATE, results.STATE_OTHER)
    variables = results.variables("similarity", dims, matrix, bounds=(-1, 1))
    if len(null):
        # A state with itself is not a comparison.
        different = ~np.eye(len(steps), dtype=bool)
        p_value = stats.max_statistic_p_values(
            np.where(different, matrix.value, np.nan), np.where(different, null, np.nan)
        )
        variables |= {
            "null_mean": (dims, null.mean(0)),
            "calibrated": (dims, stats.chance_corrected(matrix.value, null)),
            "p_value": (dims, p_value),
        }
    return xr.Dataset(
        variables,
        coords={
            **results.layer_coordinate(steps),
            **results.layer_coordinate(steps, results.STATE_OTHER),
        },
        attrs=results.attributes(
            capture,
            plan,
            "similarity",
            DESCRIPTION[measure],
            measure=measure,
            sinks="kept" if sinks else "left out",
            permutations=len(null),
            resamples=resamples,
            seed=seed,
            **{OPTION[measure]: options[OPTION[measure]]} if measure in OPTION else {},
            **facts,
        ),
    )


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Means within and between groups of neighbouring states; see
    `repsim.analyses.clusters.summarise_similarity`.
    """
    from repsim.analyses import clusters  # here, as it uses this module

    table: pd.DataFrame = clusters.summarise_similarity(result, "similarity")
    return table


def plot(*datasets: xr.Dataset) -> Figure:
    """Heat map of each matrix, side by side; see `repsim.plotting.similarity_matrices`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.similarity_matrices(*datasets)


def estimate(
    capture: StateSource,
    plan: str,
    measure: Measure = "cka",
    *,
    items: int | None = None,
    sinks: bool = False,
    neighbours: int = 10,
    variance: float = 0.99,
    bandwidth: float = 1.0,
    resamples: int = 1000,
    permutations: int | None = None,
    seed: int = 0,
) -> tuple[Estimate, Array, dict[str, int]]:
    """The similarity matrix with its replicates, its null, and what they are over.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        measure: as in `compute`, like the options that follow.
    Returns:
        `[state, state]` with replicates; `[permutation, state, state]`, float64; and the numbers of
        tokens, samples and (for measures on drawn tokens) tokens left out.
    Raises:
        RepsimError: as `compute`.
    """
    # Refuse what does not fit; minibatch CKA holds no items and goes its own way.
    if measure not in get_args(Measure):
        raise RepsimError(f"measure={measure!r}: choose {', '.join(get_args(Measure))}")
    results.check_counts(resamples=resamples, items=items, permutations=permutations, seed=seed)
    states = len(results.require_two_states(capture, plan))
    if measure == "minibatch-cka":
        if permutations or sinks or items:
            raise RepsimError(
                "measure='minibatch-cka': takes all tokens but sinks, and holds no items to shuffle"
            )
        return _streamed(capture, plan, states, resamples)

    # Draw the items, and prepare each state's view of them.
    default_items, default_permutations = (
        (MAP_ITEMS, 0) if measure in MAPS else (MATRIX_ITEMS, PERMUTATIONS)
    )
    drawn = draw_tokens(
        capture,
        plan,
        items or default_items,
        sinks=sinks,
        directions=measure in DIRECTIONS,
        seed=seed,
    )
    views = (state.astype(np.float64) for state in drawn.states)
    comparison: _Maps | _Matrices
    try:
        if measure in MAPS:
            comparison = _Maps([_prepare_map(x, measure, variance) for x in views], measure)
            comparison.require_items(len(drawn.sample))
        else:
            matrices = [_prepare_matrix(x, measure, neighbours, bandwidth) for x in views]
            comparison = _Matrices(np.stack(matrices), drawn.samples, measure in DIRECTIONS)
    except ValueError as problem:
        raise RepsimError(f"measure={measure!r}: {problem}") from None

    # Compare every two states, and resample the samples by their influences.
    value, influence = comparison.estimate(drawn)
    matrix = stats.bootstrap(stats.linearised(value, influence), drawn.samples, resamples=resamples)
    if measure == "svcca":  # how many components hold the variance changes from draw to draw
        unknown = np.full_like(matrix.replicates, np.nan)
        matrix = Estimate(matrix.value, unknown, matrix.samples, matrix.skewed)

    # Compare again with the samples of the second state exchanged, for the null.
    orders = stats.permute_samples(
        drawn.sample, default_permutations if permutations is None else permutations, seed=seed
    )
    null = [comparison.permuted(order) for order in orders]
    facts = {"tokens": len(drawn.sample), "samples": drawn.samples, "left_out": drawn.left_out}
    return matrix, np.array(null).reshape(-1, states, states), facts


def _streamed(
    capture: StateSource, plan: str, states: int, resamples: int
) -> tuple[Estimate, Array, dict[str, int]]:
    """`estimate` of minibatch CKA: sums over the samples of the capture, and an empty null."""
    _, values = collect(capture, plan, SampleStatistic("similarity.minibatch", _minibatch))
    values = values[values[:, -1] > 0]
    if not len(values):
        raise RepsimError(f"plan {plan!r}: no sample has four tokens that are no attention sinks")
    means = stats.bootstrap(
        stats.ratio_of_sums(values[:, :-1], values[:, -1]), len(values), resamples=resamples
    )
    matrix = means.map(lambda array: cosine_from_gram(unpack_symmetric(array, states)))
    facts = {"tokens": int(values[:, -1].sum()), "samples": len(values)}
    return matrix, np.empty((0, states, states)), facts


def _prepare_matrix(x: Array, measure: Measure, k: int, bandwidth: float) -> Array:
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


def _prepare_map(x: Array, measure: Measure, variance: float) -> tuple[Array, Array]:
    """What a measure maps, `[item, component]`, and what weighs the maps, `[item, unit]`.

    Only pwcca has weights, the centred view; the other measures' have no units.
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
        rows, permuted = self._room
        for matrix, target in zip(self._unit, permuted, strict=True):  # `clip` avoids a copy
            np.take(matrix, order, axis=0, out=rows, mode="clip")
            np.take(rows, order, axis=1, out=target, mode="clip")
        states = len(permuted)
        cosine = self._unit.reshape(states, -1) @ permuted.reshape(states, -1).T
        return unpack_symmetric(pack_symmetric(cosine.astype(np.float64)), states)

    @cached_property
    def _room(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Memory for one matrix and for all permuted ones, used again for every permutation."""
        return np.empty_like(self._unit[0]), np.empty_like(self._unit)

    @cached_property
    def _unit(self) -> NDArray[np.float32]:
        """The matrices, each of norm one."""
        with np.errstate(invalid="ignore"):
            return (self.stack / np.linalg.norm(self.stack, axis=(1, 2), keepdims=True)).astype(
                np.float32
            )

    def _row_products(self, stack: Array) -> Array:
        """Inner products over each sample's rows, `[sample, state, state]`."""
        flat = stack.reshape(len(stack), self.samples, -1).swapaxes(0, 1)
        return flat @ flat.swapaxes(1, 2)


@dataclass(frozen=True)
class _Maps:
    """Sums over the singular values of two bases' product.

    views: per state, what is mapped and what weighs the maps, from `_prepare_map`.
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
        if self.measure != "procrustes" and sum(ranks) >= items - 1:
            raise ValueError(
                f"{items} items for {' and '.join(map(str, ranks))} components: "
                "correlations of 1 by construction; ask for more items"
            )

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
            self._pair(self.views[a], others[b])
            for a, b in combinations_with_replacement(range(len(self.views)), 2)
        ]

    def _pair(self, first: tuple[Array, Array], second: tuple[Array, Array]) -> Pair:
        """The similarity of two states; for pwcca the mean of both directions."""
        (x, x_weights), (y, y_weights) = first, second
        if self.measure == "procrustes":
            return subspace.rotation(x, y)
        if self.measure != "pwcca":
            return subspace.canonical(x, y)
        there, back = subspace.canonical(x, y, x_weights), subspace.canonical(y, x, y_weights)
        return Pair((there.value + back.value) / 2, (there.influence + back.influence) / 2)
