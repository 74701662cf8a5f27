"""Are the same items alike in two states? Similarities that compare relations between items.

Three families share this module. Most measures are the cosine of two matrices over items (centred
Gram matrices, dissimilarities, neighbourhoods); some are sums over the singular values of a small
matrix (canonical correlations, Procrustes); minibatch CKA streams over all tokens. Each gives every
pair of states a value, and each sample its influence on it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import pandas as pd
import xarray as xr
from array_api_compat import array_namespace
from numpy.typing import NDArray

from repsim import stats
from repsim.analyses._relations import DIRECTIONS, MAPS, Measure, prepare_comparison
from repsim.errors import RepsimError
from repsim.measures import cka, cosine_from_gram, sink_tokens
from repsim.registry import OtherCapture
from repsim.schema import STATE
from repsim.stats import results
from repsim.stats.bootstrap import Estimate
from repsim.stats.per_sample import (
    SampleStatistic,
    StateSource,
    TextSource,
    collect,
    pack_symmetric,
    runs_anywhere,
    unpack_symmetric,
)
from repsim.stats.shared_tokens import (
    SharedTokens,
    draw_shared_tokens,
    each_shared_sample,
    match_tokens,
)
from repsim.stats.subsample import TokenSubsample, draw_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
# The option of `compute` that belongs to one measure alone.
OPTION = {
    "mutual-knn": "neighbours",
    "cknna": "neighbours",
    "svcca": "variance",
    "rbf-cka": "bandwidth",
}
# A map between hundreds of units takes more items than a matrix over items does.
MATRIX_ITEMS, MAP_ITEMS = 1024, 4096
PERMUTATIONS = 100
MOST_ROWS = 12  # of a summary
BATCH = 256  # tokens of one sample that minibatch CKA compares at a time

log = logging.getLogger("repsim")


@runs_anywhere
def _minibatch(states: Any) -> Any:
    """Weighted HSICs within a sample, without its sinks, `[value]`, and their weight.

    The weight is the number of tokens in minibatches of at least four.
    """
    xp = array_namespace(states)
    if states.ndim > 3:  # samples have different numbers of sinks
        return xp.stack([_minibatch(sample) for sample in states])
    kept = states[:, ~sink_tokens(states)]
    rest = kept.shape[1] % BATCH
    sums = pack_symmetric(cka.minibatch_hsic(kept, BATCH))
    weight = xp.full_like(sums[:1], kept.shape[1] - (rest if rest < 4 else 0))
    return xp.concat([sums, weight])


# What a capture that keeps no states takes of each sample for this analysis: enough for
# `minibatch-cka`.
STATISTICS = {"minibatch": _minibatch}


def compute(
    capture: StateSource,
    *,
    plan: str = "baseline",
    with_: OtherCapture = None,
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

    With another capture, every state of this one is compared with every state of that, at the
    tokens that both have: the same text (by its key), position and token id. Depths and widths may
    differ, and a plan is the one of its name in each. Models that cut texts into other tokens are
    compared on captures with --tokens mean or --tokens last, one state per text, and with --sinks.
    Texts that only one capture has are left out and counted.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        with_: another capture, whose states are the columns.
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
        RepsimError: an option that does not fit, a plan of fewer than two states, too few tokens,
            or captures without any in common.
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
        other=with_,
        **options,
    )
    columns = capture if with_ is None else with_
    steps, steps_other = capture.steps(plan), columns.steps(plan)
    dims = STATE, results.STATE_OTHER
    variables = results.variables("similarity", dims, matrix, bounds=(-1, 1))
    if len(null):
        # A state with itself is not a comparison.
        different = (
            ~np.eye(len(steps), dtype=bool) if with_ is None else np.ones(null.shape[1:], bool)
        )
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
            **results.layer_coordinate(steps_other, results.STATE_OTHER),
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
            **_describe_other(with_, plan),
            **facts,
        ),
    )


def plot(*datasets: xr.Dataset) -> Figure:
    """Heat map of each matrix, side by side; see `repsim.plotting.similarity_matrices`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.similarity_matrices(*datasets)


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Means within and between groups of neighbouring states; of two captures, the most similar
    state of the other one for each state.

    Args:
        result: what `compute` gave.
    Returns:
        Of one capture, see `repsim.analyses.clusters.summarise_similarity`. Of two: columns layer,
        layer_other, similarity, similarity_low and similarity_high; of many states, `MOST_ROWS` at
        even distances.
    """
    from repsim.analyses import clusters  # here, as it uses this module

    if "model_other" not in result.attrs:
        table: pd.DataFrame = clusters.summarise_similarity(result, "similarity")
        return table
    matrix = result["similarity"].values
    rows = np.flatnonzero(np.isfinite(matrix).any(1))
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).round().astype(int)]
    columns = np.nanargmax(matrix[rows], axis=1)
    variables = {"similarity": "similarity", "similarity_low": "low", "similarity_high": "high"}
    return pd.DataFrame(
        {
            "layer": result["layer"].values[rows],
            "layer_other": result["layer_other"].values[columns],
            **{name: result[of].values[rows, columns] for name, of in variables.items()},
        }
    )


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
    other: TextSource | None = None,
) -> tuple[Estimate, Array, dict[str, int]]:
    """The similarity matrix with its replicates, its null, and what they are over.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        measure: as in `compute`, like the options that follow.
        other: another capture, whose states are the columns; `capture` is then a `TextSource` too.
    Returns:
        `[state, state]` with replicates; `[permutation, state, state]`, float64; and the numbers of
        tokens, samples and (for measures on drawn tokens) tokens left out, and of two captures the
        numbers of samples that only one of them has.
    Raises:
        RepsimError: as `compute`.
    """
    # Refuse what does not fit; minibatch CKA holds no items and goes its own way.
    if measure not in get_args(Measure):
        raise RepsimError(f"measure={measure!r}: choose {', '.join(get_args(Measure))}")
    results.check_counts(resamples=resamples, items=items, permutations=permutations, seed=seed)
    if other is None:
        results.require_two_states(capture, plan)
    if measure == "minibatch-cka":
        if permutations or sinks or items:
            raise RepsimError(
                "measure='minibatch-cka': takes all tokens but sinks, and holds no items to shuffle"
            )
        if other is not None:
            return _streamed_of_two(cast(TextSource, capture), other, plan, resamples)
        return _streamed(capture, plan, resamples)

    # Draw the items, of two captures the same ones, and prepare each state's view of them.
    default_items, default_permutations = (
        (MAP_ITEMS, 0) if measure in MAPS else (MATRIX_ITEMS, PERMUTATIONS)
    )
    drawing: dict[str, Any] = {
        "sinks": sinks,
        "directions": measure in DIRECTIONS,
        "seed": seed,
    }
    draws: tuple[TokenSubsample, ...]
    left_out: dict[str, int] = {}
    if other is None:
        draws = (draw_tokens(capture, plan, items or default_items, **drawing),)
    else:
        draws, shared = draw_shared_tokens(
            cast(TextSource, capture), other, plan, items or default_items, **drawing
        )
        left_out = _count_left_out(shared)
    drawn = draws[0]

    try:
        comparison = prepare_comparison(draws, measure, neighbours, variance, bandwidth)
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
    return matrix, np.array(null).reshape(-1, *value.shape), facts | left_out


def _streamed(
    capture: StateSource, plan: str, resamples: int
) -> tuple[Estimate, Array, dict[str, int]]:
    """`estimate` of minibatch CKA: sums over the samples of the capture, and an empty null."""
    states = len(capture.steps(plan))
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


def _streamed_of_two(
    capture: TextSource, other: TextSource, plan: str, resamples: int
) -> tuple[Estimate, Array, dict[str, int]]:
    """`_streamed` of two captures, read side by side: the tokens that are no sinks in either."""
    shared = match_tokens(capture, other, plan)
    states, states_other = len(capture.steps(plan)), len(other.steps(plan))
    rows = [
        _minibatch_of_two(*sample) for sample in each_shared_sample(capture, other, plan, shared)
    ]
    values = np.stack(rows)
    values = values[values[:, -1] > 0]
    if not len(values):
        raise RepsimError(f"plan {plan!r}: no sample has four tokens that are no attention sinks")
    means = stats.bootstrap(
        stats.ratio_of_sums(values[:, :-1], values[:, -1]), len(values), resamples=resamples
    )

    def cosines(array: Array) -> Array:
        cross, squares, squares_other = np.split(
            array, [states * states_other, states * states_other + states], axis=-1
        )
        with np.errstate(invalid="ignore"):  # a state that does not vary is like no other: NaN
            scale = np.sqrt(squares[..., :, None] * squares_other[..., None, :])
            return cross.reshape(scale.shape) / scale

    facts = {"tokens": int(values[:, -1].sum()), "samples": len(values)}
    empty = np.empty((0, states, states_other))
    return means.map(cosines), empty, facts | _count_left_out(shared)


def _minibatch_of_two(
    states: NDArray[Any], states_other: NDArray[Any], tokens: NDArray[np.int64]
) -> Array:
    """`_minibatch` of a sample that two captures have: HSICs of every state of the one with every
    state of the other, of each state with itself, and their weight.

    states, states_other: `[state, token, unit]`, whole.
    tokens: which of these they share, `[2, token]`.
    """
    both = (states, states_other)
    is_sink = [sink_tokens(each)[kept] for each, kept in zip(both, tokens, strict=True)]
    kept = tokens[:, ~(is_sink[0] | is_sink[1])]
    rest = kept.shape[1] % BATCH
    weight = kept.shape[1] - (rest if rest < 4 else 0)

    # Units of zeros change no inner product, so the narrower states can be padded.
    widest = max(each.shape[2] for each in both)
    padded = [
        np.pad(each[:, row], ((0, 0), (0, 0), (0, widest - each.shape[2])))
        for each, row in zip(both, kept, strict=True)
    ]
    hsic = cka.minibatch_hsic(np.concatenate(padded), BATCH)
    first = len(states)
    squares = np.diagonal(hsic)
    return np.concatenate([hsic[:first, first:].ravel(), squares, [weight]])


def _count_left_out(shared: SharedTokens) -> dict[str, int]:
    """How many samples only one of two captures has; said once where there are any."""
    here, there = shared.left_out
    if here or there:
        log.warning(
            "similarity: texts that only one capture has are left out: %d of this one, %d of the "
            "other",
            here,
            there,
        )
    return {"left_out_samples": here, "left_out_samples_other": there}


def _describe_other(other: TextSource | None, plan: str) -> dict[str, Any]:
    """What the columns are of, where they are of another capture."""
    if other is None:
        return {}
    return {
        "model_other": other.identity["model"],
        "corpus_other": other.identity["corpus"],
        "plan_text_other": other.plan_text(plan),
    }
