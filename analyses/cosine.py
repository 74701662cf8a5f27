"""How alike are the states of a plan? Mean cosine similarity between every two of them.

This module takes the sums that the kernels of `repsim.measures` make of each sample's states,
stored or not, and turns them into means with their bootstrap distributions. It knows nothing of
models, of files or of pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr
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
    unpack_symmetric,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Average = Literal["token", "sequence", "centred", "without-sinks"]

DESCRIPTION = {
    "token": "Mean over tokens of the cosine between two states at the same token.",
    "sequence": "Mean over samples of the cosine between two states flattened over a sample's tokens, without padding.",
    "centred": "Mean over tokens of the cosine between two states at the same token, each less its mean over tokens.",
    "without-sinks": "Mean over tokens that are no attention sinks of the cosine between two states at the same token.",
}


def _token(states: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine sums over a sample's tokens, then of how many tokens each sum is."""
    return np.concatenate([pack_symmetric(total) for total in token_cosine_totals(states)])


def _without_sinks(states: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine sums over the tokens that are no sinks, and how many these are; then of how many
    tokens each sum is.
    """
    kept = states[:, ~sink_tokens(states)]
    sums, counts = map(pack_symmetric, token_cosine_totals(kept))
    return np.concatenate([sums, [kept.shape[1]], counts, [kept.shape[1]]])


# What a capture that keeps no states takes of each sample for this analysis.
STATISTICS = {
    "token": _token,
    "sequence": lambda states: pack_symmetric(grams(states)),
    "without-sinks": _without_sinks,
}


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
    times longer than the others', so it alone rules a sample's flattened cosine, and `sequence` is
    near 1 there whatever the other tokens do. `token` weighs all tokens alike. States that share a
    large constant part are alike by that alone: `centred` takes it away.

    Standard error and interval come from a bootstrap over samples; NaN where there is only one.

    A zero vector has no direction, so its cosines are 0/0: the token (with `sequence`, a sample
    whose state is zero at every token) is left out of that state's cosines and no others.
    `left_out_tokens` is how many tokens the cosine that lacks most is without. What is not finite
    stays NaN.

    Works on a capture that keeps its states, and, but for `centred`, on one that keeps the
    statistic `cosine` of them.

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
        without the padding that the notebook beside it flattens along with the tokens.
    """
    found, facts = estimate(capture, plan, average, resamples)
    steps = capture.steps(plan)
    return xr.Dataset(
        results.variables("cosine", (STATE, results.STATE_OTHER), found, bounds=(-1, 1)),
        coords={**results.layer_coordinate(steps), **results.layer_coordinate(steps, results.STATE_OTHER)},
        attrs=results.attributes(
            capture, plan, "cosine", DESCRIPTION[average], average=average, **facts
        ),
    )


def estimate(
    capture: StateSource, plan: str, average: Average = "token", resamples: int = 1000
) -> tuple[Estimate, dict[str, int]]:
    """The cosine matrix with its replicates, and the numbers of tokens, samples and tokens left
    out; see `compute`.
    """
    if average not in get_args(Average):
        raise RepsimError(f"average={average!r}: choose {', '.join(get_args(Average))}")
    results.check_counts(resamples=resamples)
    states = len(results.require_two_states(capture, plan))
    kernel = _centred(capture, plan) if average == "centred" else STATISTICS[average]
    statistic = SampleStatistic(f"cosine.{average}", kernel)
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
                "average='without-sinks': every kept token is a sink, as a sample's first kept one is"
            )
        there, totals, weights = tokens > 0, totals[:, :pairs], weights[:, :pairs]
        tokens, totals, weights = tokens[there], totals[there], weights[there]
        weights = np.where(np.isnan(weights), tokens[:, None], weights)
        lost = (tokens[:, None] - weights).sum(0).max()
    packed = stats.bootstrap(
        stats.ratio_of_sums(totals, weights), len(weights), resamples=resamples
    )
    facts = {"tokens": int(tokens.sum()), "samples": len(tokens), "left_out": int(lost)}
    return packed.map(lambda array: unpack_symmetric(array, states)), facts


def _flattened(
    capture: StateSource, plan: str, statistic: SampleStatistic, states: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each sample its tokens, its flattened cosines, 0 where a state is zero, and 1 for a
    cosine, 0 for none.
    """
    tokens, products = collect(capture, plan, statistic)
    products = unpack_symmetric(products, states)
    zero = np.diagonal(products, axis1=1, axis2=2) == 0
    undefined = pack_symmetric(zero[:, :, None] | zero[:, None, :])
    return (
        tokens,
        np.where(undefined, 0, pack_symmetric(cosine_from_gram(products))),
        1.0 - undefined,
    )


def _centred(capture: StateSource, plan: str) -> Any:
    """Cosine sums of states less their mean, which a first reading of all states finds."""
    sums = SampleStatistic("cosine.centred", lambda states: states.sum(1, dtype=np.float64))
    count, total = 0, np.zeros(())
    for tokens, added in capture.per_sample(plan, sums):
        count, total = count + tokens, total + added
    if not count:
        return STATISTICS["token"]
    mean = (total / count).astype(np.float32)[:, None, :]
    return lambda states: _token(states - mean)


def plot(*found: xr.Dataset) -> Figure:
    """Heat map of each cosine matrix, side by side; see `repsim.plotting.similarity_matrices`."""
    from repsim import plotting  # here, so that computing does not wait for matplotlib

    return plotting.similarity_matrices(*found)
