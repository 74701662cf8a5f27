"""How alike are the states of a plan? Mean cosine similarity between every two of them.

This module takes the sums that the kernels of `repsim.measures` make of each sample's states,
stored or not, and turns them into means with their bootstrap distributions. It knows nothing of
models, of files or of pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from repsim import stats
from repsim.errors import RepsimError
from repsim.measures import cosine_from_gram, grams, sink_tokens, token_cosine_totals
from repsim.schema import STATE
from repsim.stats import results
from repsim.stats.bootstrap import Estimate
from repsim.stats.per_sample import (
    SampleStatistic,
    StateSource,
    collect,
    collect_sums,
    pack_symmetric,
    runs_anywhere,
    unpack_symmetric,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Average = Literal["token", "sequence", "centred", "without-sinks"]
HEAT_MAPS = True  # of its figure, for --vmin and --vmax

DESCRIPTION = {
    "token": "Mean over tokens of the cosine between two states at the same token.",
    "sequence": "Mean over samples of the cosine between two states flattened over a sample's "
    "tokens, without padding.",
    "centred": "Mean over tokens of the cosine between two states at the same token, each less its "
    "mean over tokens.",
    "without-sinks": "Mean over tokens that are no attention sinks of the cosine between two "
    "states at the same token.",
}


@runs_anywhere
def _token(states: Any) -> Any:
    """Cosine sums over a sample's tokens, then how many tokens each sum is over, `[value]`."""
    xp = array_namespace(states)
    return xp.concat([pack_symmetric(total) for total in token_cosine_totals(states)], axis=-1)


@runs_anywhere
def _sequence(states: Any) -> Any:
    """Inner products of a sample's states, flattened, `[value]`."""
    return pack_symmetric(grams(states))


@runs_anywhere
def _without_sinks(states: Any) -> Any:
    """As `_token`, over tokens that are not sinks; their number ends the sums and the counts."""
    xp = array_namespace(states)
    kept = ~sink_tokens(states)
    sums, counts = map(pack_symmetric, token_cosine_totals(states, kept))
    number = xp.sum(kept, axis=-1, keepdims=True, dtype=xp.float64)
    return xp.concat([sums, number, counts, number], axis=-1)


# What a capture without states computes from each sample for this analysis.
STATISTICS = {"token": _token, "sequence": _sequence, "without-sinks": _without_sinks}


def compute(
    capture: StateSource,
    *,
    plan: str = "baseline",
    average: Average = "token",
    resamples: int = 1000,
) -> xr.Dataset:
    """Mean cosine similarity between every two states of a plan.

    -1 (opposite directions) to 1 (same direction). The averages answer different questions and
    differ a lot: in the middle layers of a decoder the first token's state is tens to hundreds of
    times longer than the others', so it alone determines a sample's flattened cosine, and
    `sequence` is near 1 there whatever the other tokens do. `token` weighs all tokens alike. States
    that share a large constant part are alike for that reason alone: `centred` subtracts it.

        token       (1 / T) Σ_t h_i[t] · h_j[t] / (|h_i[t]| |h_j[t]|)
        sequence    (1 / S) Σ_s Σ_t∈s h_i[t] · h_j[t] / √(Σ_t∈s |h_i[t]|² Σ_t∈s |h_j[t]|²)

    with T tokens and S samples. Standard error and interval come from a bootstrap over samples; NaN
    where there is only one.

    A zero vector has no direction, so its cosines are 0/0: the token (with `sequence`, a sample
    whose state is zero at every token) is left out of that state's cosines and no others.
    `left_out_tokens` is the largest number of tokens that any cosine is without. Anything not
    finite stays NaN.

    Works on a capture that keeps its states and, except for `centred`, on one that keeps the
    statistic `cosine`.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        average: token: the cosine at each token, mean over tokens; sequence: the cosine of each
            sample's states flattened over its tokens, mean over samples; centred: as token, of
            states less their mean over all tokens; without-sinks: as token, without the first token
            and those over 3 times as long as the sample's median.
        resamples: draws of the bootstrap.
    Returns:
        `cosine`, `standard_error`, `low` and `high` over (state, state_other), with coordinates
        `layer` and `layer_other`; the attributes say what was measured on what.
    Raises:
        RepsimError: an unknown average, a plan of fewer than two states, or no tokens.
    Source:
        `sequence`: Sun et al. 2024, Transformer Layers as Painters (arXiv 2407.09298), fig. 3,
        without the padding that their notebook flattens along with the tokens.
    """
    matrix, facts = estimate(capture, plan, average, resamples)
    steps = capture.steps(plan)
    return xr.Dataset(
        results.variables("cosine", (STATE, results.STATE_OTHER), matrix, bounds=(-1, 1)),
        coords={
            **results.layer_coordinate(steps),
            **results.layer_coordinate(steps, results.STATE_OTHER),
        },
        attrs=results.attributes(
            capture,
            plan,
            "cosine",
            DESCRIPTION[average],
            average=average,
            resamples=resamples,
            **facts,
        ),
    )


def estimate(
    capture: StateSource, plan: str, average: Average = "token", resamples: int = 1000
) -> tuple[Estimate, dict[str, int]]:
    """The cosine matrix with its replicates, and what it is over; see `compute`.

    Args:
        capture: an open capture.
        plan: plan whose states are compared.
        average: as in `compute`.
        resamples: draws of the bootstrap.
    Returns:
        `[state, state]` with replicates, and the numbers of tokens, samples and tokens left out.
    Raises:
        RepsimError: as `compute`.
    """
    if average not in get_args(Average):
        raise RepsimError(f"average={average!r}: choose {', '.join(get_args(Average))}")
    results.check_counts(resamples=resamples)
    states = len(results.require_two_states(capture, plan))
    kernel = _centred(capture, plan) if average == "centred" else STATISTICS[average]
    statistic = SampleStatistic(f"cosine.{average}", kernel)

    # Collect per sample the cosine sums and what each is over: samples, or tokens.
    if average == "sequence":
        tokens, totals, weights = _flattened(capture, plan, statistic, states)
        lost = (tokens @ (1 - weights)).max()
    else:
        pairs = states * (states + 1) // 2
        sinks = average == "without-sinks"
        lengths, totals, weights = collect_sums(capture, plan, statistic, pairs + sinks)
        tokens = totals[:, -1].astype(np.int64) if sinks else lengths
        if not tokens.any():
            raise RepsimError(
                "average='without-sinks': every kept token is a sink, as a sample's first kept one "
                "is"
            )
        nonempty, totals, weights = tokens > 0, totals[:, :pairs], weights[:, :pairs]
        tokens, totals, weights = tokens[nonempty], totals[nonempty], weights[nonempty]
        weights = np.where(np.isnan(weights), tokens[:, None], weights)
        lost = (tokens[:, None] - weights).sum(0).max()

    # Divide sum by sum, for all samples and for each resample of them.
    packed = stats.bootstrap(
        stats.ratio_of_sums(totals, weights), len(weights), resamples=resamples
    )
    facts = {"tokens": int(tokens.sum()), "samples": len(tokens), "left_out": int(lost)}
    return packed.map(lambda array: unpack_symmetric(array, states)), facts


def _flattened(
    capture: StateSource, plan: str, statistic: SampleStatistic, states: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Per sample its tokens, its flattened cosines, and their weights: 0 where undefined, else 1.

    Returns:
        `[sample]`, int64, then `[sample, value]` twice, float64; an undefined cosine is 0.
    """
    tokens, packed = collect(capture, plan, statistic)
    products = unpack_symmetric(packed, states)
    zero = np.diagonal(products, axis1=1, axis2=2) == 0
    undefined = pack_symmetric(zero[:, :, None] | zero[:, None, :])
    cosines = np.where(undefined, 0, pack_symmetric(cosine_from_gram(products)))
    return tokens, cosines, 1.0 - undefined


def _centred(capture: StateSource, plan: str) -> Any:
    """A kernel as `_token`, of states minus their mean over all tokens.

    Reads all states once, for the mean.
    """

    @runs_anywhere
    def add_tokens(states: Any) -> Any:
        xp = array_namespace(states)
        return xp.sum(states, axis=-2, dtype=xp.float64)

    count, total = 0, np.zeros(())
    for tokens, values in capture.per_sample(plan, SampleStatistic("cosine.centred", add_tokens)):
        count, total = count + tokens, total + values
    if not count:
        return STATISTICS["token"]
    mean = (total / count).astype(np.float32)[:, None, :]

    @runs_anywhere
    def centred_token(states: Any) -> Any:
        xp = array_namespace(states)
        return _token(states - xp.asarray(mean, device=device(states)))

    return centred_token


def summarise(result: xr.Dataset) -> pd.DataFrame:
    """Means within and between groups of neighbouring states; see
    `repsim.analyses.clusters.summarise_similarity`.
    """
    from repsim.analyses import clusters  # here, as it uses this module

    table: pd.DataFrame = clusters.summarise_similarity(result, "cosine")
    return table


def plot(*datasets: xr.Dataset) -> Figure:
    """Heat map of each cosine matrix, side by side; see `repsim.plotting.similarity_matrices`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.similarity_matrices(*datasets)
